import json
import shutil
from dataclasses import replace

import pytest
import torch

from offmarl.behaviour.collection import CollectRequest, collect_dataset, default_id
from offmarl.behaviour.online import OnlineConfig
from offmarl.behaviour.qualities import TaskKey, trained_behaviour
from offmarl.data.record import EpisodeRecorder
from offmarl.data.store import Dataset
from offmarl.data.validate import validate
from offmarl.data.writer import Writer
from offmarl.envs.registry import make
from offmarl.errors import DataError, UsageError
from offmarl.reporter import Silent

QUICK = {
    "steps": 250,
    "warm_up": 50,
    "num_envs": 16,
    "checkpoint_every": 50,
    "evaluation_episodes": 32,
    "batch_rows": 256,
}
OPTIONS = {"agents": 2}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path))
    return tmp_path


def request(**changes) -> CollectRequest:
    return CollectRequest(
        **{
            "env": "mpe_targets",
            "transitions": 1_000,
            "num_envs": 20,
            "env_options": OPTIONS,
            "behaviour": QUICK,
        }
        | changes
    )


@pytest.mark.parametrize(
    ("content", "said"), [("{", "cannot be read as JSON"), ("{}", "has no 'random_return'")]
)
def test_a_damaged_cache_of_policies_is_one_line(home, content, said):
    collect_dataset(request(name="targets/expert-v0", behaviour=QUICK | {"steps": 100}), Silent())
    (record,) = (home / "policies").rglob("training.json")
    record.write_text(content)
    with pytest.raises(DataError, match=said):
        collect_dataset(request(name="targets/expert-v1", behaviour=QUICK | {"steps": 100}), Silent())


def test_qualities_come_from_one_training_that_is_kept(home):
    expert = collect_dataset(request(name="targets/expert-v0"), Silent())
    medium = collect_dataset(request(quality="medium", name="targets/medium-v0"), Silent())
    everything = request(
        quality="medium-replay", name="targets/medium-replay-v0", transitions=None, num_envs=None
    )
    replay = collect_dataset(everything, Silent())
    assert len(list((home / "policies" / "mpe_targets").iterdir())) == 1, "trained once"

    config = OnlineConfig(**QUICK)
    trained = trained_behaviour(TaskKey("mpe_targets", "offmarl", OPTIONS, "cpu"), config, 0, Silent())
    half_way = (trained.random_return + trained.expert_return) / 2
    returns = [dataset.card.statistics["return"]["mean"] for dataset in (expert, medium, replay)]
    assert returns[0] > returns[1]
    assert abs(returns[1] - half_way) < 0.5 * (trained.expert_return - trained.random_return)
    # Whole episodes of all copies until the medium policy was taken, warm-up included.
    assert replay.card.transitions == trained.medium_step // 25 * 25 * QUICK["num_envs"]
    thinned = collect_dataset(
        request(quality="medium-replay", name="targets/medium-replay-v1", num_envs=None), Silent()
    )
    assert 1_000 <= thinned.card.transitions < replay.card.transitions
    for dataset in (expert, medium, replay, thinned):
        assert validate(dataset) == []
        assert dataset.card.references == trained.references


SHORT = QUICK | {
    "steps": 60,
    "warm_up": 20,
    "checkpoint_every": 20,
    "num_envs": 2,
    "evaluation_episodes": 250,
}


def test_training_that_is_shorter_than_an_episode_is_replayed_to_the_end_of_one():
    long = OPTIONS | {"horizon": 80}
    replay = collect_dataset(
        request(quality="medium-replay", env_options=long, behaviour=SHORT, num_envs=None, transitions=None),
        Silent(),
    )
    assert replay.card.transitions == 2 * 80
    assert replay.card.provenance["until_step"] == 80


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_qualities_that_are_none_are_told(home):
    once = SHORT | {"steps": 40, "num_envs": 16, "checkpoint_every": 40}
    quick = request(quality="medium", behaviour=once, transitions=50)
    collect_dataset(quick, Silent())
    (record,) = (home / "policies").rglob("training.json")
    stored = json.loads(record.read_text())
    for better, said in (
        (1, "medium and expert are the same policy, of step 40"),
        (-1, "expert earns no more"),
    ):
        record.write_text(json.dumps(stored | {"expert_return": stored["random_return"] + better}))
        notes = Notes()
        collect_dataset(replace(quick, overwrite=True), notes)
        assert notes.said[-1].startswith(said)


