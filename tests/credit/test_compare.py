import json

import numpy as np
import pytest
import torch
from recording import HASTY

from offmarl.credit.compare import common_edges, compare, correlation
from offmarl.credit.macca import Macca
from offmarl.credit.relabel import decompose
from offmarl.errors import UsageError

KEPT = HASTY | {"fallback": False}


def test_decompositions_are_ranked_by_skill_on_the_same_transitions(dataset):
    first = decompose(dataset, values=KEPT, seed=0, name="first")
    decompose(dataset, values=KEPT, seed=0, name="again")
    comparison = compare(dataset, ["team", "first", "true", "mean", "again", "mean"])
    json.dumps(comparison.to_json(), allow_nan=False)
    skills = [contender.truth["skill"] for contender in comparison.contenders]
    assert skills == sorted(skills, reverse=True)
    assert comparison.contenders[0].name == "true"
    assert len(comparison.contenders) == 5, "a name given twice counts once"
    assert comparison.heldout
    assert comparison.transitions == len(first.credit.heldout_rows)
    by_name = {contender.name: contender for contender in comparison.contenders}
    assert by_name["first"].truth == pytest.approx(first.truth)
    assert by_name["mean"].truth["skill"] == pytest.approx(0, abs=1e-9)
    order = list(by_name)
    pair = order.index("first"), order.index("again")
    assert comparison.correlation[pair[0]][pair[1]] == pytest.approx(1)
    assert comparison.common_edges[pair[0]][pair[1]] == 1
    assert comparison.common_edges[pair[0]][order.index("team")] is None


def test_where_nothing_was_held_out_of_all_every_transition_counts(dataset):
    for seed in (0, 1):
        decompose(dataset, values=KEPT, seed=seed, name=f"seed-{seed}")
    comparison = compare(dataset, ["seed-0", "seed-1"])
    assert not comparison.heldout
    assert comparison.transitions == len(dataset)


def test_a_decomposition_that_names_no_held_out_rows_may_have_seen_all(dataset, monkeypatch):
    decompose(dataset, values=KEPT, seed=0, name="first")
    monkeypatch.setattr(Macca, "named", lambda self, credit: credit)
    assert decompose(dataset, values=KEPT, seed=0, name="own").credit.heldout_rows is None
    for names in (["own", "true"], ["own", "first"]):
        comparison = compare(dataset, names)
        assert not comparison.heldout
        assert comparison.transitions == len(dataset)
    decompose(dataset, "mean", name="equal")
    assert compare(dataset, ["equal", "first"]).heldout, "an equal split saw nothing"


@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_the_unit_does_not_matter(unit):
    first = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    second = first + torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    assert correlation(unit * first, unit * second) == pytest.approx(correlation(first, second), rel=1e-4)


def test_correlation_is_the_mean_over_the_agents_that_vary():
    generator = np.random.default_rng(0)
    first, second = (torch.from_numpy(generator.normal(size=(500, 3))) for _ in range(2))
    second = second + first
    expected = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(3)]
    assert correlation(first, second + 5) == pytest.approx(np.mean(expected))
    first[:, 2] = 1
    assert correlation(first, second) == pytest.approx(np.mean(expected[:2]))
    assert correlation(torch.ones(5, 3), second[:5]) is None


def test_edges_in_common():
    first = torch.tensor([[True, True, False], [False, False, False]])
    second = torch.tensor([[True, False, False], [False, False, True]])
    assert common_edges(first, second) == pytest.approx(0.5)
    assert common_edges(first, None) is None
    assert common_edges(first & False, second & False) is None


def test_wrong_names_are_refused(dataset):
    with pytest.raises(UsageError, match=r"one decomposition \(team\)"):
        compare(dataset, ["team", "team"])
    with pytest.raises(UsageError, match="no credit 'macca'"):
        compare(dataset, ["team", "macca"])
