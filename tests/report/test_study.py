from dataclasses import replace

import pytest
from studies import measured, study

from offmarl.errors import UsageError

TAG, SPREAD = "tag/expert-v0", "spread/expert-v0"


def test_a_method_is_a_learner_on_rewards_and_imitation_looks_at_none():
    made = study(
        measured("bc", "team", [1]), measured("cql", "team", [2]), measured("cql", "/here/macca.h5", [3])
    )
    assert made.methods == ["bc", "cql on team", "cql on macca"]
    assert made.find("cql on macca", TAG).rewards == "macca"


def test_settings_are_named_only_where_they_tell_methods_apart():
    plain = {"alpha": 1.0, "hidden": [64, 64]}
    made = study(
        measured("cql", "team", [1], settings=plain | {"alpha": 5.0}),
        measured("cql", "team", [2], settings=plain),
        measured("omar", "team", [3], settings=plain),
    )
    assert made.methods == ["cql on team, alpha 5", "cql on team, alpha 1", "omar on team"]


def test_settings_tuned_for_every_task_are_one_method():
    made = study(
        measured("cql", "team", [1], TAG, {"alpha": 5.0}),
        measured("cql", "team", [2], SPREAD, {"alpha": 0.5}),
    )
    assert made.methods == ["cql on team"]
    assert made.shared_tasks() == [TAG, SPREAD]


def test_imitation_on_two_rewards_is_told_apart_by_them():
    made = study(measured("bc", "team", [1]), measured("bc", "macca", [1]))
    assert made.methods == ["bc, rewards team", "bc, rewards macca"]


def test_runs_with_other_seeds_of_the_same_are_joined():
    made = study(measured("cql", "team", [1, 2]), measured("cql", "team", [3], first_seed=2))
    (result,) = made.results
    assert (result.values["score"], result.seeds) == ((1.0, 2.0, 3.0), ("0", "1", "2"))


def test_the_same_seed_twice_is_refused():
    with pytest.raises(UsageError, match=r"same method \(cql on team\) with the same seed 1"):
        study(measured("cql", "team", [1, 2]), measured("cql", "team", [3], first_seed=1))


def test_two_versions_of_a_dataset_are_two_tasks():
    newer = replace(measured("omar", "team", [3]), task={"": TAG, "version": "def"})
    assert study(measured("cql", "team", [1]), newer).tasks == [f"{TAG}, version abc", f"{TAG}, version def"]


def test_returns_where_a_task_has_no_reference():
    unknown = measured("cql", "team", [], SPREAD, values={"return": [7.0]}, seeds=("0",))
    made = study(measured("cql", "team", [1]), unknown)
    assert made.metric.name == "return"
    assert "no reference returns" in made.notes[0]


def test_a_metric_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="--metric skill: not measured; known: return, score"):
        study(measured("cql", "team", [1]), metric="skill")
    with pytest.raises(UsageError, match="nothing is measured"):
        study()


def test_win_rates_are_compared_when_asked_for():
    values = {"return": [1.0, 2.0], "score": [10.0, 20.0], "win_rate": [0.5, 0.75]}
    found = measured("cql", "team", [10, 20], values=values)
    assert study(found).metric.name == "score"
    made = study(found, metric="win_rate")
    assert (made.metric.perfect, made.results[0].values["win_rate"]) == (1.0, (0.5, 0.75))
