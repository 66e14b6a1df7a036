"""Cells that are games: contestants that learn by playing or from data, and whom they play against."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_recipes import Inline, changed, recipe

from offmarl.behaviour import qualities
from offmarl.errors import UsageError
from offmarl.recipes.bench import DONE, read_results, run_bench
from offmarl.recipes.jobs import Schedule
from offmarl.recipes.recipe import expand, load_recipe
from offmarl.recipes.results import study_of_bench

pytest.importorskip("magent2")

OPTIONS = {"agents": 4, "horizon": 10, "background": "none"}
QUICK = {
    "steps": 20,
    "num_envs": 2,
    "warm_up": 5,
    "checkpoint_every": 10,
    "evaluation_episodes": 2,
    "batch_size": 8,
    "hidden": [8],
}
GAMES = {
    "name": "games",
    "title": "Games",
    "seeds": 1,
    "blocks": {
        "online": {
            "online": {
                "env": "magent_battle",
                "options": OPTIONS,
                "behaviour": {"algorithm": "cmfq", **QUICK},
            },
            "play": {"games": 2, "opponent": QUICK},
            "grid": {"play.against": ["random", "mfq"], "play.agents": [4, 9]},
        },
        "offline": {
            "collect": {
                "env": "magent_battle",
                "options": OPTIONS,
                "behaviour": {"algorithm": "cmfq", **QUICK},
                "steps": 40,
                "num_envs": 2,
            },
            "train": {"learner": "cmfq", "rewards": True, "settings": {"hidden": [8]}, "loop": {"steps": 3}},
            "play": {"games": 2, "opponent": {"hidden": [8]}},
            "grid": {"play.against": ["behaviour", "mfq"]},
        },
    },
    "tables": [
        {
            "title": "Points",
            "rows": ["block", "learner", "agents"],
            "across": "against",
            "metrics": ["points"],
        },
    ],
}


@pytest.fixture(autouse=True)
def _few_games_for_references(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(qualities, "RENDERED_REFERENCE_EPISODES", 2)


def test_contestants_learn_once_and_play_many_games(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path / "home"))
    engine = Inline()
    report = run_bench(recipe(GAMES), tmp_path / "bench", engine)
    assert report.failure_lines() == []
    assert report.count(DONE) == 6
    # What collects data has learnt before, so that only two trainings are left; the offline opponent is trained apart.
    trained = list((tmp_path / "home" / "policies" / "magent_battle").iterdir())
    assert len(trained) == 2
    assert sum("-online-" in key for key in engine.keys) == 2
    for learner in ("cmfq", "mfq"):
        trainings = [
            key for key in engine.keys if key.startswith("magent_battle-expert") and f"-{learner}-" in key
        ]
        assert len(trainings) == 1
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["cells"]
    for result in report.results:
        stored = json.loads((tmp_path / "bench" / "cells" / f"{result.cell.name}.json").read_text())
        pair = stored["details"]["pair"]
        assert (pair["a"], pair["b"]) == ("cmfq", result.cell.coordinates["against"])
        assert pair["a_trained_on"] == 4
        assert str(pair["agents"]) == result.cell.coordinates["agents"].replace("default", "4")
        assert stored["values"]["points"] == [pair["win_rate"] + pair["draw_rate"] / 2]
    rows = report.table().rows
    study = study_of_bench(tmp_path / "bench")
    assert {result.learner for result in study.results} == {"cmfq"}
    assert len(study.results) == 6  # one a task: against whom, with how many
    assert [row[:3] for row in rows] == [
        ["online", "cmfq", "4"],
        ["online", "cmfq", "9"],
        ["offline", "cmfq", "default"],
    ]


def test_the_seeds_own_opponent_shares_the_training_of_the_contestant_of_that_name():
    content = changed(GAMES, "blocks/online/grid", {"online.behaviour.algorithm": ["cmfq", "mfq"]})
    content = changed(content, "blocks/online/play", {"against": "mfq", "opponent": QUICK})
    jobs = Schedule(expand(recipe(content), [0, 1]), Path("work"), "cpu", keep=False)._jobs
    trainings = [key for key in jobs if "-online-" in key]
    assert sorted(key.rsplit("-", 1)[0] for key in trainings) == [
        f"magent_battle-online-{algorithm}-s{seed}" for algorithm in ("cmfq", "mfq") for seed in (0, 1)
    ]
    collected = next(job for key, job in jobs.items() if key.startswith("magent_battle-expert"))
    assert collected.after == next(key for key in trainings if key.startswith("magent_battle-online-cmfq-s0"))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("blocks/online/play/against", "nobody", "nobody"),
        ("blocks/online/play/against", "behaviour", "has none"),
        ("blocks/online/play/games", 1, "play.games"),
        ("blocks/online/online/env", "mpe_tag", "magent_battle"),
        ("blocks/online/online/behaviour", {"algorithm": "cmfq", "betta": 1}, "beta"),
        ("blocks/online/play", {"against": "mfq", "opponent": {"stepz": 1}}, "steps"),
        ("blocks/online/train", {"learner": "cmfq"}, "in place of 'train'"),
        ("blocks/online/play", None, "give a stage 'play'"),
        ("blocks/offline/train", None, "needs a stage 'train' or 'online'"),
        ("blocks/offline/evaluate", {"episodes": 3}, "in place of 'evaluate'"),
    ],
)
def test_what_cannot_be_played_is_told_before_anything_runs(tmp_path, path, value, said):
    content = changed(GAMES, path, value)
    content["blocks"]["online"]["grid"] = {}
    content["blocks"]["offline"]["grid"] = {}
    content["tables"] = [{"title": "All", "rows": ["block"], "metrics": ["points"]}]
    with pytest.raises((UsageError, ValueError), match=said):
        read_results(recipe(content), tmp_path)


def test_the_recipe_of_the_mean_field_questions_can_be_run(tmp_path):
    plan = load_recipe(Path("recipes/mean_field.yaml"))
    cells = expand(plan, [0])
    assert cells[0].coordinates["learner"] == "cmfq"
    assert {cell.coordinates["block"] for cell in cells} >= {
        "mfq_64",
        "epsilon",
        "beta",
        "scope",
        "pursuit",
        "offline",
    }
    assert all(cell.settings.play.games >= 40 for cell in cells)
    read_results(plan.model_copy(update={"seeds": 1}), tmp_path)


def test_other_recipes_keep_the_names_of_their_cells():
    """Results that lie in the repository are found by these names."""
    path = Path("recipes/credit.yaml")
    plan = load_recipe(path)
    stored = {file.stem for file in Path("docs/results/credit/cells").glob("*.json")}
    assert stored <= {cell.name for cell in expand(plan, plan.seed_list)}
    assert yaml.safe_load(path.read_text())["name"] == plan.name
