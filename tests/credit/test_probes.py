import pytest
import torch
from recording import table

from offmarl.credit.diagnosis import AMBIGUOUS, ambiguity
from offmarl.credit.macca import Macca, MaccaConfig
from offmarl.credit.probes import disputes, sides
from offmarl.credit.samples import prepare
from offmarl.streams import stream


def _disputed(agents: int, *pairs: tuple[int, int]) -> torch.Tensor:
    disputed = torch.zeros(agents, agents, dtype=torch.bool)
    for i, j in pairs:
        disputed[i, j] = disputed[j, i] = True
    return disputed


def test_every_dispute_is_between_sides():
    for trial in range(50):
        generator = stream(trial, "disputes")
        agents = 2 + trial % 8
        disputed = torch.rand(agents, agents, generator=generator) < 0.4
        disputed = (disputed | disputed.T).fill_diagonal_(fill_value=False)
        favoured = sides(disputed)  # [P, N]
        differ = (favoured[:, :, None] != favoured[:, None, :]).any(0)
        assert differ[disputed].all()
        assert favoured[0].any(), "what all dispute must show in the first pair"
        assert not favoured[0].all(), "what all dispute must show in the first pair"


@pytest.mark.parametrize(
    ("agents", "pairs"), [(4, ()), (4, ((1, 3),)), (3, ((0, 2),)), (4, ((0, 1), (1, 2), (2, 3), (3, 0)))]
)
def test_one_pair_of_probes_does_where_two_sides_do(agents, pairs):
    favoured = sides(_disputed(agents, *pairs))
    assert len(favoured) == 1
    assert 1 <= favoured.sum() <= agents - 1
    assert abs(2 * int(favoured.sum()) - agents) <= 1, "as many on one side as on the other"


def test_three_who_all_dispute_need_two_pairs():
    assert len(sides(_disputed(3, (0, 1), (1, 2), (2, 0)))) == 2


def test_who_looks_at_one_variable_or_at_copies_of_it_disputes_it():
    transitions, _ = table(4, lambda obs, action: obs[:, :, 0], episodes=40)
    seen = transitions.column("obs")
    seen[:, 3, 1] = -2 * seen[:, 1, 1]  # agents 1 and 3 see the same thing, each in its own words
    decomposer = Macca(transitions.spec, MaccaConfig())
    samples = prepare(transitions, 0.1, 10**9, 0, torch.device("cpu"))
    names = [decomposer.layout.names[k] for k in samples.scale.varying.tolist()]

    def found(*edges: str) -> list[list[int]]:
        mask = torch.zeros(4, len(names), dtype=torch.bool)
        for edge in edges:
            agent, name = edge.split()
            mask[int(agent), names.index(name)] = True
        return disputes(samples, mask).nonzero().tolist()

    assert found("0 a0.x0", "1 a1.x0", "2 a2.x0", "3 a3.x0") == []
    assert found("0 a0.x0", "2 a0.x0") == [[0, 2], [2, 0]]
    assert found("1 a1.x1", "3 a3.x1") == [[1, 3], [3, 1]]
    assert found("0 a0.x0", "1 a0.x0", "2 a0.x0", "3 a0.x0") == []  # disputed by all


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1]])
def test_a_dispute_shows_wherever_the_two_agents_stand(order):
    """Agent 1 looks at the cause of agent 0's reward beside its own, so that it could be paid for it just as well."""
    transitions, _ = table(3, lambda obs, action: obs[:, :, 0], episodes=80, order=order)
    # A stronger tie-break settles a dispute in few steps.
    decomposer = Macca(transitions.spec, MaccaConfig(refit_steps=400, width=16, refit_depth=2, tie_break=0.1))
    samples = prepare(transitions, 0.1, 10**9, 0, torch.device("cpu"))
    names = [decomposer.layout.names[k] for k in samples.scale.varying.tolist()]
    place = [order.index(agent) for agent in range(3)]
    mask = torch.zeros(3, len(names), dtype=torch.bool)
    for agent, cause in ((0, 0), (1, 1), (2, 2), (1, 0)):
        mask[place[agent], names.index(f"a{place[cause]}.x0")] = True
    members = decomposer.refit(samples, mask).predict(samples.heldout_inputs, samples.heldout_alive)
    assert len(members) == 5, "one pair of probes is enough"
    found = ambiguity(members[-2:-1], members[-1:], members[:3].mean(0))[place]
    assert found[:2].min() > AMBIGUOUS
    assert found[2] < AMBIGUOUS
