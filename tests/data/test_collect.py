import pytest
import torch
from toy import N_AGENTS, Toy, ToyPolicy, collect_toy

from offmarl.data.collect import collect
from offmarl.data.store import Dataset
from offmarl.data.writer import Writer
from offmarl.errors import DataError, UsageError
from offmarl.streams import stream, stream_seed


def play_one_copy(discrete: bool, wave: int, copy: int) -> dict[str, list]:
    """The episode of one copy of one wave, told step by step."""
    env, policy = Toy(4, discrete), ToyPolicy(discrete)
    generator = stream(0, "policy", wave)
    frame = env.reset(stream_seed(0, "wave", wave))
    policy.begin(torch.ones(4, dtype=torch.bool), generator)
    told = {"obs": [frame.obs[copy]], "state": [frame.state[copy]], "action": [], "team_reward": []}
    while True:
        action = policy.act(frame, generator)
        step = env.step(action)
        told["obs"].append(step.successor.obs[copy])
        told["state"].append(step.successor.state[copy])
        told["action"].append(action[copy])
        told["team_reward"].append(step.team_reward[copy])
        if step.done[copy]:
            told["lazy"], told["terminated"] = policy.annotations()["lazy"][copy], step.terminated[copy]
            return told
        policy.begin(step.done, generator)
        frame = step.frame


def test_rows_are_what_happened(dataset):
    discrete, start = dataset.spec.discrete, dataset.episode_start.tolist()
    lengths = set()
    for episode in range(12):
        told = play_one_copy(discrete, *divmod(episode, 4))
        rows = slice(start[episode], start[episode + 1])
        length = len(told["action"])
        lengths.add(length)
        assert rows.stop - rows.start == length + 1
        for name in ("obs", "state"):  # the last row is the final observation, not that of the next episode
            assert torch.equal(dataset.read(name, rows), torch.stack(told[name]))
        for name in ("action", "team_reward"):
            values = dataset.read(name, rows)
            assert torch.equal(values[:-1].double(), torch.stack(told[name]).double())
            assert not values[-1].any()
        ended = dataset.read("terminated", rows) | dataset.read("truncated", rows)
        assert ended.nonzero().tolist() == [[length - 1]]
        assert dataset.read("terminated", rows)[length - 1] == told["terminated"]
        assert torch.equal(dataset.hidden["lazy"][episode], told["lazy"])
    assert len(lengths) > 2  # episodes ended at different times


def test_hidden_facts_agree_with_what_the_agents_did(dataset):
    still = dataset.read("action") == 1 if dataset.spec.discrete else (dataset.read("action") == 0).all(-1)
    for episode, (first, last) in enumerate(dataset.episode_start.unfold(0, 2, 1).tolist()):
        lazy = still[first : last - 1].all(0)
        assert lazy[dataset.hidden["lazy"][episode]].all()
        assert dataset.hidden["lazy"][episode].sum() == 1
    assert len(dataset.hidden["lazy"].float().argmax(1).unique()) == N_AGENTS


def test_the_target_is_met_with_whole_episodes_and_no_more(dataset):
    last = int(dataset.episode_start[-1] - dataset.episode_start[-2]) - 1
    assert dataset.card.transitions >= 300 > dataset.card.transitions - last


def test_same_seed_same_file(tmp_path, collected):
    collect_toy(tmp_path / "again", 300)
    collect_toy(tmp_path / "other", 300, seed=1)
    first, again, other = (
        Dataset.open(f).card for f in (collected[False], tmp_path / "again", tmp_path / "other")
    )
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_progress_and_provenance(tmp_path):
    env = Toy(2)
    calls = []
    with Writer(tmp_path / "x", env.spec, id="toy/x-v0", provenance={"behaviour": "random"}) as out:
        collect(env, ToyPolicy(), out, 100, 5, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (100, 100)
    provenance = Dataset.open(tmp_path / "x").card.provenance
    assert {"behaviour": "random", "seed": 5, "num_envs": 2, "transitions": 100}.items() <= provenance.items()
    assert provenance["versions"]["toy"] == "1"


def test_episode_that_does_not_end(tmp_path):
    env = Toy(2)
    env.spec = env.spec.model_copy(update={"horizon": 10**6})
    writer_spec = env.spec

    class Endless(Toy):
        def step(self, action):
            step = super().step(torch.zeros_like(action))
            step.truncated[:] = False
            return step

    endless = Endless(2)
    with pytest.raises(DataError, match="copy 0 did not end within its horizon of 12"):
        collect(endless, ToyPolicy(), Writer(tmp_path / "x", endless.spec, id="toy/x-v0"), 10, 0)
    with pytest.raises(UsageError, match="other options"):
        collect(Toy(2), ToyPolicy(), Writer(tmp_path / "y", writer_spec, id="toy/x-v0"), 10, 0)
    with pytest.raises(UsageError, match="transitions=0"):
        collect(Toy(2), ToyPolicy(), Writer(tmp_path / "z", Toy(2).spec, id="toy/x-v0"), 0, 0)


def test_agent_rewards_that_are_no_truth_are_not_stored(tmp_path):
    env = Toy(2)
    env.spec = env.spec.model_copy(update={"has_agent_reward": False})
    with Writer(tmp_path / "x", env.spec, id="toy/x-v0") as out:
        collect(env, ToyPolicy(), out, 20, 0)
    assert "agent_reward" not in Dataset.open(tmp_path / "x").card.arrays
