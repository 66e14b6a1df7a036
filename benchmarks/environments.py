"""Speed of environments against their peers: `python benchmarks/environments.py [--json]`.

One core unless said. A step is one joint action of one copy. Both sides take random actions from a table
drawn beforehand, and the time of resets counts.
"""

import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from report import Row, parser_of, print_rows, row_of_rates

COPIES = 1024
ADAPTER_COPIES = 64
BATTLES = 512
MAPS = 8


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


def battles_with_a_network(scenario: str, seconds: float) -> float:
    """SMAX as data is collected: a network of 64 x 64 shared by the allies chooses among what is legal."""
    from offmarl.envs.registry import make

    with make(f"smax_{scenario}", BATTLES) as env:
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            *(torch.nn.Linear(env.spec.obs_dim, 64), torch.nn.ReLU()),
            *(torch.nn.Linear(64, 64), torch.nn.ReLU()),
            torch.nn.Linear(64, env.spec.action_dim),
        )
        frame = env.reset(0)

        @torch.inference_mode()
        def step() -> None:
            nonlocal frame
            values = network(frame.obs).masked_fill(~frame.legal, -torch.inf)
            noise = torch.rand_like(values).log_().neg_().log_()  # Gumbel: a draw from the softmax
            frame = env.step((values - noise).argmax(-1)).frame

        return rate(step, BATTLES, seconds)


def jaxmarl_loop(scenario: str, seconds: float) -> float:
    """SMAX as jaxmarl's README steps it: one copy, random actions, resetting itself."""
    import jax

    from offmarl.envs.smax_battle import HeuristicEnemySMAX, map_name_to_scenario

    env = HeuristicEnemySMAX(scenario=map_name_to_scenario(scenario))
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5 + env.num_enemies, (25, env.num_allies))
    key, state = jax.random.PRNGKey(0), env.reset(jax.random.PRNGKey(1))[1]

    def spell() -> None:
        nonlocal key, state
        for row in table:
            key, now = jax.random.split(key)
            _, state, reward, _, _ = env.step(now, state, dict(zip(env.agents, row, strict=True)))
        jax.block_until_ready(reward)

    return rate(spell, len(table), seconds)


def jaxmarl_batched(scenario: str, seconds: float) -> float:
    """SMAX as jaxmarl's training scripts step it: its `step` under `vmap` and `jit`, random actions."""
    import jax
    import jax.numpy as jnp

    from offmarl.envs.smax_battle import HeuristicEnemySMAX, map_name_to_scenario

    env = HeuristicEnemySMAX(scenario=map_name_to_scenario(scenario))
    step = jax.jit(jax.vmap(env.step))
    _, state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), BATTLES))
    keys = jax.random.split(jax.random.PRNGKey(1), BATTLES)
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5 + env.num_enemies, (25, env.num_allies, BATTLES), dtype=np.int32)
    actions = [{agent: jnp.asarray(row[i]) for i, agent in enumerate(env.agents)} for row in table]

    def spell() -> None:
        nonlocal state
        for joint in actions:
            obs, state, _, _, _ = step(keys, state, joint)
            jax.block_until_ready(obs)  # a policy would look at it before it acts

    return rate(spell, len(actions) * BATTLES, seconds)


def maps(seconds: float, workers: int) -> float:
    """MAgent's battle of 64 against 64, both sides random: every unit's view, minimap and features, and the state."""
    from offmarl.envs.registry import make

    with make("magent_battle", MAPS, options={"background": "none"}, workers=workers) as env:
        generator = torch.Generator().manual_seed(0)
        actions = torch.randint(env.spec.action_dim, (25, MAPS, env.spec.n_agents), generator=generator)
        env.reset(0)

        def spell() -> None:
            for action in actions:
                env.step(action)

        return rate(spell, 25 * MAPS, seconds)


def magent2_loop(seconds: float) -> float:
    """The same by magent2's PettingZoo layer, one map."""
    from magent2.environments import battle_v4

    env = battle_v4.parallel_env(map_size=40, minimap_mode=True, extra_features=True)
    rng = np.random.default_rng(0)
    table = rng.integers(0, 21, (25, len(env.possible_agents)))

    def spell() -> None:
        env.reset()
        for row in table:
            env.step(dict(zip(env.possible_agents, row, strict=True)))

    return rate(spell, len(table), seconds)


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure each number")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    rows: dict[str, Row] = {}

    def compare(name: str, ours: float, peer: float) -> None:
        rows[name] = row_of_rates(ours, peer, "steps/s")

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

    # JAX takes all cores that it may use, on both sides.
    for scenario in ("3m", "5m_vs_6m") if find_spec("jaxmarl") else ():
        ours = battles_with_a_network(scenario, arguments.seconds)
        name = f"smax_{scenario} with a network policy, {BATTLES} copies, against jaxmarl"
        compare(f"{name} one copy at a time", ours, jaxmarl_loop(scenario, arguments.seconds))
        compare(f"{name} by vmap without a policy", ours, jaxmarl_batched(scenario, arguments.seconds))

    if find_spec("magent2"):
        loop = magent2_loop(arguments.seconds)
        for workers in (1, 2):
            processes = "1 process" if workers == 1 else f"{workers} processes"
            name = f"magent_battle 64 v 64, {MAPS} copies in {processes}, against magent2's PettingZoo layer"
            compare(name, maps(arguments.seconds, workers), loop)

    print_rows(rows, arguments.json)


if __name__ == "__main__":
    main()
