"""What rendering costs, and what it costs CMFQ to act: against a full pass a neighbour, and against MFQ.

    python benchmarks/mean_field.py [--agents 64 400] [--rounds 15] [--json]

Two armies in formation, everybody's last action at random, one side acts; views and neighbours are there already. The
naive side intervenes as the paper writes it: for each unit and each of its neighbours a whole pass of the network with
that neighbour's action in place of the average, all of them in batches. A ratio above 1 means that offmarl is faster;
against MFQ, which intervenes on nothing, it cannot be. All sides take turns; medians of processor time are compared.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep, to everyone's advantage
sys.path.insert(0, str(Path(__file__).parent))  # for learners.py and report.py

import torch
from learners import in_turns
from report import Row, parser_of, print_rows, row_of_times
from torch import Tensor

from offmarl.envs.magent import describe
from offmarl.envs.magent_render import Renderer, renderers, scene
from offmarl.learners.meanfield.attention_mfq import AttentionMFQ
from offmarl.learners.meanfield.cmfq import CMFQ
from offmarl.learners.meanfield.mfq import MFQ
from offmarl.learners.meanfield.network import MeanFieldNetwork
from offmarl.learners.meanfield.seen import Seen
from offmarl.learners.registry import make_learner
from offmarl.streams import stream
from offmarl.training.memory import keep_freed_memory
from offmarl.training.precision import matmul_precision

BATCH = 128  # units drawn from as many states, as in an update
PASSES = 4_096  # that the naive side makes at once: more would not fit into the cache


def formation(renderer: Renderer) -> Tensor:
    """A state [1, D]: everybody where magent2 puts them, alive, having done anything."""
    grid, generator = renderer.grid, stream(0, "benchmark")
    state = torch.zeros(1, grid.state_dim)
    for k, group in enumerate(grid.groups):
        places = torch.from_numpy(group.places).float()
        for axis, name in enumerate(("x", "y")):
            state[:, grid.columns[name]][:, grid.slots(k)] = places[:, axis]
    choices = len(renderer.kind.actions)
    state[:, grid.columns["action"]] = torch.randint(choices, (1, grid.movers), generator=generator).float()
    state[:, grid.columns["health"]] = 1
    return state


def naive(learner: CMFQ, network: MeanFieldNetwork, seen: Seen, near: Tensor, action: Tensor) -> Tensor:
    """Choose [n] by a full pass for each pair of a unit and a neighbour; `near` [n, M], `action` [M]."""

    def policy(inputs: Tensor, merged: Tensor) -> tuple[Tensor, Tensor]:
        parts = [
            network.values(network.state_part(rows.unsqueeze(0)), network.action_part(some.unsqueeze(0)))
            for rows, some in zip(inputs.split(PASSES), merged.split(PASSES), strict=True)
        ]
        q = torch.cat(parts, 1).squeeze(0)
        return q, learner.log_policy(network, q)

    inputs = seen.inputs[0]
    unit, neighbour = near.nonzero(as_tuple=True)
    one_hot = torch.nn.functional.one_hot(action[neighbour], seen.counts.shape[2]).float()
    _, average = policy(inputs, seen.counts[0] / seen.counts[0].sum(1, keepdim=True).clamp(min=1))
    _, intervened = policy(inputs[unit], one_hot)
    effect = (average.exp()[unit] * (average[unit] - intervened)).sum(1).clamp_(min=0)
    essential = effect + learner.config.epsilon
    total = torch.zeros(len(inputs)).index_add_(0, unit, essential)
    weighted = one_hot * (essential / total[unit]).unsqueeze(1)
    merged = torch.zeros(len(inputs), one_hot.shape[1]).index_add_(0, unit, weighted)
    return policy(inputs, merged)[0].argmax(1)


def measure_rendering(agents: int, rounds: int) -> dict[str, Row]:
    """What a batch of units of armies of so many sees of as many states: views, features, neighbours' actions."""
    spec = describe("magent_battle", {"agents": agents, "background": "none"})
    renderer, generators = renderers(spec)["red"], [stream(0, "benchmark")]
    state = formation(renderer).repeat(BATCH, 1).unsqueeze(0)  # [1, B, D]
    unit = torch.randint(agents, (1, BATCH), generator=generators[0])
    cmfq = make_learner("cmfq", spec)
    assert isinstance(cmfq, CMFQ)
    taken = in_turns(
        {
            "offmarl": lambda: cmfq.look(renderer, state, unit, generators),
            "one by one": lambda: [
                cmfq.look(renderer, state[:, b : b + 1], unit[:, b : b + 1], generators) for b in range(BATCH)
            ],
        },
        rounds,
    )
    return {
        f"{BATCH} units render what they see, {agents} v {agents}: against one by one": row_of_times(
            taken["offmarl"], taken["one by one"], "ms"
        )
    }


def measure(agents: int, trunk: str, rounds: int) -> dict[str, Row]:
    """Rows of the table for armies of so many."""
    spec = describe("magent_battle", {"agents": agents, "background": "none"})
    renderer = renderers(spec)["red"]
    state, generators = formation(renderer), [stream(0, "benchmark")]
    names = ("cmfq", "mfq", "attention_mfq")
    cmfq, mfq, attention = (make_learner(name, spec, {"trunk": trunk}) for name in names)
    assert isinstance(cmfq, CMFQ)
    assert isinstance(mfq, MFQ)
    assert isinstance(attention, AttentionMFQ)
    unit = torch.arange(agents).unsqueeze(0)
    seen = cmfq.look(renderer, state.expand(1, agents, -1), unit, generators)
    near = renderer.neighbours(state)[0]
    action = scene(renderer.grid, state).action[0].long()
    network, plain = cmfq.actors[renderer.kind.name], mfq.actors[renderer.kind.name]
    assert torch.equal(naive(cmfq, network, seen, near, action), cmfq.outputs(network, seen)[0].argmax(1)), (
        "both choose the same"
    )
    taken = in_turns(
        {
            "offmarl": lambda: cmfq.outputs(network, seen).argmax(2),
            "naive": lambda: naive(cmfq, network, seen, near, action),
            "mfq": lambda: mfq.outputs(plain, seen).argmax(2),
        },
        rounds,
    )
    whole = in_turns(
        {
            "offmarl": lambda: cmfq.choose(state.unsqueeze(0), renderer, 0.0, generators),
            "attention": lambda: attention.choose(state.unsqueeze(0), renderer, 0.0, generators),
            "mfq": lambda: mfq.choose(state.unsqueeze(0), renderer, 0.0, generators),
        },
        rounds,
    )
    title = f"{agents} v {agents}, {trunk}"
    return {
        f"cmfq acts, {title}: against {int(near.sum()):,} full passes": row_of_times(
            taken["offmarl"], taken["naive"], "ms"
        ),
        f"cmfq acts, {title}: against mfq": row_of_times(taken["offmarl"], taken["mfq"], "ms"),
        f"cmfq renders and acts, {title}: against mfq": row_of_times(whole["offmarl"], whole["mfq"], "ms"),
        f"attention_mfq renders and acts, {title}: against mfq": row_of_times(
            whole["attention"], whole["mfq"], "ms"
        ),
    }


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[64, 400])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: dict[str, Row] = {}
    with matmul_precision("auto", torch.device("cpu")):
        for agents in arguments.agents:
            rows |= measure_rendering(agents, arguments.rounds)
            for trunk in ("mlp", "conv"):
                rows |= measure(agents, trunk, arguments.rounds)
    print_rows(rows, arguments.json)


if __name__ == "__main__":
    main()
