"""`offmarl report` as a person types it."""

import csv
import json

import pytest

DATASET = "mpe_spread/random-v0"
COLLECT = "collect --env mpe_spread --quality random --steps 500 --num-envs 10 --name " + DATASET
FAST = "--steps 10 " + " ".join(
    f"--set train.{setting}"
    for setting in ("log_every=5", "checkpoint_every=5", "batch_size=16", "tensorboard=false")
)


@pytest.fixture(scope="module")
def runs(succeed) -> dict[str, str]:
    """Ids of three runs on one dataset, two of them evaluated."""
    succeed(COLLECT)
    ids = {
        learner: succeed(f"train --learner {learner} --rewards team --seeds 2 --evaluate-every 5 {FAST}")[
            "run"
        ]
        for learner in ("bc", "td3bc")
    }
    succeed(f"evaluate --dataset {DATASET} --episodes 3")
    ids["late"] = succeed(f"train --learner td3bc --rewards true --seeds 2 {FAST}")["run"]
    return ids


def test_the_latest_datasets_runs_are_reported(runs, offmarl, succeed):
    code, out, error = offmarl("report")
    assert code == 0, error
    assert f"dataset: {DATASET} (the latest run's" in error
    assert "warning: fewer than 5 seeds: the interval of 2 seeds is too narrow" in out
    assert "scores are those of the last checkpoint, never of the best evaluation" in out
    assert f"left out: {runs['late']}: offmarl evaluate --dataset {DATASET}" in out
    answer = succeed("report")
    assert answer["headline"] in out
    assert {result["method"] for result in answer["results"]} == {"bc", "td3bc on team"}
    (lines,) = answer["tasks"].values()
    assert [(line["seeds"], line["episodes"]) for line in lines] == [(2, 3), (2, 3)]


def test_scores_along_training_become_the_curves(runs, home, succeed):
    answer = succeed("report")
    assert {(curve["method"], curve["metric"]) for curve in answer["curves"]} == {
        (method, metric) for method in ("bc", "td3bc on team") for metric in ("return", "score")
    }
    assert all(curve["steps"] == [5, 10] for curve in answer["curves"])
    lines = (home / "runs" / runs["bc"] / "metrics.jsonl").read_text().splitlines()
    reading = json.loads(lines[-1])
    references = json.loads((home / "runs" / runs["bc"] / "run.json").read_text())["dataset"]["references"]
    for value, score in zip(reading["return"]["seeds"], reading["score"]["seeds"], strict=True):
        share = (value - references["random"]) / (references["expert"] - references["random"])
        assert score == pytest.approx(100 * share)


def test_everything_is_written(runs, tmp_path, offmarl):
    code, _, error = offmarl(
        f"report {runs['bc']} {runs['td3bc']} --markdown {tmp_path}/a.md --latex {tmp_path}/a.tex "
        f"--csv {tmp_path}/a.csv --marl-eval {tmp_path}/a.json --figures {tmp_path}/figures --format svg"
    )
    assert code == 0, error
    assert {path.name for path in tmp_path.iterdir()} == {"a.md", "a.tex", "a.csv", "a.json", "figures"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "intervals.svg",
        "profile.svg",
        "improvement.svg",
        "curves.svg",
    }
    assert (tmp_path / "a.md").read_text().startswith(f"# {DATASET}\n\n")
    assert r"\begin{tabular}" in (tmp_path / "a.tex").read_text()
    assert len(list(csv.reader((tmp_path / "a.csv").open()))) == 3
    marl_eval = json.loads((tmp_path / "a.json").read_text())["mpe_spread"]["random-v0"]
    assert list(marl_eval["bc"]["run_2"]) == ["step_1", "step_2", "absolute_metrics"]


def test_a_run_that_was_never_evaluated_says_what_to_do(runs, offmarl):
    code, _, error = offmarl(f"report {runs['late']}")
    assert code == 2
    assert f"run {runs['late']} was never evaluated: offmarl evaluate --run {runs['late']}" in error


def test_scores_of_an_earlier_checkpoint_are_refused(runs, home, offmarl):
    path = home / "runs" / runs["bc"] / "evaluation.json"
    text = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(text) | {"steps": 5}))
        code, _, error = offmarl(f"report {runs['bc']}")
        path.write_text("{}")
        damaged = offmarl(f"report {runs['bc']}")
    finally:
        path.write_text(text)
    assert code == 2
    assert (
        f"run {runs['bc']} is at step 10, its scores are of step 5: offmarl evaluate --run {runs['bc']}"
        in error
    )
    assert damaged.returncode == 1
    assert "evaluation.json: field 'dataset': Field required; write it anew" in damaged.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{folder}", "is neither a run (no run.json) nor a benchmark (no cells/)"),
        ("nothing/here", "unknown run 'nothing/here'"),
        ("--only learner=bc", "--only chooses cells of a benchmark"),
        ("--metric skill", "--metric skill: not measured; known: return, score"),
        ("--figures x --format bmp", "--format bmp: expected png, pdf, svg"),
        ("{bc} --dataset x/y-v0", "runs and --dataset: give one of the two"),
    ],
)
def test_wrong_use_is_explained(runs, tmp_path, offmarl, arguments, message):
    code, _, error = offmarl("report " + arguments.format(folder=tmp_path, bc=runs["bc"]))
    assert code == 2
    assert message in error


def test_playing_while_training_changes_nothing_of_it(runs, home, succeed):
    silent = succeed(f"train --learner td3bc --rewards team --seeds 2 {FAST} --out {home}/silent")
    played = home / "runs" / runs["td3bc"] / "checkpoint.safetensors"
    assert silent["metrics"].keys() == {
        "critic_loss",
        "q_mean",
        "critic_gradient",
        "policy_loss",
        "policy_gradient",
        "saturation",
    }
    from safetensors.torch import load_file

    first, second = load_file(played), load_file(home / "silent" / "checkpoint.safetensors")
    assert first.keys() == second.keys()
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_evaluating_at_steps_without_metrics_is_refused(runs, offmarl):
    code, _, error = offmarl(f"train --learner bc --rewards team --evaluate-every 7 {FAST}")
    assert code == 2
    assert "evaluating every 7 updates: that is no multiple of train.log_every=5" in error
