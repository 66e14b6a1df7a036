"""Recipes: what they say, what they run, and what is left when something goes wrong."""

import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from offmarl.cli import app
from offmarl.data.schema import check_id
from offmarl.errors import UsageError
from offmarl.recipes import stages
from offmarl.recipes.bench import DONE, FAILED, OPEN, read_results, run_bench
from offmarl.recipes.engine import Finished, ProcessEngine, attempt
from offmarl.recipes.recipe import CellSettings, Recipe, expand, load_recipe, select
from offmarl.report.bench_tables import MeasuredCell, TableSpec, make_table

RECIPES = Path(__file__).parent.parent / "recipes"

HASTY = {"structure_steps": 20, "refit_steps": 20, "pruning_factors": []}
CREDIT = {
    "name": "tiny",
    "title": "Tiny",
    "seeds": 2,
    "blocks": {
        "scm": {
            "collect": {
                "quality": "random",
                "num_envs": 20,
                "options": {"agents": 2, "structure_seed": "$seed"},
            },
            "grid": {
                "collect.env": ["scm_a", "scm_c"],
                "collect.steps": [500],
                "method": {
                    "mean": {"decompose.method": "mean"},
                    "macca": {"decompose.method": "macca", "decompose.settings": HASTY},
                },
            },
        }
    },
    "tables": [
        {"title": "Skill", "rows": ["env", "steps"], "across": "method", "metrics": ["skill"]},
        {"title": "All", "rows": ["env", "method"], "metrics": ["pearson", "skill", "f1", "fallback"]},
    ],
}
POLICIES = {
    "name": "policies",
    "title": "Policies",
    "seeds": 1,
    "blocks": {
        "td3bc": {
            "collect": {
                "env": "mpe_targets",
                "quality": "random",
                "steps": 500,
                "num_envs": 20,
                "options": {"agents": 2},
            },
            "decompose": {"settings": HASTY},
            "train": {"learner": "td3bc", "seeds": 2, "loop": {"steps": 3, "batch_size": 32}},
            "evaluate": {"episodes": 4},
            "grid": {
                "sweep": {
                    "weak": {"train.settings.bc_weight": 0.4},
                    "strong": {"train.settings.bc_weight": 5},
                    "too many": {"train.loop.batch_size": 10_000},
                },
                "train.rewards": ["team", True, "macca"],
            },
        }
    },
    "tables": [
        {
            "title": "Best",
            "rows": ["env", "learner"],
            "across": "rewards",
            "metrics": ["return"],
            "best": {"over": ["sweep"], "metric": "return"},
        }
    ],
}


class Inline:
    """Does every job at once in this process; `broken` fails the jobs whose keys begin so."""

    slots = 1

    def __init__(self, broken: str | None = None) -> None:
        self.broken, self.keys, self._ended = broken, [], []

    def submit(self, key, work) -> None:
        self.keys.append(key)
        if self.broken is not None and key.startswith(self.broken):
            self._ended.append(Finished(key, 0.0, error="broken on purpose"))
        else:
            self._ended.append(attempt(key, work))

    def wait(self) -> list[Finished]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        pass


def recipe(content: dict, **changes) -> Recipe:
    return Recipe.model_validate(json.loads(json.dumps({**content, **changes})))


def changed(content: dict, path: str, value) -> dict:
    copy = json.loads(json.dumps(content))
    *parents, last = path.split("/")
    place = copy
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    place[last] = value
    return copy


@pytest.fixture(scope="module")
def credit(tmp_path_factory):
    """The whole of CREDIT, measured in this process."""
    folder = tmp_path_factory.mktemp("credit")
    engine = Inline()
    return run_bench(recipe(CREDIT), folder, engine), engine


# -- what a recipe says ------------------------------------------------------------------------------------


def test_seeds_come_first_then_the_axes_as_written():
    cells = expand(recipe(CREDIT), [0, 1])
    places = [
        (cell.coordinates["seed"], cell.coordinates["env"], cell.coordinates["method"]) for cell in cells
    ]
    assert places[:4] == [
        ("0", "scm_a", "mean"),
        ("0", "scm_a", "macca"),
        ("0", "scm_c", "mean"),
        ("0", "scm_c", "macca"),
    ]
    assert [place[0] for place in places] == ["0"] * 4 + ["1"] * 4


