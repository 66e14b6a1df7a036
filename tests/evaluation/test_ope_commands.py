"""`offmarl evaluate --offline` and `offmarl select` as a person types them."""

import json

import pytest

from offmarl.envs import registry

SPREAD, CHOICES = "mpe_spread/random-v0", "mpe_spread/choices-v0"
COLLECT = "collect --env mpe_spread --quality random --steps 500 --num-envs 10"
FAST = "--steps 10 " + " ".join(
    f"--set train.{setting}"
    for setting in ("log_every=5", "checkpoint_every=5", "batch_size=10", "tensorboard=false")
)
OPE = "--set ope.steps=15 --set ope.batch_size=32 --set ope.clone_steps=5"


@pytest.fixture(scope="module")
def runs(succeed) -> dict[str, str]:
    """Ids of runs on continuous data, and on choices of known probability: one with a memory, one without."""
    succeed(f"{COLLECT} --name {SPREAD}")
    succeed(f"{COLLECT} --set env.actions=discrete --name {CHOICES}")
    made = {
        "bc": (SPREAD, "--learner bc --seeds 2"),
        "td3bc": (SPREAD, "--learner td3bc"),
        "greedier": (SPREAD, "--learner td3bc --set learner.bc_weight=0.1"),
        "recurrent": (CHOICES, "--learner cql --set learner.trunk=gru"),
        "reactive": (CHOICES, "--learner icq --set learner.trunk=mlp"),
    }
    return {
        name: succeed(f"train --dataset {dataset} --rewards team {asked} {FAST}")["run"]
        for name, (dataset, asked) in made.items()
    }


@pytest.fixture
def _no_environment(runs, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an environment was made")

    for module in ("offmarl.envs.registry", "offmarl.evaluation.rollout"):
        monkeypatch.setattr(f"{module}.make", refuse)
    with pytest.raises(AssertionError, match="an environment"):
        registry.make("mpe_spread", 1)


@pytest.mark.usefixtures("_no_environment")
def test_runs_are_judged_without_an_environment(runs, offmarl, succeed, home):
    answer = succeed(f"evaluate --offline --dataset {SPREAD} {OPE}")
    assert {run["run"] for run in answer["runs"]} == {runs[name] for name in ("bc", "td3bc", "greedier")}
    for run in answer["runs"]:
        assert list(run["estimates"]) == ["fqe", "fqe_agents", "behaviour"]
        stored = json.loads((home / "runs" / run["run"] / "offline_evaluation.json").read_text())
        assert stored["estimates"] == run["estimates"]
        for estimate in run["estimates"].values():
            assert len(estimate["per_seed"]) == len(run["seeds"])
            assert estimate["low"] < estimate["value"] < estimate["high"]
    card = json.loads((home / "datasets" / SPREAD / "dataset.json").read_text())
    behaviour = answer["runs"][0]["estimates"]["behaviour"]["value"]
    assert behaviour == pytest.approx(card["statistics"]["return"]["mean"], rel=1e-5)
    code, out, error = offmarl(f"evaluate --offline --run {runs['bc']} --estimator behaviour,fqe {OPE}")
    assert code == 0, error
    assert "no environment touched" in out
    assert "what the fit got wrong is not in it" in out


def test_what_is_estimated_is_said_to_be_discounted_where_it_is(runs, offmarl):
    command = f"evaluate --offline --run {runs['bc']} --estimator behaviour {OPE}"
    assert "summed team reward, from" in offmarl(command).stdout
    assert (
        "summed with a discount of 0.5 a step, which returns of play are without, from"
        in offmarl(f"{command} --set ope.gamma=0.5").stdout
    )


@pytest.mark.usefixtures("_no_environment")
def test_choices_are_weighed_by_the_probabilities_that_the_data_recorded(runs, succeed):
    chosen = f"--run {runs['recurrent']} --run {runs['reactive']} --set ope.smoothing=1"
    for run in succeed(f"evaluate --offline --estimator wis,behaviour {chosen}")["runs"]:
        # Smoothed to the uniform policy that collected the data, every policy is it: all weights are one.
        assert run["estimates"]["wis"]["value"] == pytest.approx(run["estimates"]["behaviour"]["value"])
        assert run["estimates"]["wis"]["details"]["effective_episodes"] == pytest.approx(run["episodes"])
    cloned = succeed(f"evaluate --offline --estimator wis_cloned --run {runs['recurrent']} {OPE}")
    assert cloned["runs"][0]["estimates"]["wis_cloned"]["value"] is not None


def test_runs_are_ranked_and_checked_where_they_were_played(runs, succeed, offmarl, tmp_path):
    answer = succeed(f"select --dataset {SPREAD} {OPE}")
    (ranked,) = answer["ranking"].values()
    assert [one["estimates"]["fqe"] for one in ranked] == sorted(
        (one["estimates"]["fqe"] for one in ranked), reverse=True
    )
    assert answer["accuracy"] == []
    code, _, error = offmarl(f"select --dataset {SPREAD} {OPE} --figure {tmp_path}/a.png")
    assert code == 2
    assert "offmarl evaluate plays runs" in error
    succeed(f"evaluate --dataset {SPREAD} --episodes 20")
    checked = succeed(f"select --dataset {SPREAD} {OPE}")
    assert checked["ranking"].keys() == answer["ranking"].keys()
    accuracy = {one["estimator"]: one for one in checked["accuracy"]}
    assert set(accuracy) == {"fqe", "fqe_agents", "behaviour"}
    assert accuracy["behaviour"]["spearman"] is None
    assert all(0 <= one["regret"] <= 1 for one in accuracy.values())
    page = tmp_path / "page.md"
    code, out, error = offmarl(f"select --dataset {SPREAD} {OPE} --figure {tmp_path}/a.svg --markdown {page}")
    assert code == 0, error
    assert "by fqe take " in out
    assert "![Estimated against true returns](a.svg)" in page.read_text()
    assert (tmp_path / "a.svg").stat().st_size > 1_000


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate --offline --run {bc} --estimator wis", "actions of mpe_spread are continuous"),
        ("evaluate --offline --run {bc} --episodes 5", "--episodes are played, and --offline plays nothing"),
        ("evaluate --offline --run {bc} --estimator fqa", "unknown estimator 'fqa': did you mean"),
        ("evaluate --run {bc} --estimator fqe", "--estimator is for --offline"),
        ("evaluate --offline --run {bc} --set env.agents=2", "unknown section of --set 'env'"),
        (
            "evaluate --offline --run {bc} --set ope.stepz=2",
            "unknown setting of ope 'stepz': did you mean steps",
        ),
        ("select {bc} {reactive}", "were trained on different datasets"),
        ("select {bc} --only learner=bc", "--only chooses cells of a benchmark"),
    ],
)
def test_wrong_use_is_told_in_a_line(runs, offmarl, command, message):
    code, _, error = offmarl(command.format(**runs))
    assert code == 2
    assert message in error


