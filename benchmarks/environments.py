"""Speed of environments against their peers: `python benchmarks/environments.py [--json]`.

One core unless said. A step is one joint action of one copy. Both sides take random actions from a table
drawn beforehand, and the time of resets counts.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

COPIES = 1024
ADAPTER_COPIES = 64


def rate(step: Callable[[], None], steps_a_call: int, seconds: float) -> float:
    """Steps a second: the best of three spells, because other processes only ever make one slower."""
    step()
    best = 0.0
    for _ in range(3):
        calls, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds / 3:
            step()
            calls += 1
        best = max(best, calls * steps_a_call / passed)
    return best


def particle(env_id: str, seconds: float, **options: object) -> float:
    """Our batched world, one episode a call."""
    from offmarl.envs.registry import make

    env = make(env_id, COPIES, options=options)
    actions = 2 * torch.rand(25, COPIES, env.spec.n_agents, 2, generator=torch.Generator().manual_seed(0)) - 1
    env.reset(0)

    def episode() -> None:
        for action in actions:
            env.step(action)

    return rate(episode, 25 * COPIES, seconds)


def mpe2_loop(task: str, seconds: float) -> float:
    """Step one mpe2 environment after another: what a loop over copies costs."""
    from mpe2 import simple_spread_v3, simple_tag_v3

    module = {"mpe_spread": simple_spread_v3, "mpe_tag": simple_tag_v3}[task]
    env = module.parallel_env(continuous_actions=True)
    rng = np.random.default_rng(0)
    table = rng.random((25, len(env.possible_agents), 5), dtype=np.float32)

    def episode() -> None:
        env.reset(seed=0)
        for row in table:
            env.step(dict(zip(env.possible_agents, row, strict=True)))

    return rate(episode, 25, seconds)


def adapter(task: str, seconds: float, workers: int) -> float:
    """The real mpe2 behind the PettingZoo adapter."""
    from offmarl.envs.registry import make

    options = {"prey_policy": "random"} if task == "mpe_tag" else {}
    with make(task, ADAPTER_COPIES, backend="pettingzoo", options=options, workers=workers) as env:
        shape = (25, ADAPTER_COPIES, env.spec.n_agents, 2)
        actions = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
        env.reset(0)

        def episode() -> None:
            for action in actions:
                env.step(action)

        return rate(episode, 25 * ADAPTER_COPIES, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure each number")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    rows: dict[str, dict[str, float | str]] = {}

    def compare(row: str, ours: float, peer: float) -> None:
        rows[row] = {
            "ours": round(ours),
            "peer": round(peer),
            "ratio": round(ours / peer, 2),
            "unit": "steps/s",
        }

    loops = {task: mpe2_loop(task, arguments.seconds) for task in ("mpe_spread", "mpe_tag")}
    for task, loop in loops.items():
        name = f"{task}, {COPIES:,} copies on one core, against a loop over mpe2"
        # Every agent acts on our side too: the loop's prey is given its action, so ours is not asked for one.
        options = {"background": "none"} if task == "mpe_tag" else {}
        compare(name, particle(task, arguments.seconds, **options), loop)
    compare(
        f"mpe_tag with a scripted prey inside, {COPIES:,} copies on one core, against a loop over mpe2",
        particle("mpe_tag", arguments.seconds, prey_policy="flee"),
        loops["mpe_tag"],
    )
    for workers in (1, 2):
        processes = "1 process" if workers == 1 else f"{workers} processes"
        for task, loop in loops.items():
            name = f"{task} by the PettingZoo adapter, {ADAPTER_COPIES} copies in {processes}, against a loop"
            compare(name, adapter(task, arguments.seconds, workers), loop)

    if arguments.json:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "ours", "peer", "ratio", "unit", title="Environments")
    for name, row in rows.items():
        table.add_row(name, f"{row['ours']:,}", f"{row['peer']:,}", f"{row['ratio']:,}", str(row["unit"]))
    Console().print(table)


if __name__ == "__main__":
    main()
