import json
from dataclasses import replace

import h5py
import pytest
import torch
from recording import HASTY

from offmarl.credit.base import AgentVerdict
from offmarl.credit.baselines import EqualSplit
from offmarl.credit.relabel import (
    available_rewards,
    decompose,
    latest_credit,
    read_credit,
    rewards_for,
    stored_report,
)
from offmarl.data.load import load_transitions
from offmarl.errors import DataError, UsageError

KEPT = HASTY | {"fallback": False}


def test_a_decomposition_is_written_read_and_reported(dataset):
    stages = []
    report = decompose(
        dataset, values=KEPT, seed=1, progress=lambda stage, done, total: stages.append((stage, done))
    )
    assert ("structure", 1) in stages
    assert ("refit", 60) in stages
    shown = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {"credit", "fit_r2", "fallback", "truth", "seconds", "agents", "reason"} <= shown.keys()
    assert shown["truth"].keys() == {"pearson", "r2", "skill", "hijack", "f1"}
    assert shown["agents"][0].keys() >= {"name", "ambiguity", "reproducibility", "locality", "verdict"}
    assert len(shown["std"]) == 3
    assert (
        sum(edge["kept"] for edges in shown["edges"].values() for edge in edges) == report.credit.masks.sum()
    )
    assert shown["credit"] == "macca"
    assert shown["seconds"] > 0

    reward = rewards_for(dataset, "macca")
    assert reward.dtype == torch.float32
    assert reward.equal(report.credit.reward)
    assert reward.equal(rewards_for(dataset, dataset.folder / "credit" / "macca.h5"))
    load_transitions(dataset).with_reward(reward)

    stored = stored_report(dataset, "macca")
    assert stored.to_json() == report.to_json()
    assert latest_credit(dataset) == "macca"
    credit = read_credit(dataset, "macca")
    assert credit.masks.equal(report.credit.masks)
    assert credit.input_names == report.credit.input_names
    assert credit.agents == report.credit.agents
    about = json.loads((dataset.folder / "credit" / "macca.json").read_text())
    assert about["seed"] == 1
    assert about["config"]["structure_steps"] == HASTY["structure_steps"]
    assert about["dataset_sha256"] == dataset.card.sha256


def test_built_in_rewards(dataset):
    transitions = load_transitions(dataset)
    rows, ends = transitions.transition_rows, transitions.episode_start[1:] - 1
    team_reward = transitions.column("team_reward")[rows]
    team, mean, true = (rewards_for(dataset, name) for name in ("team", "mean", "true"))
    assert team[rows].equal(team_reward[:, None].expand(-1, 3))
    assert torch.allclose(mean[rows].sum(1), team_reward, atol=1e-5)
    assert torch.allclose(true[rows].sum(1), team_reward, atol=1e-5)
    assert not true[rows, 0].equal(true[rows, 1])
    assert not any(reward[ends].any() for reward in (team, mean, true))
    assert available_rewards(dataset) == ["team", "mean", "true"]


def test_the_mean_can_be_asked_for_as_a_method(dataset):
    report = decompose(dataset, "mean")
    assert report.truth["skill"] == pytest.approx(0, abs=1e-6)
    assert report.truth["hijack"] is None, "in an equal split nobody is paid for another's"
    assert torch.allclose(report.credit.reward, rewards_for(dataset, "mean"))


def test_a_credit_is_not_overwritten_unasked(dataset):
    first = decompose(dataset, values=KEPT, seed=0).credit.reward
    with pytest.raises(UsageError, match="--overwrite"):
        decompose(dataset, values=KEPT, seed=1)
    assert rewards_for(dataset, "macca").equal(first)
    decompose(dataset, values=KEPT, seed=1, name="second")
    assert available_rewards(dataset) == ["team", "mean", "true", "macca", "second"]
    decompose(dataset, values=KEPT, seed=1, overwrite=True)
    assert rewards_for(dataset, "macca").equal(rewards_for(dataset, "second"))


def test_an_interrupted_write_leaves_the_old_credit(dataset, monkeypatch):
    first = decompose(dataset, values=KEPT, seed=0).credit.reward

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py.Group, "create_dataset", killed)
    with pytest.raises(KeyboardInterrupt):
        decompose(dataset, values=KEPT, seed=1, overwrite=True)
    monkeypatch.undo()
    assert rewards_for(dataset, "macca").equal(first)
    assert sorted(path.name for path in (dataset.folder / "credit").iterdir()) == ["macca.h5", "macca.json"]


def test_a_missing_credit_says_what_there_is_and_how_to_make_it(dataset):
    with pytest.raises(
        UsageError, match=r"offers: team, mean, true.*offmarl decompose --dataset scm_a/random-v0"
    ):
        rewards_for(dataset, "macca")
    with pytest.raises(UsageError, match="no credit file"):
        rewards_for(dataset, "elsewhere/macca.h5")


def test_a_credit_of_other_data_is_refused(dataset):
    decompose(dataset, values=KEPT)
    path = dataset.folder / "credit" / "macca.h5"
    with h5py.File(path, "a") as file:
        file.attrs["dataset_sha256"] = "0" * 64
    with pytest.raises(DataError, match="other contents"):
        rewards_for(dataset, "macca")
    with h5py.File(path, "a") as file:
        del file["reward"]
        file["reward"] = torch.zeros(5, 3).numpy()
    with pytest.raises(DataError, match=r"rewards \[5, 3\]"):
        rewards_for(dataset, "macca")
    with h5py.File(path, "a") as file:
        del file.attrs["dataset_sha256"], file["reward"]
        file["reward"] = torch.zeros(dataset.card.rows, dataset.spec.n_agents).numpy()
    with pytest.raises(DataError, match="is damaged"):
        rewards_for(dataset, "macca")
    path.write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="is damaged"):
        rewards_for(dataset, "macca")
    with h5py.File(path, "w") as file:
        file["something"] = 1
    with pytest.raises(DataError, match="no credit file"):
        rewards_for(dataset, path)


def test_wrong_names_are_refused_before_any_work(dataset):
    with pytest.raises(UsageError, match="did you mean macca"):
        decompose(dataset, "maca")
    for name in ("team", "true", "mean"):
        with pytest.raises(UsageError, match="built-in"):
            decompose(dataset, name=name)
    with pytest.raises(UsageError, match="cannot name"):
        decompose(dataset, name="../macca")
    assert not (dataset.folder / "credit").exists()


def test_figures_that_are_no_numbers_are_not_printed(dataset, monkeypatch):
    plain = EqualSplit.assign

    def odd(self, transitions):
        agents = [
            AgentVerdict(who, "v", ambiguity=float("nan"), reproducibility=0.5) for who in self.spec.agents
        ]
        return replace(plain(self, transitions), metrics={"fit_r2": float("-inf")}, agents=agents)

    monkeypatch.setattr(EqualSplit, "assign", odd)
    credit = decompose(dataset, "mean").credit
    assert credit.metrics == {"fit_r2": None}
    assert credit.agents == [AgentVerdict(who, "v", reproducibility=0.5) for who in dataset.spec.agents]


def test_numbers_that_json_lacks_become_null(dataset):
    report = decompose(dataset, "mean")
    odd = replace(report, truth={"skill": float("nan"), "r2": float("-inf"), "f1": None, "pearson": 0.5})
    assert odd.to_json()["truth"] == {"skill": None, "r2": None, "f1": None, "pearson": 0.5}