def test_data_that_are_gone_or_changed_are_named(succeed, offmarl, home):
    succeed(f"{COLLECT} --seed 1 --name gone/a-v0")
    run = succeed(f"train --dataset gone/a-v0 --learner bc --rewards team {FAST}")["run"]
    folder = home / "datasets" / "gone"
    folder.rename(home / "elsewhere")
    code, _, error = offmarl(f"evaluate --offline --run {run}")
    assert code == 1
    assert "are not in" in error
    succeed(f"{COLLECT} --seed 2 --name gone/a-v0")
    code, _, error = offmarl(f"evaluate --offline --run {run}")
    assert code == 1
    assert "data have changed since" in error


def test_the_cells_of_a_benchmark_are_ranked_by_the_estimates_in_them(offmarl, succeed, tmp_path):
    (tmp_path / "cells").mkdir()
    for place, (true, estimated) in enumerate([(1.0, 5.0), (3.0, 4.0), (2.0, 6.0)]):
        cell = {
            "recipe": "toy",
            "cell": f"block-bc-{place}-s0-abcdef{place}",
            "coordinates": {"seed": "0", "learner": "bc"},
            "values": {"return": [true], "ope_fqe": [estimated], "ope_coverage": [1.0]},
            "error": None,
            "settings": {
                "collect": {"env": "mpe_spread", "seed": 0},
                "train": {"learner": "bc", "loop": {"steps": place + 1}, "seed": 0},
                "evaluate": {"ope": {"estimators": ["fqe"]}, "seed": 0},
            },
        }
        (tmp_path / "cells" / f"{place}.json").write_text(json.dumps(cell))
    answer = succeed(f"select {tmp_path}")
    (ranked,) = answer["ranking"].values()
    assert [one["name"] for one in ranked] == ["block-bc-2-s0", "block-bc-0-s0", "block-bc-1-s0"]
    (accuracy,) = answer["accuracy"]
    assert accuracy["spearman"] == pytest.approx(-0.5)
    assert accuracy["regret"] == pytest.approx(0.5)
    code, _, error = offmarl(f"select {tmp_path} --estimator wis")
    assert code == 2
    assert "unknown estimator of this benchmark 'wis'" in error
