"""Ours -> theirs -> ours is exact, and the real libraries find in between what they should."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from foreign import write_ours

from offmarl.behaviour.collection import CollectRequest, collect_dataset
from offmarl.data import hdf5
from offmarl.data.formats.transfer import export_dataset
from offmarl.data.store import Dataset
from offmarl.data.validate import validate
from offmarl.errors import UsageError
from offmarl.reporter import Silent

FORMATS = ("pymarl", "vault", "minari", "d3rlpy")


def assert_equal(ours: Dataset, back: Dataset) -> None:
    assert back.card.arrays == ours.card.arrays
    for name in ours.card.arrays:
        before, after = (one.read_numpy(name, 0, one.card.rows) for one in (ours, back))
        assert before.tobytes() == after.tobytes(), name
    assert torch.equal(ours.episode_start, back.episode_start)
    assert back.hidden.keys() == ours.hidden.keys()
    assert all(torch.equal(ours.hidden[name], back.hidden[name]) for name in ours.hidden)
    assert back.spec == ours.spec
    assert back.card.references == ours.card.references
    assert validate(back) == []


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("source", ["mixed", "toy"])
def test_what_was_exported_comes_back_bit_for_bit(
    source, form, discrete, mixed, collected, bring, tmp_path, monkeypatch
):
    ours = mixed[discrete] if source == "mixed" else Dataset.open(collected[discrete])
    for module in ("base", "transfer", "beside", "pymarl"):  # several blocks, and a rest
        monkeypatch.setattr(f"offmarl.data.formats.{module}.BLOCK_BYTES", 900 if source == "mixed" else 9_000)
    if form == "pymarl" and not discrete:
        with pytest.raises(UsageError, match="continuous actions"):
            export_dataset(ours, form, tmp_path / "theirs", False, Silent())
        assert list(tmp_path.iterdir()) == []
        return
    export_dataset(ours, form, tmp_path / "theirs", False, Silent())
    back = bring(tmp_path / "theirs", form)
    assert_equal(ours, back)
    assert back.card.provenance["notes"] == [
        f"an export of offmarl, completed by {'theirs.' if form == 'pymarl' else ''}offmarl.h5"
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_observations_that_are_rendered_come_back(form, battle, bring, tmp_path):
    export_dataset(battle, form, tmp_path / "theirs", False, Silent())
    back = bring(tmp_path / "theirs", form)
    assert_equal(battle, back)


@pytest.fixture(scope="module")
def battle(tmp_path_factory) -> Dataset:
    pytest.importorskip("magent2")
    request = CollectRequest(
        env="magent_battle",
        quality="random",
        out=tmp_path_factory.mktemp("battle") / "data",
        transitions=20,
        num_envs=2,
        env_options={"agents": 4},
    )
    return collect_dataset(request, Silent())


@pytest.fixture(scope="module")
def ours(mixed) -> Dataset:
    return mixed[True]


def steps_of(dataset: Dataset, name: str) -> np.ndarray:
    """Rows that hold an action."""
    rows = np.ones(dataset.card.rows, dtype=bool)
    rows[dataset.episode_start.numpy()[1:] - 1] = False
    return dataset.read_numpy(name, 0, dataset.card.rows)[rows]


def test_flashbax_reads_a_vault(ours, tmp_path):
    from flashbax.vault import Vault

    export_dataset(ours, "vault", tmp_path / "mixed.vlt" / "Own", False, Silent())
    vault = Vault("mixed.vlt", rel_dir=str(tmp_path), vault_uid="Own")
    assert vault.vault_index == len(ours)
    found = vault.read().experience
    for theirs, name in (("observations", "obs"), ("actions", "action")):
        np.testing.assert_array_equal(found[theirs][0], steps_of(ours, name))
    for theirs, name in (
        ("rewards", "team_reward"),
        ("terminals", "terminated"),
        ("truncations", "truncated"),
    ):
        np.testing.assert_array_equal(found[theirs][0], np.repeat(steps_of(ours, name)[:, None], 3, axis=1))
    infos = {"state": "state", "legals": "legal", "alive": "alive", "agent_rewards": "agent_reward"}
    assert found["infos"].keys() == infos.keys()
    for theirs, name in infos.items():
        np.testing.assert_array_equal(found["infos"][theirs][0], steps_of(ours, name))


def test_minari_loads_a_dataset_by_its_id(ours, tmp_path, monkeypatch):
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    export_dataset(ours, "minari", tmp_path / "mixed" / "own-v0", False, Silent())
    loaded = minari.load_dataset("mixed/own-v0")
    assert (loaded.total_episodes, loaded.total_steps) == (ours.card.episodes, len(ours))
    assert list(loaded.observation_space.spaces) == sorted(ours.spec.agents)
    assert [loaded.action_space[agent].n for agent in ours.spec.agents] == [2, 4, 3]
    start = ours.episode_start
    for number, episode in enumerate(loaded.iterate_episodes()):
        whole = slice(int(start[number]), int(start[number + 1]))
        acting = slice(whole.start, whole.stop - 1)
        for i, agent in enumerate(ours.spec.agents):
            width = len(ours.spec.obs_names[i])
            np.testing.assert_array_equal(episode.observations[agent], ours.read("obs", whole)[:, i, :width])
            np.testing.assert_array_equal(episode.actions[agent], ours.read("action", acting)[:, i])
        np.testing.assert_array_equal(episode.rewards, ours.read("team_reward", acting))
        np.testing.assert_array_equal(episode.terminations, ours.read("terminated", acting))
        np.testing.assert_array_equal(episode.truncations, ours.read("truncated", acting))
        np.testing.assert_array_equal(episode.infos["agent_reward"][1:], ours.read("agent_reward", acting))
        assert not episode.infos["agent_reward"][0].any()  # the info of a reset
        np.testing.assert_array_equal(episode.infos["legal_actions"], ours.read("legal", whole))


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_d3rlpy_loads_an_agent(discrete, mixed, tmp_path):
    import d3rlpy

    ours = mixed[discrete]
    export_dataset(ours, "d3rlpy", tmp_path / "agents", False, Silent())
    assert {path.name for path in (tmp_path / "agents").iterdir()} == {
        "agent_10.h5",
        "agent_2.h5",
        "scout.h5",
        "offmarl.h5",
    }
    with open(tmp_path / "agents" / "agent_2.h5", "rb") as file:
        buffer = d3rlpy.dataset.ReplayBuffer.load(file, d3rlpy.dataset.InfiniteBuffer())
    action_space = d3rlpy.ActionSpace.DISCRETE if discrete else d3rlpy.ActionSpace.CONTINUOUS
    assert buffer.dataset_info.action_space == action_space
    start = ours.episode_start
    ended = ours.read("terminated")[start[1:] - 2]
    usable = [n for n in range(ours.card.episodes) if ended[n] or start[n + 1] - start[n] > 2]
    assert buffer.size() == len(usable)  # it drops a truncated episode of a single step: it has no successor
    for number, episode in zip(usable, buffer.episodes, strict=True):
        acting = slice(int(start[number]), int(start[number + 1]) - 1)
        np.testing.assert_array_equal(episode.observations, ours.read("obs", acting)[:, 1, :3])
        action = ours.read("action", acting)[:, 1]
        np.testing.assert_array_equal(episode.actions, action[:, None] if discrete else action[:, :1])
        np.testing.assert_array_equal(episode.rewards[:, 0], ours.read("team_reward", acting))
        assert episode.terminated == bool(ours.read("terminated", acting)[-1])


def test_a_pymarl_file_has_the_published_layout(ours, tmp_path):
    export_dataset(ours, "pymarl", tmp_path / "3m_expert.h5", False, Silent())
    start, steps = ours.episode_start.numpy(), np.diff(ours.episode_start.numpy()) - 1
    time = ours.spec.horizon + 1
    with h5py.File(tmp_path / "3m_expert.h5") as file:
        layout = {name: (array.shape, str(array.dtype), array.maxshape[0]) for name, array in file.items()}
        episodes = len(steps)
        assert layout == {
            "state": ((episodes, time, 3), "float32", None),
            "obs": ((episodes, time, 3, 5), "float32", None),
            "actions": ((episodes, time, 3, 1), "int64", None),
            "actions_onehot": ((episodes, time, 3, 4), "float32", None),
            "avail_actions": ((episodes, time, 3, 4), "int32", None),
            "reward": ((episodes, time, 1), "float32", None),
            "terminated": ((episodes, time, 1), "uint8", None),
            "filled": ((episodes, time, 1), "int64", None),
        }
        np.testing.assert_array_equal(file["filled"][:, :, 0].sum(axis=1), steps + 1)
        for number in range(episodes):
            whole = slice(int(start[number]), int(start[number + 1]))
            count = steps[number] + 1
            np.testing.assert_array_equal(file["obs"][number, :count], ours.read("obs", whole))
            np.testing.assert_array_equal(file["avail_actions"][number, :count], ours.read("legal", whole))
            np.testing.assert_array_equal(file["reward"][number, :count, 0], ours.read("team_reward", whole))
            assert not file["obs"][number, count:].any()
            assert not file["avail_actions"][number, count:].any()


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_that_stands_is_lost(form, ours, tmp_path):
    target = tmp_path / "notes"
    target.mkdir()
    (target / "diary.txt").write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        export_dataset(ours, form, target, False, Silent())
    with pytest.raises(UsageError, match="would be lost"):
        export_dataset(ours, form, target, True, Silent())
    assert (target / "diary.txt").read_text() == "precious"
    export_dataset(ours, form, tmp_path / "theirs", False, Silent())
    export_dataset(ours, form, tmp_path / "theirs", True, Silent())
    expected = {"notes", "theirs", "theirs.offmarl.h5"} if form == "pymarl" else {"notes", "theirs"}
    assert set(os.listdir(tmp_path)) == expected


@pytest.mark.parametrize("form", ["vault", "minari", "d3rlpy"])
def test_a_folder_that_holds_something_else_too_is_not_replaced(form, ours, tmp_path):
    target = tmp_path / "theirs"
    export_dataset(ours, form, target, False, Silent())
    (target / "models").mkdir()
    with pytest.raises(UsageError, match=r"theirs/models is no part of .* would be lost"):
        export_dataset(ours, form, target, True, Silent())
    (target / "models").rmdir()
    with h5py.File(target / "results.h5", "w") as file:
        file["score"] = 3.0
    with pytest.raises(UsageError, match=r"theirs/results\.h5 is no part of"):
        export_dataset(ours, form, target, True, Silent())
    with h5py.File(target / "results.h5") as file:
        assert file["score"][()] == 3.0


def test_a_file_among_minaris_own_is_not_lost(ours, tmp_path):
    export_dataset(ours, "minari", tmp_path / "theirs", False, Silent())
    (tmp_path / "theirs" / "data" / "diary.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"theirs/data/diary\.txt is no part of"):
        export_dataset(ours, "minari", tmp_path / "theirs", True, Silent())


def test_a_folder_of_vaults_is_not_replaced_by_one(ours, tmp_path):
    for uid in ("Good", "d"):  # d: as the folder inside a vault is called
        export_dataset(ours, "vault", tmp_path / f"{uid}.vlt" / uid, False, Silent())
        with pytest.raises(UsageError, match=f"{uid}.vlt/{uid} is no part of"):
            export_dataset(ours, "vault", tmp_path / f"{uid}.vlt", True, Silent())
        export_dataset(ours, "vault", tmp_path / f"{uid}.vlt" / uid, True, Silent())


@pytest.mark.parametrize("name", ["a b", "é", "half%41", "bad%zz", "ha#sh", "wh?y", "[1]"])
def test_a_vault_lies_where_it_was_asked_for(name, ours, bring, tmp_path):
    export_dataset(ours, "vault", tmp_path / "vaults" / name, False, Silent())
    assert os.listdir(tmp_path / "vaults") == [name]
    assert_equal(ours, bring(tmp_path / "vaults" / name, "vault"))


@pytest.mark.parametrize(
    "agents",
    [
        ("猫", "犬", "é"),
        ("a b", "a_b", "0_a_b"),
        ("A", "a", "b"),  # one file where the disk does not tell them apart
        ("offmarl", "b", "c"),
        ("x_offmarl", "b", "a"),
        ("", ".", "a/b"),
    ],
)
@pytest.mark.parametrize("form", ["vault", "d3rlpy"])
def test_agents_may_have_any_names(form, agents, bring, tmp_path):
    ours = write_ours(tmp_path / "ours", True, agents=agents)
    export_dataset(ours, form, tmp_path / "theirs", False, Silent())
    assert_equal(ours, bring(tmp_path / "theirs", form))
    if form == "d3rlpy":
        assert len(os.listdir(tmp_path / "theirs")) == 4


@pytest.mark.parametrize("agent", ["team/0", "", "."])
def test_names_that_minari_cannot_hold(agent, tmp_path):
    ours = write_ours(tmp_path / "ours", True, agents=("a", agent, "b"))
    with pytest.raises(UsageError, match=f"agent '{agent}'.*export to vault or d3rlpy"):
        export_dataset(ours, "minari", tmp_path / "theirs", False, Silent())
    assert os.listdir(tmp_path) == ["ours"]


def test_the_order_of_agents_in_minari(bring, tmp_path):
    from offmarl.data.formats.base import ReadOptions
    from offmarl.data.formats.minari import MinariSource

    agents = ("zeb", "agent_10", "agent_2")  # gymnasium sorts them: agent_10, agent_2, zeb
    ours = write_ours(tmp_path / "ours", True, agents=agents)
    path = tmp_path / "theirs"
    export_dataset(ours, "minari", path, False, Silent())
    (path / "offmarl.h5").unlink()
    back = bring(path, "minari", env="mixed")
    assert back.spec.agents == agents
    for name in ours.card.arrays:
        before, after = (one.read_numpy(name, 0, one.card.rows) for one in (ours, back))
        np.testing.assert_array_equal(before, after, err_msg=name)

    metadata = json.loads((path / "data" / "metadata.json").read_text())
    assert metadata.pop("offmarl_agents") == list(agents)
    (path / "data" / "metadata.json").write_text(json.dumps(metadata))  # as somebody else writes it
    assert MinariSource(path, ReadOptions(known=ours.spec)).contents.agents == agents
    guessed = MinariSource(path, ReadOptions()).contents
    assert guessed.agents == ("agent_2", "agent_10", "zeb")
    assert guessed.obs_widths == (4, 3, 5)
    assert any("order of the agents is not known" in note for note in guessed.notes)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_nothing(form, ours, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    module = {"pymarl": "pymarl", "vault": "vault", "minari": "minari", "d3rlpy": "d3rlpy"}[form]
    monkeypatch.setattr(f"offmarl.data.formats.{module}.write_beside", fail)
    with pytest.raises(OSError, match="No space"):
        export_dataset(ours, form, tmp_path / "theirs", False, Silent())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("allowed", [1_000, 12_000])
@pytest.mark.parametrize("form", ["pymarl", "d3rlpy"])
def test_a_full_disk_is_one_line_and_leaves_nothing(form, allowed, ours, tmp_path, monkeypatch):
    left = [allowed]

    def write(self, data) -> int:
        left[0] -= len(memoryview(data).cast("B"))
        if left[0] < 0:
            self.error = self.error or OSError(28, "No space left on device")
            return len(data)
        return original(self, data)

    original = hdf5._GuardedFile.write
    monkeypatch.setattr(hdf5._GuardedFile, "write", write)
    with pytest.raises(OSError, match="No space left on device") as caught:
        export_dataset(ours, form, tmp_path / "theirs", False, Silent())
    assert str(tmp_path) in caught.value.filename
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_beside_another_export_is_refused(form, ours, collected, bring, tmp_path):
    from offmarl.errors import DataError

    other = Dataset.open(collected[True])
    export_dataset(ours, form, tmp_path / "theirs", False, Silent())
    export_dataset(other, form, tmp_path / "other", False, Silent())
    stranger, own = (
        tmp_path / f"{name}.offmarl.h5" if form == "pymarl" else tmp_path / name / "offmarl.h5"
        for name in ("other", "theirs")
    )
    Path(stranger).replace(own)
    with pytest.raises(DataError, match="does not belong"):
        bring(tmp_path / "theirs", form)
    assert not (tmp_path / "imported").exists()
