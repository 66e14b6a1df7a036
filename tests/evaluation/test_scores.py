"""What evaluations of runs say of their rewards, their seeds and the team that was logged."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from offmarl.console import Terminal
from offmarl.credit.relabel import decompose
from offmarl.data.store import Dataset
from offmarl.errors import UsageError
from offmarl.evaluation.scores import (
    Evaluation,
    EvaluationReport,
    evaluate_run,
    evaluate_runs,
    runs_to_evaluate,
)
from offmarl.evaluation.statistics import bootstrap_interval
from offmarl.report.figures import draw_scores
from offmarl.reporter import Silent
from offmarl.training.offline import TrainRequest, train_offline

FAST = {"steps": 2, "batch_size": 32, "tensorboard": False}
LOGGED = "the logged team itself"


@pytest.fixture
def dataset(random_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path))
    with Dataset.open(random_dataset("scm_a", 400, 20, agents=2)) as opened:
        yield opened


def credit(dataset, folder, seed):
    return decompose(dataset, "additive", {"steps": 5}, seed, out=folder, overwrite=True)


def test_agreement_is_that_of_the_rewards_trained_on(dataset, tmp_path):
    report = credit(dataset, tmp_path / "credit", 0)
    request = TrainRequest("bc", str(report.path), train_settings=FAST, out=tmp_path / "run")
    run = train_offline(dataset, request)

    def agreement():
        return evaluate_run(run, 2, 0, {}, "cpu", Silent()).agreement

    assert agreement() == report.truth
    credit(dataset, tmp_path / "credit", 0)
    assert agreement() == report.truth, "made anew, the same rewards"
    credit(dataset, tmp_path / "credit", 1)
    assert agreement() is None
    run.update(status="running")
    request.resume = True
    with pytest.raises(UsageError, match=r"--resume: rewards .*additive.h5 have changed since run"):
        train_offline(dataset, request)
    credit(dataset, tmp_path / "credit", 0)
    assert train_offline(dataset, request).status == "complete"


def test_a_run_that_is_not_complete_is_told_to_be_so(dataset, tmp_path, capsys):
    run = train_offline(dataset, TrainRequest("bc", "mean", train_settings=FAST, out=tmp_path / "run"))
    evaluate_run(run, 2, 0, {}, "cpu", Terminal())
    assert "not complete" not in capsys.readouterr().err
    run.update(status="failed")
    evaluate_run(run, 2, 0, {}, "cpu", Terminal())
    assert f"run {run.id} is not complete (failed): judged is its checkpoint of step 2" in (
        capsys.readouterr().err
    )


def test_two_runs_of_one_name_do_not_share_a_file(dataset, tmp_path):
    folders = [tmp_path / where / "same" for where in ("here", "there")]
    for folder in folders:
        train_offline(dataset, TrainRequest("bc", "mean", train_settings=FAST, out=folder))
    runs = runs_to_evaluate([str(folder) for folder in [*folders, folders[0]]], None)
    assert [run.folder for run in runs] == folders, "who is named twice is one"
    with pytest.raises(UsageError, match=r"would both be .*json: without --out"):
        evaluate_runs(runs, 2, 0, {}, tmp_path / "scores", "cpu", Silent())
    assert not (tmp_path / "scores").exists()
    evaluate_runs(runs, 2, 0, {}, None, "cpu", Silent())
    assert all((folder / "evaluation.json").exists() for folder in folders)


def test_rewards_of_the_dataset_itself_need_no_digest(dataset, tmp_path):
    run = train_offline(dataset, TrainRequest("bc", "mean", train_settings=FAST, out=tmp_path / "run"))
    assert run.record["rewards_sha256"] is None
    assert evaluate_run(run, 2, 0, {}, "cpu", Silent()).agreement["skill"] == pytest.approx(0, abs=1e-6)


def evaluation(run, dataset="a/expert-v0", seeds=3, behaviour=99.0, normalised=1.0):
    """A run's scores by hand."""
    interval = bootstrap_interval(np.arange(float(max(seeds, 3))), "seeds" if seeds > 1 else "episodes")
    return Evaluation(
        run=run,
        dataset=dataset,
        env=dataset.split("/")[0],
        learner="td3bc",
        rewards=run,
        steps=10,
        episodes=10,
        seeds=tuple(range(seeds)),
        per_seed=(1.0,) * seeds,
        agent_return=None,
        team_return=1.0,
        interval=interval,
        normalised=normalised,
        normalised_interval=(0.0, 2.0),
        agreement=None,
        behaviour_return=behaviour,
        behaviour_normalised=behaviour,
        references=None,
    )


def test_notes_are_of_all_runs_in_whatever_order():
    runs = [evaluation("a"), evaluation("b", seeds=1), evaluation("c", "b/x-v0", normalised=None)]
    for order in (runs, runs[::-1]):
        notes = EvaluationReport(tuple(order)).notes()
        assert any(note.startswith("one seed: the interval is over its episodes") for note in notes)
        assert any("no reference returns are known for b with" in note for note in notes)
    assert len(EvaluationReport((evaluation("d", seeds=10),)).notes()) == 1
    (_, few) = EvaluationReport((runs[0],)).notes()
    assert few.startswith("an interval over so few seeds is too sure")


def test_rows_name_their_dataset_where_there_are_several():
    runs = (evaluation("a"), evaluation("b", "b/x-v0"))
    for report in (EvaluationReport(runs), EvaluationReport(runs[:1])):
        assert {len(row) for row in report.rows()} == {len(report.columns())}
    assert [row[:2] for row in EvaluationReport(runs).rows()] == [
        ["a/expert-v0", "(behaviour)"],
        ["a/expert-v0", "td3bc"],
        ["b/x-v0", "(behaviour)"],
        ["b/x-v0", "td3bc"],
    ]
    assert EvaluationReport(runs[:1]).columns()[0] == "learner"


def test_the_logged_team_is_a_line_only_where_all_runs_share_it(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(Axes, "axhline", lambda self, y=0, **about: lines.append((y, about.get("label"))))
    draw_scores(EvaluationReport((evaluation("team"), evaluation("macca"))), tmp_path / "one.svg")
    assert (99.0, LOGGED) in lines
    lines.clear()
    other = evaluation("macca", "a/random-v0", behaviour=0.0)
    draw_scores(EvaluationReport((evaluation("team"), other)), tmp_path / "two.svg")
    assert [label for _, label in lines] == [None]