def test_the_seed_reaches_every_stage_and_every_setting_that_asks_for_it():
    settings = expand(recipe(POLICIES, seeds=[3]), [3])[-1].settings
    assert {settings.collect.seed, settings.decompose.seed, settings.train.seed, settings.evaluate.seed} == {
        3
    }
    assert expand(recipe(CREDIT), [7])[0].settings.collect.options["structure_seed"] == 7


def test_a_name_changes_with_any_setting_and_with_nothing_else():
    names = [cell.name for cell in expand(recipe(CREDIT), [0])]
    assert names == [cell.name for cell in expand(recipe(CREDIT, title="Another title"), [0])]
    other = changed(CREDIT, "blocks/scm/collect/options/agents", 3)
    assert not set(names) & {cell.name for cell in expand(recipe(other), [0])}
    assert names[0].startswith("scm-scm_a-500-mean-s0-")


def test_rewards_that_are_not_built_in_are_decomposed_and_others_are_not():
    by_rewards = {cell.coordinates["rewards"]: cell.settings for cell in expand(recipe(POLICIES), [0])}
    assert by_rewards["macca"].decompose.method == "macca"
    assert by_rewards["macca"].decompose.settings == HASTY
    assert by_rewards["team"].decompose is None
    assert by_rewards["true"].train.rewards == "true"  # YAML reads a bare true as a boolean


