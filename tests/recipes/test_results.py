import json

import pytest
from tiny_recipes import CREDIT, Inline, recipe

from offmarl.errors import DataError, UsageError
from offmarl.recipes.bench import run_bench
from offmarl.recipes.results import find_bench, study_of_bench
from offmarl.report.study import SAME_DATA


def write_cell(folder, learner, rewards, scores, data_seed, alpha=1.0, error=None):
    """A measured cell as `offmarl bench` writes it."""
    name = f"{learner}-{rewards}-{alpha}-s{data_seed}"
    cell = {
        "recipe": "by-hand",
        "cell": name,
        "coordinates": {"block": "b", "learner": learner, "rewards": rewards, "seed": str(data_seed)},
        "values": {} if error else {"score": scores, "return": scores, "seconds": [1.0], "behaviour": [40.0]},
        "error": error,
        "details": {"episodes": 100},
        "settings": {
            "collect": {
                "env": "scm_a",
                "quality": "expert",
                "free_riders": 2,
                "options": {"structure_seed": data_seed},
                "seed": data_seed,
            },
            "train": {
                "learner": learner,
                "rewards": rewards,
                "settings": {"alpha": alpha},
                "loop": {"steps": 500},
                "seeds": len(scores),
                "seed": 0,
            },
            "evaluate": {"episodes": 100, "options": {}, "seed": 0},
        },
    }
    (folder / "cells").mkdir(exist_ok=True)
    (folder / "cells" / f"{name}.json").write_text(json.dumps(cell))


def test_datasets_are_the_seeds_where_there_are_several(tmp_path):
    for seed in range(3):
        write_cell(tmp_path, "cql", "team", [10.0 + seed, 20.0 + seed], seed)
        write_cell(tmp_path, "cql", "macca", [50.0, 60.0], seed)
    made = study_of_bench(tmp_path)
    assert made.tasks == ["scm_a/expert with 2 free riders"]  # what is the seed tells no tasks apart
    result = made.find("cql on team", made.tasks[0])
    assert result.values["score"] == (15.0, 16.0, 17.0)
    assert (result.seeds, result.episodes, result.steps) == (("0", "1", "2"), 200, 500)
    assert result.behaviour == {"score": 40.0}
    assert any("a seed is a dataset of its own: the mean of the 2 policies" in note for note in made.notes)


def test_trained_seeds_are_the_seeds_of_a_single_dataset(tmp_path):
    write_cell(tmp_path, "cql", "team", [10.0, 20.0, 30.0], 0)
    made = study_of_bench(tmp_path)
    (result,) = made.results
    assert (result.values["score"], result.seeds, result.episodes) == (
        (10.0, 20.0, 30.0),
        ("0", "1", "2"),
        100,
    )
    assert made.notes == (SAME_DATA,)


def test_swept_settings_are_methods_and_failed_cells_are_left_out(tmp_path):
    write_cell(tmp_path, "cql", "team", [10.0, 20.0], 0)
    write_cell(tmp_path, "cql", "team", [30.0, 40.0], 0, alpha=5.0)
    write_cell(tmp_path, "cql", "macca", [0.0], 0, error="diverged")
    made = study_of_bench(tmp_path)
    assert made.methods == ["cql on team, alpha 1", "cql on team, alpha 5"]
    assert made.notes == ("left out: 1 cell failed", SAME_DATA)
    assert study_of_bench(tmp_path, only=["rewards=team"]).notes == (SAME_DATA,)
    with pytest.raises(UsageError, match=r"unknown value of --only learner= 'omar'"):
        study_of_bench(tmp_path, only=["learner=omar"])


def test_what_is_no_cell_is_named(tmp_path):
    (tmp_path / "cells").mkdir()
    with pytest.raises(UsageError, match="no cell is measured yet"):
        study_of_bench(tmp_path)
    (tmp_path / "cells" / "odd.json").write_text('{"recipe": "x"}')
    with pytest.raises(DataError, match=r"odd\.json is no measured cell: field 'cell'"):
        study_of_bench(tmp_path)


def test_a_bench_that_ran_is_read_and_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path))
    assert find_bench("tiny") is None
    folder = tmp_path / "benches" / "tiny"
    run_bench(recipe(CREDIT), folder, Inline(), ["method=mean", "env=scm_a"])
    assert find_bench("tiny") == find_bench(str(folder)) == folder
    made = study_of_bench(folder)
    (result,) = made.results
    assert (made.metric.name, result.method, result.task) == ("skill", "mean", "scm_a/random")
    assert result.seeds == ("0", "1")  # structure_seed follows the seed: the same task
    assert result.values["skill"] == pytest.approx((0, 0), abs=1e-6)
