"""What a bench measures, keeps and tries again, and what it says of that."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_recipes import CREDIT, HASTY, POLICIES, Inline, changed, recipe

from offmarl.atomic import only_one
from offmarl.credit.relabel import decompose
from offmarl.errors import UsageError
from offmarl.recipes import bench, stages
from offmarl.recipes.bench import DONE, FAILED, OPEN, BenchReport, CellResult, read_results, run_bench
from offmarl.recipes.engine import Finished
from offmarl.recipes.jobs import Schedule
from offmarl.recipes.recipe import CellSettings, expand


@pytest.fixture(scope="module")
def credit(tmp_path_factory):
    """The whole of CREDIT, measured in this process."""
    folder = tmp_path_factory.mktemp("credit")
    engine = Inline()
    return run_bench(recipe(CREDIT), folder, engine), engine


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
    page = report.markdown("offmarl bench recipe.yaml --dry-run --table page.md")
    assert "## Failed cells" in page
    assert "`offmarl bench recipe.yaml --table page.md`" in page
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


@pytest.mark.parametrize("lost", [float("-inf"), {1, 2}])
def test_a_result_that_cannot_be_written_is_a_failed_cell(tmp_path, monkeypatch, lost):
    measure = stages.measure

    def sometimes(source, settings, *rest):
        if settings.decompose.method == "mean":
            return stages.Measurement({"skill": [1.0]}, {"lost": lost})
        return measure(source, settings, *rest)

    monkeypatch.setattr(stages, "measure", sometimes)
    plan = recipe(CREDIT, seeds=1)
    report = run_bench(plan, tmp_path, Inline(), ["env=scm_a"])
    assert [(r.cell.coordinates["method"], r.status) for r in report.results] == [
        ("mean", FAILED),
        ("macca", DONE),
    ]
    assert "its result cannot be written" in report.failures[0].error
    assert read_results(plan, tmp_path, ["env=scm_a"]).failures[0].error == report.failures[0].error


def test_a_cell_goes_on_where_the_disk_refuses_one_file(tmp_path, monkeypatch):
    write = bench.write_json

    def refusing(path, value):
        if "-mean-" in path.name:
            raise OSError(28, "No space left on device", str(path))
        write(path, value)

    monkeypatch.setattr(bench, "write_json", refusing)
    plan = recipe(CREDIT, seeds=1)
    report = run_bench(plan, tmp_path, Inline(), ["env=scm_a"])
    assert [result.status for result in report.results] == [FAILED, DONE]
    assert [result.status for result in read_results(plan, tmp_path, ["env=scm_a"]).results] == [OPEN, DONE]


def test_values_that_are_not_finite_are_not_measured(tmp_path, monkeypatch):
    def decomposed(*arguments, **settings):
        report = decompose(*arguments, **settings)
        return replace(report, credit=replace(report.credit, metrics={"fit_r2": float("-inf"), "odd": 1.0}))

    monkeypatch.setattr(stages, "decompose", decomposed)
    plan = recipe(CREDIT, seeds=1)
    (result,) = run_bench(plan, tmp_path, Inline(), ["env=scm_a", "method=mean"]).results
    assert result.status == DONE
    assert "fit_r2" not in result.values
    assert result.values["odd"] == [1.0]


@pytest.mark.parametrize("values", [None, [None], {"skill": None}, {"skill": [None]}, {"skill": []}])
def test_a_file_without_numbers_is_no_measurement(credit, tmp_path, values):
    report, _ = credit
    first = report.results[0]
    file = tmp_path / "cells" / f"{first.cell.name}.json"
    file.parent.mkdir()
    stored = json.loads((report.folder / "cells" / file.name).read_text())
    file.write_text(json.dumps(stored | {"values": values}))
    damaged = read_results(report.recipe, tmp_path)
    assert damaged.count(OPEN) == 8
    assert (damaged.table().rows, damaged.skill_rows(), damaged.seconds_left(1)) == ([], [], None)
    file.write_text(json.dumps(stored))
    whole = read_results(report.recipe, tmp_path).results[0]
    assert (whole.status, whole.values) == (DONE, stored["values"])


def test_overwrite_makes_the_credit_and_the_policies_of_its_cells_anew(tmp_path):
    plan, only = recipe(POLICIES), ["rewards=macca", "sweep=weak"]
    run_bench(plan, tmp_path, Inline(), only, keep=True)
    (made,) = (tmp_path / "work" / "credit").iterdir()
    (data,) = (tmp_path / "work" / "data").iterdir()
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (made / "credit.h5", data)}
    elsewhere = [tmp_path / "work" / kind / "of-another-cell" for kind in ("credit", "policies")]
    for folder in elsewhere:
        folder.mkdir(parents=True)
    run_bench(plan, tmp_path, Inline(), only, keep=True, overwrite=True)
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}
    assert after[made / "credit.h5"] != before[made / "credit.h5"]
    assert after[data] == before[data]
    assert all(folder.exists() for folder in elsewhere)


def test_players_of_two_decompositions_are_two(tmp_path):
    block = POLICIES["blocks"]["td3bc"]
    games = {
        "collect": block["collect"],
        "train": {**block["train"], "rewards": "macca"},
        "play": {"against": "random"},
        "grid": {"decompose.settings.refit_steps": [20, 30]},
    }
    plan = recipe(
        POLICIES, blocks={"games": games}, tables=[{"title": "t", "rows": ["env"], "metrics": ["points"]}]
    )
    schedule = Schedule(expand(plan, [0]), tmp_path, "cpu", keep=False)
    made = [job.product for job in schedule._jobs.values() if job.product is not None]
    kinds = [product.parent.name for product in made]
    assert (kinds.count("data"), kinds.count("credit"), kinds.count("policies")) == (1, 2, 2)
    for product in made:
        product.mkdir(parents=True)
    schedule.forget()
    assert [product for product in made if product.exists()] == [made[kinds.index("data")]]


def test_skills_of_other_data_and_other_settings_are_not_pooled():
    collect = {"env": "scm_a", "quality": "random", "steps": 500, "options": {"structure_seed": "$seed"}}
    grid = {
        "collect.steps": [500, 1000],
        "collect.options.agents": [8, 16],
        "sweep": {"plain": {}, "inexact": {"decompose.settings.exact_sum": False}},
    }
    usual = {"collect": collect, "decompose": {"method": "macca"}}
    blocks = {"usual": usual, "many": {**usual, "grid": grid}}
    plan = recipe(CREDIT, blocks=blocks, tables=[{"title": "t", "rows": ["env"], "metrics": ["skill"]}])
    results = tuple(CellResult(cell, DONE, {"skill": [1.0]}, 1.0) for cell in expand(plan, [0, 1]))
    rows = BenchReport(plan, Path("none"), results).skill_rows()
    assert {row["case"] for row in rows} == {"scm_a", "scm_a, agents 8", "scm_a, agents 16"}
    assert {row["method"] for row in rows} == {"macca", "macca, exact_sum False"}
    places = Counter((row["case"], row["method"], row["transitions"], row["seed"]) for row in rows)
    assert set(places.values()) == {1}


def test_datasets_of_one_behaviour_wait_for_the_first_to_train_it():
    content = changed(POLICIES, "blocks/td3bc/grid/collect.quality", ["expert", "medium", "random"])
    jobs = Schedule(expand(recipe(content), [0]), Path("work"), "cpu", keep=False)._jobs
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
    pytest.importorskip("fcntl")
    held, refused = only_one(tmp_path / "work", ""), "another offmarl bench is at work"
    with held, pytest.raises(UsageError, match=refused):
        run_bench(recipe(CREDIT), tmp_path, Inline())


def test_a_dry_run_says_what_is_there(credit, tmp_path, offmarl, succeed):
    report, _ = credit
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(CREDIT))
    answer = succeed(f"bench {file} --out {report.folder} --dry-run --only method=mean")
    assert (answer["cells"], answer["done"], answer["failed"]) == (4, 4, [])
    assert answer["tables"][0]["columns"] == ["env", "steps", "mean", "seeds"]
    nothing = offmarl(f"bench {file} --out {tmp_path / 'none'} --dry-run")
    assert "0 of 8 cells are measured" in nothing.stdout


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


def test_on_a_machine_that_is_slow_at_present_more_time_is_left(credit):
    report, _ = credit
    results = [replace(result, seconds=1.0) for result in report.results]  # not as timed: a test's cells vary
    results[-1] = CellResult(results[-1].cell, OPEN)
    results[0] = replace(results[0], seconds=3.0)
    slow = BenchReport(report.recipe, report.folder, tuple(results))
    alike = [
        result.seconds
        for result in results
        if result.seconds and result.cell.alike() == results[0].cell.alike()
    ]
    pace = 3.0 / (sum(alike) / len(alike))
    assert pace > 1
    lately = [results[0].cell.name, results[-1].cell.name]
    assert slow.seconds_left(1, lately=lately) == pytest.approx(pace * slow.seconds_left(1))


class Clockwork:
    """An engine for whose jobs nothing is done: data takes ten seconds, a cell one."""

    slots = 1

    def submit(self, key, work):
        self.key = key

    def wait(self):
        return [Finished(self.key, 1.0 if "-mean-" in self.key or "-macca-" in self.key else 10.0)]


def test_the_time_left_knows_of_what_cells_share(tmp_path):
    schedule = Schedule(expand(recipe(CREDIT), [0, 1]), tmp_path, "cpu", keep=False)
    assert schedule.seconds_left_to_prepare() == 0  # nothing is known yet
    seen = [(job.cell is None, schedule.seconds_left_to_prepare()) for job, _ in schedule.run(Clockwork())]
    assert len(seen) == 8 + 4
    assert [left for makes_data, left in seen if makes_data] == [30, 20, 10, 0]


def test_stages_know_what_is_not_there():
    settings = CellSettings.model_validate({"dataset": "no/where-v0", "decompose": {}}).with_seed(0)
    with pytest.raises(UsageError, match="unknown dataset"):
        stages.measure("no/where-v0", settings, None, Path("scratch"), "cpu")