def test_a_dataset_that_exists_takes_the_place_of_collect():
    settings = CellSettings.model_validate({"dataset": "a/b-v0", "train": {"learner": "bc"}})
    assert settings.evaluate.episodes == 200
    with pytest.raises(ValueError, match="either a stage 'collect' or a 'dataset'"):
        CellSettings.model_validate({"train": {"learner": "bc"}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("blocks/scm/collect/stepz", 5, "stepz.*Extra inputs"),
        ("blocks/scm/grid/size", [5], "no path of a setting, like collect.steps"),
        ("blocks/scm/grid/collect.env.x", [5], "nothing below it"),
        ("blocks/scm/grid/collect.env", [], "has no values"),
        ("blocks/scm/grid/collect.seed", [1, 2], "there is an axis 'seed' already"),
        ("tables/0/rows", ["envs"], "axis of table 'Skill' 'envs': did you mean env"),
        ("tables/0/metrics", ["a", "b"], "exactly one metric"),
        ("seeds", 0, "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(path, value, message, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(changed(CREDIT, path, value)))
    with pytest.raises(UsageError, match=message):
        expand(load_recipe(file), [0])


def test_the_same_cell_twice_is_refused():
    twice = changed(CREDIT, "blocks/again", CREDIT["blocks"]["scm"])
    with pytest.raises(UsageError, match="are the same cell: keep one"):
        expand(recipe(twice), [0])


def test_unknown_names_are_refused_before_anything_runs(tmp_path):
    for path, value, message in [
        ("blocks/scm/grid/method/mean", {"decompose.method": "maccca"}, "did you mean macca"),
        ("blocks/scm/collect/quality", "expertt", "did you mean expert"),
        ("blocks/scm/grid/collect.env", ["scm_z"], "unknown environment"),
        ("blocks/scm/collect/options", {"agent": 3}, "did you mean agents"),
    ]:
        engine = Inline()
        with pytest.raises(UsageError, match=message):
            run_bench(recipe(changed(CREDIT, path, value)), tmp_path, engine)
        assert engine.keys == []
    with pytest.raises(UsageError, match="did you mean bc_weight"):
        read_results(recipe(changed(POLICIES, "blocks/td3bc/train/settings", {"bc_weigt": 1})), tmp_path)


def test_only_keeps_any_of_a_keys_values_and_all_of_the_keys():
    cells = expand(recipe(CREDIT), [0, 1])
    kept = select(cells, ["method=mean", "seed=0,1", "env=scm_a"])
    assert [(c.coordinates["method"], c.coordinates["seed"]) for c in kept] == [("mean", "0"), ("mean", "1")]
    with pytest.raises(UsageError, match="did you mean method"):
        select(cells, ["methods=mean"])
    with pytest.raises(UsageError, match="value of --only env= 'scm_b': did you mean"):
        select(cells, ["env=scm_b"])
    with pytest.raises(UsageError, match="expected key=value"):
        select(cells, ["mean"])


def test_the_recipes_of_the_repository_are_whole():
    sizes = {
        path.stem: len(expand(made, made.seed_list))
        for path in sorted(RECIPES.glob("*.yaml"))
        if (made := load_recipe(path))
    }
    assert sizes["credit"] == 5 * (8 + 1) * 4 * 6
    assert sizes["credit_matters"] == 5 * 2 * 3 * (1 + 5 * (3 + 2))
    assert "credit_bars" in sizes


def test_the_recipe_that_the_documentation_shows_is_one(tmp_path):
    page = (RECIPES.parent / "docs" / "benchmarks.md").read_text()
    file = tmp_path / "example.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0])
    assert read_results(load_recipe(file), tmp_path).count(OPEN) == 3 * 2 * 2


# -- what is run -------------------------------------------------------------------------------------------


def test_cells_are_measured_on_data_that_is_made_once_and_removed(credit):
    report, engine = credit
    assert report.count(DONE) == 8
    assert len(engine.keys) == 8 + 4  # one dataset a seed and task, shared by the methods
    assert [path.name for path in report.folder.iterdir()] == ["cells"]
    stored = json.loads((report.folder / "cells" / f"{report.results[1].cell.name}.json").read_text())
    assert stored["error"] is None
    assert stored["values"].keys() >= {
        "pearson",
        "r2",
        "skill",
        "f1",
        "fit_r2",
        "fallback",
        "seconds",
        "recall",
    }
    assert stored["settings"]["decompose"]["settings"] == HASTY
    assert [agent["name"] for agent in stored["details"]["agents"]] == ["agent_0", "agent_1"]
    mean = report.results[0].values
    assert mean["skill"] == [pytest.approx(0, abs=1e-6)]
    assert "hijack" not in mean  # an equal split takes from nobody in particular


def test_finished_cells_are_skipped_and_overwrite_measures_them_again(credit):
    report, _ = credit
    before = {path.name: path.stat().st_mtime_ns for path in (report.folder / "cells").iterdir()}
    engine = Inline()
    again = run_bench(report.recipe, report.folder, engine)
    assert engine.keys == []
    assert again.to_json() == report.to_json()
    run_bench(report.recipe, report.folder, engine, ["method=mean", "env=scm_a"], overwrite=True)
    after = {path.name: path.stat().st_mtime_ns for path in (report.folder / "cells").iterdir()}
    changed_names = {name.rsplit("-", 2)[0] for name in after if after[name] != before[name]}
    assert changed_names == {"scm-scm_a-500-mean"}


def test_with_keep_the_data_stays_and_is_used_again(tmp_path):
    for expected in (2, 1):  # with the data, without
        engine = Inline()
        report = run_bench(
            recipe(CREDIT),
            tmp_path,
            engine,
            ["method=mean", "env=scm_a", "seed=0"],
            keep=True,
            overwrite=True,
        )
        assert report.count(DONE) == 1
        assert (tmp_path / "work" / "data").is_dir()
        assert len(engine.keys) == 2
        data = next((tmp_path / "work" / "data").glob("*/data.h5"))
        if expected == 2:
            made = data.stat().st_mtime_ns
    assert data.stat().st_mtime_ns == made


def test_a_failed_cell_stops_nothing_and_is_tried_again(tmp_path):
    report = run_bench(recipe(POLICIES), tmp_path, Inline())
    assert {result.cell.coordinates["sweep"] for result in report.failures} == {"too many"}
    assert report.count(DONE) == 6
    assert "train.batch_size=10000 is larger than the data" in report.failures[0].error
    (line,) = report.failure_lines()
    assert " and 2 more: train.batch_size" in line
    assert "## Failed cells" in report.markdown("offmarl bench")
    stored = read_results(recipe(POLICIES), tmp_path)
    assert stored.count(FAILED) == 3

    engine = Inline()
    run_bench(recipe(POLICIES), tmp_path, engine)
    assert sum(key.startswith("td3bc-") for key in engine.keys) == 3
    done = next(result for result in report.results if result.status == DONE)
    assert len(done.values["return"]) == 2  # trained seeds
    assert done.values["rewards_skill"][0] < 1
    (row,) = report.table().rows
    assert row[0:2] == ["mpe_targets", "td3bc"]
    assert all(cell.endswith(("(weak)", "(strong)")) for cell in row[2:5])


def test_where_the_data_cannot_be_made_its_cells_fail_and_others_go_on(tmp_path):
    report = run_bench(recipe(CREDIT, seeds=1), tmp_path, Inline(broken="scm_a-"))
    assert {result.cell.coordinates["env"] for result in report.failures} == {"scm_a"}
    assert report.failures[0].error == "its data could not be made: broken on purpose"
    assert report.count(DONE) == 2
    assert run_bench(recipe(CREDIT, seeds=1), tmp_path, Inline()).count(DONE) == 4


def test_datasets_of_one_behaviour_wait_for_the_first_to_train_it():
    from offmarl.recipes.bench import _Schedule

    content = changed(POLICIES, "blocks/td3bc/grid/collect.quality", ["expert", "medium", "random"])
    jobs = _Schedule(expand(recipe(content), [0]), Path("work"), "cpu", keep=False)._jobs
    data = [
        (key, job)
        for key, job in jobs.items()
        if job.product is not None and job.product.parent.name == "data"
    ]
    after = {key.split("-")[1]: job.after for key, job in data}
    assert after["expert"] is None
    assert after["medium"].startswith("mpe_targets-expert")
    assert after["random"] is None


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "work").mkdir()
    with open(tmp_path / "work" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another offmarl bench is at work"):
            run_bench(recipe(CREDIT), tmp_path, Inline())


# -- processes ---------------------------------------------------------------------------------------------


def test_processes_do_the_work_and_one_that_dies_fails_only_its_own_job():
    engine = ProcessEngine(2)
    work = {
        "root": partial(math.sqrt, 9),
        "bug": partial(int, "x"),
        "message": partial(check_id, "NOT AN ID"),
        "exit": partial(os._exit, 3),
        "threads": partial(torch.get_num_threads),
    }
    ended: dict[str, Finished] = {}
    waiting = list(work.items())
    try:
        while len(ended) < len(work):
            while waiting and len(work) - len(waiting) - len(ended) < engine.slots:
                engine.submit(*waiting.pop(0))
            ended |= {finished.key: finished for finished in engine.wait()}
    finally:
        engine.close()
    assert ended["root"].value == 3
    assert ended["bug"].error.startswith("ValueError: invalid literal")
    assert "Traceback" in ended["bug"].traceback
    assert "NOT AN ID" in ended["message"].error
    assert ended["message"].traceback is None
    assert ended["exit"].error == "its process died with exit code 3"
    assert ended["threads"].value == 1


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_killed_bench_leaves_no_process_and_goes_on_to_the_same_numbers(tmp_path):
    plan = recipe(CREDIT, seeds=10)
    file, out, only = tmp_path / "tiny.yaml", tmp_path / "out", ["method=mean"]
    file.write_text(yaml.safe_dump({**CREDIT, "seeds": 10}))
    executable = Path(sys.executable).parent / "offmarl"
    command = [str(executable), "bench", str(file), "--out", str(out), "--jobs", "1", "--only", *only]
    environment = {**os.environ, "OFFMARL_HOME": str(tmp_path / "home"), "COLUMNS": "120"}
    deadline = time.monotonic() + 120
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while len(list(out.glob("cells/[!.]*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = children(process.pid)
        assert workers
        process.kill()
    kept = {path.name: path.read_bytes() for path in out.glob("cells/[!.]*.json")}
    assert 2 <= len(kept) < 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    table = tmp_path / "table.md"
    done = subprocess.run(
        [*command, "--table", str(table)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 cells are measured" in done.stdout
    assert "| scm_a | 500 | 0.00 | 10 |" in table.read_text()
    assert all((out / "cells" / name).read_bytes() == content for name, content in kept.items())
    whole = run_bench(plan, tmp_path / "whole", Inline(), only)
    for ours, theirs in zip(read_results(plan, out, only).results, whole.results, strict=True):
        assert ours.values["pearson"] == pytest.approx(theirs.values["pearson"], rel=1e-6)


def test_a_dry_run_says_what_is_there(credit, tmp_path):
    report, _ = credit
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(CREDIT))
    command = ["bench", str(file), "--out", str(report.folder), "--dry-run"]
    answer = json.loads(CliRunner().invoke(app, [*command, "--only", "method=mean", "--json"]).stdout)
    assert (answer["cells"], answer["done"], answer["failed"]) == (4, 4, [])
    assert answer["tables"][0]["columns"] == ["env", "steps", "mean", "seeds"]
    nothing = CliRunner().invoke(app, ["bench", str(file), "--out", str(tmp_path / "none"), "--dry-run"])
    assert "0 of 8 cells are measured" in nothing.stdout


# -- tables ------------------------------------------------------------------------------------------------


def cells(values: dict[tuple[str, str, str], list[float]], metric: str = "score") -> list[MeasuredCell]:
    return [
        MeasuredCell({"env": env, "sweep": sweep, "seed": seed}, {metric: numbers} if numbers else {})
        for (env, sweep, seed), numbers in values.items()
    ]


GRID = {
    ("b", "lo", "0"): [1.0, 3.0],
    ("a", "lo", "0"): [10.0],
    ("a", "hi", "0"): [20.0],
    ("b", "lo", "1"): [4.0, 4.0],
    ("a", "lo", "1"): [30.0],
    ("a", "hi", "1"): [],
}


def test_rows_follow_the_recipe_and_means_come_with_intervals_and_counts():
    spec = TableSpec(title="t", rows=["env", "sweep"], metrics=["score", "other"], digits=1)
    table = make_table(spec, cells(GRID))
    assert table.columns == ["env", "sweep", "score", "other", "seeds"]
    assert table.rows == [
        ["b", "lo", "3.0 [2.0, 4.0]", "-", "2"],
        ["a", "lo", "20.0 [10.0, 30.0]", "-", "2"],
        ["a", "hi", "20.0", "-", "1"],
    ]
    assert "each the mean of up to 2 on the same data" in table.note


def test_every_trained_seed_may_count_by_itself():
    spec = TableSpec(title="t", rows=["env"], metrics=["score"], over="seeds", where={"env": ["b"]}, digits=0)
    ((_, text, count),) = make_table(spec, cells(GRID)).rows
    assert text.startswith("3 [")
    assert count == "4"


def test_an_axis_across_gives_a_column_to_each_of_its_values():
    spec = TableSpec(title="t", rows=["env"], across="sweep", metrics=["score"], digits=0)
    table = make_table(spec, cells(GRID))
    assert table.columns == ["env", "lo", "hi", "seeds"]
    assert table.rows == [["b", "3 [2, 4]", "-", "2"], ["a", "20 [10, 30]", "20", "1–2"]]
    assert "| b | 3 [2, 4] | - | 2 |" in table.markdown()
    planned = make_table(spec, cells({**GRID, ("b", "hi", "0"): [], ("c", "lo", "0"): []}))
    assert [(row[0], row[-1]) for row in planned.rows] == [("b", "0–2"), ("a", "1–2")]


@pytest.mark.parametrize(("largest", "chosen"), [(True, "hi"), (False, "lo")])
def test_the_best_of_a_sweep_is_shown_with_its_name(largest, chosen):
    grid = {**GRID, ("a", "hi", "1"): [28.0]}
    best = {"over": ["sweep"], "metric": "score", "largest": largest}
    spec = TableSpec(title="t", rows=["env"], metrics=["score"], best=best, digits=0)
    rows = make_table(spec, cells(grid)).rows
    assert rows[1] == ["a", "24 [20, 28]" if largest else "20 [10, 30]", chosen, "2"]


def test_the_time_left_is_reckoned_from_the_cells_that_are_most_alike(credit, tmp_path):
    report, _ = credit
    unknown = read_results(report.recipe, tmp_path)
    assert unknown.seconds_left(1) is None
    assert unknown.count(OPEN) == 8
    partial_results = tuple(
        done if done.cell.coordinates["seed"] == "0" else still_open
        for done, still_open in zip(report.results, unknown.results, strict=True)
    )
    half = type(report)(report.recipe, tmp_path, partial_results)
    expected = sum(result.seconds for result in partial_results if result.seconds is not None)
    assert half.seconds_left(2) == pytest.approx(expected / 2)
    assert report.seconds_left(1) == 0


def test_stages_know_what_is_not_there():
    settings = CellSettings.model_validate({"dataset": "no/where-v0", "decompose": {}}).with_seed(0)
    with pytest.raises(UsageError, match="unknown dataset"):
        stages.measure("no/where-v0", settings, None, Path("scratch"), "cpu")
