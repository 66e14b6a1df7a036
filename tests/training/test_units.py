"""Learners that render, as commands: trained on states, continued, evaluated, put to collecting."""

import json

import pytest
import torch

from offmarl.data.catalog import find_dataset
from offmarl.training.checkpoint import Checkpoint
from offmarl.training.run import RunFolder, load_policy

pytest.importorskip("magent2")

DATASET = "magent_battle/random-v0"
FAST = (
    "--set train.tensorboard=false --set train.batch_size=16 --set train.log_every=2 "
    "--set train.checkpoint_every=4 --set learner.hidden=[16]"
)


@pytest.fixture(scope="module")
def dataset(succeed) -> str:
    """Battles of 9 against 9 in which both sides are agents."""
    options = "--set env.agents=9 --set env.horizon=20 --set env.background=none"
    succeed(
        f"collect --env magent_battle --quality random --steps 160 --num-envs 4 --name {DATASET} {options}"
    )
    return DATASET


def tensors(folder) -> dict[str, torch.Tensor]:
    return Checkpoint.load(folder / "checkpoint.safetensors").learner


@pytest.mark.parametrize("rewards", ["true", "team", "mean"])
def test_every_kind_of_rewards_teaches(dataset, succeed, home, tmp_path, rewards):
    told = succeed(
        f"train --dataset {dataset} --learner mfq --rewards {rewards} --steps 4 {FAST} --out {tmp_path}/r"
    )
    run = RunFolder.open(tmp_path / "r")
    assert run.status == "complete"
    assert told["run"] == run.id
    assert {"td_error", "conservative_gap", "q_mean"} <= set(run.summary)


def test_rewards_differ_in_nothing_but_what_they_say(dataset, succeed, tmp_path):
    """The team's reward and its mean are one in the learner's unit."""
    for rewards in ("team", "mean"):
        succeed(
            f"train --dataset {dataset} --learner idqn --rewards {rewards} --steps 4 {FAST} --out {tmp_path}/{rewards}"
        )
    team, mean = tensors(tmp_path / "team"), tensors(tmp_path / "mean")
    scale = "normaliser.small.reward_scale"
    torch.testing.assert_close(team[scale] * 9, mean[scale], msg="a side is nine agents")
    torch.testing.assert_close(
        team["critic.small.head.weight"], mean["critic.small.head.weight"], atol=1e-5, rtol=1e-4
    )


def test_a_killed_run_goes_on_to_the_same_numbers(dataset, succeed, tmp_path):
    command = f"train --dataset {dataset} --learner cmfq --rewards true --seeds 2 {FAST}"
    succeed(f"{command} --steps 8 --out {tmp_path}/through")
    succeed(f"{command} --steps 8 --out {tmp_path}/cut")
    run = RunFolder.open(tmp_path / "cut")
    succeed(f"{command} --steps 4 --out {tmp_path}/half")
    (run.folder / "checkpoint.safetensors").write_bytes(
        (tmp_path / "half" / "checkpoint.safetensors").read_bytes()
    )
    run.update(status="running")
    succeed(f"{command} --steps 8 --out {tmp_path}/cut --resume")
    through, cut = tensors(tmp_path / "through"), tensors(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in through.items())
    assert through["critic.small.head.weight"].shape[0] == 2, "seeds are stacked"
    alone = f"train --dataset {dataset} --learner cmfq --rewards true --seeds 1 {FAST} --steps 8 --out {tmp_path}/alone"
    succeed(alone)
    torch.testing.assert_close(
        tensors(tmp_path / "alone")["critic.small.head.weight"],
        through["critic.small.head.weight"][:1],
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.fixture(scope="module")
def run(dataset, succeed) -> str:
    return succeed(f"train --dataset {dataset} --learner bc --rewards team --seeds 2 --steps 4 {FAST}")["run"]


def test_it_is_evaluated_on_its_map_on_one_side_and_with_more_agents(run, succeed):
    both = succeed(f"evaluate --run {run} --episodes 2")
    assert len(both["runs"][0]["per_seed"]) == 2
    other = "--set env.background=red --set env.agents=16 --set env.map_size=24"
    side = succeed(f"evaluate --run {run} --episodes 2 {other}")
    assert len(side["runs"][0]["agent_return"]) == 16


def test_it_is_watched_and_played_while_it_learns(run, dataset, succeed, tmp_path):
    assert succeed(f"watch {run} --out {tmp_path}/game.gif")["source"] == run
    assert (tmp_path / "game.gif").stat().st_size > 1_000
    command = f"train --dataset {dataset} --learner idqn --rewards true --steps 2 --evaluate-every 2 {FAST}"
    told = succeed(f"{command} --out {tmp_path}/r")
    assert {"return", "win_rate"} <= set(RunFolder.open(tmp_path / "r").summary), told


def test_a_run_collects_on_another_map(run, succeed, home, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(home))
    options = "--set env.agents=12 --set env.horizon=10 --set env.background=blue"
    succeed(
        f"collect --env magent_battle --policy {run} --steps 20 --num-envs 2 --name magent_battle/cloned-v0 {options}"
    )
    with find_dataset("magent_battle/cloned-v0") as made:
        assert made.spec.n_agents == 12


def test_what_does_not_fit_is_one_line(run, dataset, offmarl, home):
    for command, said in (
        (f"export {run} --out {home}/exported", "sees by rendering the state of a map"),
        (
            f"train --dataset {dataset} --learner cmfq --rewards team {FAST} --set learner.beta=0",
            "learner.beta",
        ),
        (
            f"train --dataset {dataset} --learner cmfq --rewards team {FAST} --set train.batch_size=100000",
            "larger than the data",
        ),
        (f"evaluate --run {run} --episodes 1 --set env.minimap=false", "give the same option minimap"),
    ):
        done = offmarl(command)
        assert done.returncode in (1, 2), command
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not list((home / "runs").rglob("cmfq-team-*/run.json")), "nothing is begun that cannot be"


def test_policies_of_all_seeds_share_the_copies(run, home):
    policy = load_policy(RunFolder.open(home / "runs" / run))
    assert policy.n_seeds == 2
    assert policy.of_seed(1).on(policy.spec).index == 1
    assert json.loads((home / "runs" / run / "run.json").read_text())["learner"] == "bc"