def test_settings_of_a_training_that_there_is_not_are_told():
    for quality, told in (("random", ["noise", "steps"]), ("scripted", ["steps"])):
        notes = Notes()
        values = {"steps": 40, "noise": 0.2}
        collect_dataset(request(quality=quality, behaviour=values, transitions=50), notes)
        idle = f"nothing is trained for {quality}: behaviour.{', behaviour.'.join(told)} not used"
        assert idle in notes.said
    notes = Notes()
    collect_dataset(request(quality="random", behaviour={}, transitions=50, name="a/b-v0"), notes)
    assert not any("not used" in line for line in notes.said)


def test_a_replay_takes_the_place_of_its_own_beginning_and_of_nothing_else(home):
    replay = request(
        quality="medium-replay", behaviour=SHORT, num_envs=None, out=home / "data", name="a/b-v0"
    )
    spec = make("mpe_targets", options=OPTIONS).spec
    Writer(home / "data", spec, id="a/b-v0", provenance={"quality": "random"}).abandon()
    with pytest.raises(UsageError, match=r"quality='random', not 'medium-replay'.*--overwrite"):
        collect_dataset(replay, Silent())
    done = collect_dataset(replace(replay, overwrite=True), Silent())
    begun = {name: value for name, value in done.card.provenance.items() if name != "versions"}
    Writer(home / "data", spec, id="a/b-v0", provenance=begun, overwrite=True).abandon()
    shutil.rmtree(home / "data")
    assert collect_dataset(replay, Silent()).card.sha256 == done.card.sha256


def test_the_identity_of_free_riders_is_stored_but_not_as_an_array_of_the_data():
    dataset = collect_dataset(request(quality="scripted", free_riders=1, behaviour={}), Silent())
    idle = dataset.hidden["free_rider"].bool()  # [episodes, N]
    assert (idle.sum(1) == 1).all()
    assert "free_rider" not in dataset.card.arrays
    rewards = dataset.read("agent_reward").view(-1, 26, 2).sum(1)  # [episodes, N]
    assert rewards[~idle].mean() > 2 * rewards[idle].mean()


def test_ids_say_what_departs_from_the_defaults():
    plain = CollectRequest(env="mpe_spread")
    assert default_id(plain) == "mpe_spread/expert-v0"
    special = CollectRequest(
        env="mpe_spread", quality="medium", free_riders=2, seed=3, env_options={"agents": 5}
    )
    assert default_id(special) == "mpe_spread/medium-free-riders-2-agents-5-seed-3-v0"


def test_what_exists_is_not_replaced_unasked():
    first = collect_dataset(request(quality="random"), Silent())
    with pytest.raises(UsageError, match=r"--overwrite replaces it, --name .*-v1 writes beside it"):
        collect_dataset(request(quality="random"), Silent())
    again = collect_dataset(request(quality="random", overwrite=True), Silent())
    assert again.card.sha256 == first.card.sha256


def test_a_recorder_stores_what_the_environment_did(tmp_path):
    with make("mpe_targets", 3, options={"agents": 2, "horizon": 4}) as env:
        frame = env.reset(0)
        seen, rewards = [], []
        with Writer(tmp_path / "log", env.spec, id="test/log-v0") as writer:
            recorder = EpisodeRecorder(env, writer)
            for _ in range(10):  # two episodes and a half
                action = torch.rand(3, 2, 2) * 2 - 1
                step = env.step(action)
                recorder(frame, action, step)
                seen.append((frame.obs, step.successor.obs))
                rewards.append(step.team_reward)
                frame = step.frame
    dataset = Dataset.open(tmp_path / "log")
    assert dataset.card.episodes == 6
    obs = dataset.read("obs").view(2, 3, 5, 2, -1)  # [round, E, T + 1, N, O]
    for round_ in range(2):
        for t in range(4):
            assert torch.equal(obs[round_, :, t], seen[4 * round_ + t][0])
        assert torch.equal(obs[round_, :, 4], seen[4 * round_ + 3][1]), (
            "the last row is the final observation"
        )
    stored = dataset.read("team_reward").view(2, 3, 5)
    assert torch.allclose(stored[:, :, :4], torch.stack(rewards[:8]).view(2, 4, 3).transpose(1, 2))
    assert (stored[:, :, 4] == 0).all()
