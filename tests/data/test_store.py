import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from toy import N_AGENTS, collect_toy, toy_spec

from offmarl.data import hdf5, writer
from offmarl.data.load import load_transitions
from offmarl.data.schema import SCHEMA_VERSION
from offmarl.data.store import Dataset, partial_folder
from offmarl.data.table import Transitions
from offmarl.data.validate import validate
from offmarl.data.writer import Writer
from offmarl.errors import DataError, UsageError


@pytest.fixture
def copy(collected, tmp_path):
    """A dataset to damage."""
    return shutil.copytree(collected[True], tmp_path / "copy")


def edit_card(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rows_of(lengths, seed=0):
    """Arrays of episodes with `lengths` steps in the continuous toy task."""
    generator = np.random.default_rng(seed)
    start = np.concatenate([[0], np.cumsum(np.asarray(lengths) + 1)])
    rows = start[-1]
    agent = generator.standard_normal((rows, N_AGENTS)).astype(np.float32)
    arrays = {
        "obs": generator.standard_normal((rows, N_AGENTS, 4)),
        "action": generator.uniform(-1, 1, (rows, N_AGENTS, 2)),
        "agent_reward": agent,
        "team_reward": agent.sum(1),
        "terminated": np.zeros(rows, dtype=bool),
        "truncated": np.zeros(rows, dtype=bool),
    }
    arrays["terminated"][start[1:] - 2] = True
    for name in ("action", "agent_reward", "team_reward"):
        arrays[name][start[1:] - 1] = 0
    return arrays, np.asarray(lengths) + 1


def test_what_is_written_is_read(tmp_path):
    blocks = [rows_of([3, 1]), rows_of([5], seed=1)]
    folder = tmp_path / "written"
    with Writer(folder, toy_spec(), id="toy/written-v3", references={"random": 0.0, "expert": 2.0}) as out:
        for number, (arrays, lengths) in enumerate(blocks):
            out.append(arrays, lengths, {"kind": np.full(len(lengths), number)})
            out.flush()
    assert not partial_folder(folder).exists()
    dataset = Dataset.open(folder)
    for name in blocks[0][0]:
        both = np.concatenate([arrays[name] for arrays, _ in blocks])
        expected = both if both.dtype == bool else both.astype(np.float32)
        assert np.array_equal(dataset.read(name).numpy(), expected)
        assert np.array_equal(dataset.read(name, slice(3, 9)).numpy(), expected[3:9])
        assert np.array_equal(dataset.read(name, slice(9, 2, -3)).numpy(), expected[9:2:-3])
    assert dataset.episode_start.tolist() == [0, 4, 6, 12]
    assert dataset.hidden["kind"].tolist() == [0, 0, 1]
    card = dataset.card
    assert (card.rows, card.episodes, card.transitions, len(dataset)) == (12, 3, 9, 9)
    returns = [
        float(dataset.read("team_reward", range(a, b)).double().sum()) for a, b in ((0, 4), (4, 6), (6, 12))
    ]
    assert card.statistics["team_return"]["mean"] == pytest.approx(np.mean(returns))
    assert card.statistics["return"]["max"] == pytest.approx(np.max(returns) / N_AGENTS)
    assert card.statistics["length"]["mean"] == 3
    assert sum(card.statistics["agent_return_mean"]) == pytest.approx(np.mean(returns), rel=1e-5)
    assert card.references == {"random": 0.0, "expert": 2.0}
    assert validate(dataset) == []


def test_file_is_plain_hdf5_with_narrow_types_and_checksums(dataset):
    with h5py.File(dataset.folder / "data.h5") as file:
        assert file["terminated"].dtype == np.uint8
        assert file["obs"].dtype == np.float32
        assert file["obs"].fletcher32
        assert file["episode_start"].shape == (dataset.card.episodes + 1,)
        if dataset.spec.discrete:
            assert file["action"].dtype == np.uint8
            assert file["legal"].dtype == np.uint8


def test_chunks_are_about_a_mebibyte(tmp_path):
    with Writer(tmp_path / "many", toy_spec(horizon=99), id="toy/many-v0") as out:
        for seed in range(5):
            out.append(*rows_of([99] * 100, seed))
    with h5py.File(tmp_path / "many" / "data.h5") as file:
        chunk = file["obs"].chunks
        assert 0.7 < np.prod(chunk) * 4 / 2**20 < 1.42
        assert file["team_reward"].chunks[0] == chunk[0]
    # more than one chunk and an odd remainder: the fast path sees chunk borders
    dataset = Dataset.open(tmp_path / "many")
    assert torch.equal(load_transitions(dataset).column("obs"), dataset.read("obs"))


def test_load_is_the_table_of_the_arrays(dataset):
    loaded = load_transitions(dataset)
    names = [name for name in dataset.card.arrays if name not in ("agent_reward", "position")]
    table = Transitions.from_arrays(
        dataset.spec, {name: dataset.read(name) for name in names}, dataset.episode_start
    )
    assert loaded.columns == table.columns
    assert torch.equal(loaded.row, table.row)
    assert torch.equal(loaded.transition_rows, table.transition_rows)
    assert "agent_reward" not in loaded.columns


def test_load_falls_back_to_hdf5_for_compressed_arrays(copy):
    expected = load_transitions(Dataset.open(copy)).row
    with h5py.File(copy / "data.h5", "a") as file:
        values = file["obs"][:]
        del file["obs"]
        file.create_dataset("obs", data=values, chunks=(50, *values.shape[1:]), compression="gzip")
        values = file["state"][:]
        del file["state"]
        file["state"] = values  # contiguous
    edit_card(copy, bytes=(copy / "data.h5").stat().st_size)
    assert torch.equal(load_transitions(Dataset.open(copy)).row, expected)


def test_unfinished_dataset_reads_like_a_finished_one(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PART_BYTES", 1)
    out = Writer(tmp_path / "x", toy_spec(), id="toy/x-v0")
    blocks = [rows_of([2, 2], seed) for seed in range(12)]
    for arrays, lengths in blocks:
        out.append(arrays, lengths, {"lucky": np.ones(2)}, waves=1)
    partial = Dataset.open(partial_folder(tmp_path / "x"))
    assert len(partial.parts) == 12
    assert not partial.card.complete
    assert partial.card.episodes == 24
    assert validate(partial) == []
    obs = np.concatenate([arrays["obs"] for arrays, _ in blocks]).astype(np.float32)
    assert np.array_equal(partial.read("obs").numpy(), obs)
    assert np.array_equal(partial.read("obs", slice(5, 44)).numpy(), obs[5:44])
    unfinished = load_transitions(partial)
    with pytest.raises(DataError, match="not finished"):
        Dataset.open(tmp_path / "x")
    finished = out.close()
    assert torch.equal(load_transitions(finished).row, unfinished.row)


def test_writer_refuses_bad_rows_by_name(tmp_path):
    arrays, lengths = rows_of([3, 2])
    out = Writer(tmp_path / "x", toy_spec(), id="toy/x-v0")

    def refused(match, **changes):
        with pytest.raises(DataError, match=match):
            out.append({**arrays, **changes}, lengths)

    bad = arrays["obs"].copy()
    bad[5, 1, 2] = np.nan
    refused("'obs', row 5: not a finite number", obs=bad)
    refused(r"'action', row 0: outside \[-1, 1\]", action=arrays["action"] + 3)
    refused("'team_reward', row 0: team reward is not the sum", team_reward=arrays["team_reward"] + 1)
    refused("'obs' has shape", obs=arrays["obs"][:, :2])
    refused("'legal' has no place", legal=np.ones((7, 3, 3)))
    refused("episode without an end", terminated=np.zeros(7, dtype=bool))
    refused("row 0: 0.5 is not a uint8", truncated=np.full(7, 0.5))
    refused(
        r"'alive', row 2: 0.5 is not a uint8$", alive=np.where(np.arange(7)[:, None] == 2, 0.5, np.ones(3))
    )
    refused("'obs' holds <U32, expected numbers", obs=arrays["obs"].astype(str))
    for name, message in [
        ("action", "'action', row 3: must be 0"),
        ("team_reward", "'team_reward', row 3: must be 0"),
    ]:
        late = arrays[name].copy()
        late[3] = 0.5
        without = {other: values for other, values in arrays.items() if other != "agent_reward"}
        with pytest.raises(DataError, match=f"{message} in the last row of an episode.*: 0.5"):
            out.append({**without, name: late}, lengths)
    with pytest.raises(DataError, match="'obs' is missing"):
        out.append({name: values for name, values in arrays.items() if name != "obs"}, lengths)
    assert out.rows == 0
    out.append(arrays, lengths)
    with pytest.raises(DataError, match="'agent_reward' is absent in these episodes, but float32"):
        out.append({name: values for name, values in arrays.items() if name != "agent_reward"}, lengths)
    with pytest.raises(DataError, match="annotation 'who' has 3 entries for 2 episodes"):
        out.append(arrays, lengths, {"who": np.zeros(3)})
    with pytest.raises(DataError, match=r"lengths have shape \[1, 2\]"):
        out.append(arrays, [lengths])
    with pytest.raises(DataError, match="annotation 'who' holds <U3, expected numbers"):
        out.append(arrays, lengths, {"who": np.array(["ann", "bob"])})
    with pytest.raises(DataError, match="annotation 'who/when' cannot be stored under this name"):
        out.append(arrays, lengths, {"who/when": np.zeros(2)})
    with pytest.raises(
        DataError, match="longer than the horizon of 12: episode 1 has 13 steps; give the task a"
    ):
        out.append(*rows_of([3, 13]))
    out.abandon()


def test_nothing_is_overwritten_unasked(tmp_path):
    folder = tmp_path / "x"
    collect_toy(folder, 20)
    before = (folder / "data.h5").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        Writer(folder, toy_spec(), id="toy/x-v0")
    with pytest.raises(UsageError, match="expected namespace/name-vN"):
        Writer(tmp_path / "y", toy_spec(), id="toy")
    assert not (tmp_path / "y.partial").exists()
    out = Writer(folder, toy_spec(), id="toy/x-v0", overwrite=True)
    out.append(*rows_of([3]))
    out.__exit__(ZeroDivisionError, None, None)
    assert (folder / "data.h5").read_bytes() == before
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="unfinished collection"):
        Writer(folder, toy_spec(), id="toy/x-v0")
    with Writer(folder, toy_spec(), id="toy/x-v0", overwrite=True) as out:
        out.append(*rows_of([3]))
    assert Dataset.open(folder).card.transitions == 3


def test_what_is_no_dataset_is_never_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    note = tmp_path / "thesis/chapter.txt"
    note.write_text("years of work")
    for folder in (note.parent, note):
        with pytest.raises(UsageError, match="is no dataset, and would be lost"):
            Writer(folder, toy_spec(), id="toy/x-v0", overwrite=True)
        assert not partial_folder(folder).exists()
    assert note.read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    with Writer(tmp_path / "empty", toy_spec(), id="toy/x-v0", overwrite=True) as out:
        out.append(*rows_of([3]))
    assert Dataset.open(tmp_path / "empty").card.transitions == 3


def test_two_writers_are_kept_apart(tmp_path):
    out = Writer(tmp_path / "x", toy_spec(), id="toy/x-v0")
    with pytest.raises(UsageError, match="another process is writing"):
        Writer.resume(tmp_path / "x", toy_spec())
    with pytest.raises(UsageError, match="another process is writing"):
        Writer(tmp_path / "x", toy_spec(), id="toy/x-v0", overwrite=True)
    out.append(*rows_of([3]))
    out.abandon()
    assert Writer.resume(tmp_path / "x", toy_spec()).transitions == 3


def test_empty_dataset_is_not_completed(tmp_path):
    with pytest.raises(DataError, match="no finished episode"):
        Writer(tmp_path / "x", toy_spec(), id="toy/x-v0").close()
    with pytest.raises(DataError, match="no finished episode"):
        Dataset.open(tmp_path / "x.partial")
    arrays, _ = rows_of([3])
    with (
        pytest.raises(DataError, match="no finished episode"),
        Writer(tmp_path / "y", toy_spec(), id="toy/y-v0") as out,
    ):
        out.append({name: values[:0] for name, values in arrays.items()}, [])


def damage_nothing_there(folder):
    shutil.rmtree(folder)


def damage_no_card(folder):
    (folder / "dataset.json").unlink()


def damage_card_text(folder):
    (folder / "dataset.json").write_text('{"id": ')


def damage_card_field(folder):
    edit_card(folder, episodes="many")


def damage_card_list(folder):
    (folder / "dataset.json").write_text("[]")


def damage_future(folder):
    edit_card(folder, schema_version=SCHEMA_VERSION + 1)


def damage_no_data(folder):
    (folder / "data.h5").unlink()


def damage_truncated(folder):
    data = (folder / "data.h5").read_bytes()
    (folder / "data.h5").write_bytes(data[: len(data) // 2])


def damage_truncated_known(folder):
    damage_truncated(folder)
    edit_card(folder, bytes=(folder / "data.h5").stat().st_size)


def damage_text(folder):
    (folder / "data.h5").write_text("obs,action\n")
    edit_card(folder, bytes=11)


def damage_foreign(folder):
    with h5py.File(folder / "data.h5", "w") as file:
        file["observations"] = np.zeros(3)
    edit_card(folder, bytes=(folder / "data.h5").stat().st_size)


def reopened(folder, change):
    with h5py.File(folder / "data.h5", "a") as file:
        change(file)
    edit_card(folder, bytes=(folder / "data.h5").stat().st_size)


def damage_missing_array(folder):
    reopened(folder, lambda file: file.__delitem__("team_reward"))


def damage_dtype(folder):
    def change(file):
        values = file["action"][:]
        del file["action"]
        file["action"] = values.astype(np.float64)

    reopened(folder, change)


def damage_shape(folder):
    def change(file):
        values = file["legal"][:]
        del file["legal"]
        file["legal"] = values[:-1]

    reopened(folder, change)


def damage_episodes(folder):
    def change(file):
        del file["episode_start"]
        file["episode_start"] = np.array([0, 5])

    reopened(folder, change)


def damage_annotation(folder):
    reopened(folder, lambda file: file.__delitem__("episode/lazy"))


def damage_annotation_type(folder):
    card = json.loads((folder / "dataset.json").read_text())
    card["annotations"]["lazy"]["dtype"] = "foo"
    edit_card(folder, annotations=card["annotations"])


def damage_agents(folder):
    card = json.loads((folder / "dataset.json").read_text())
    nobody = {"agents": [], "groups": [], "obs_names": [], "action_names": []}
    edit_card(folder, env=card["env"] | nobody)


def damage_card_array(folder):
    card = json.loads((folder / "dataset.json").read_text())
    del card["arrays"]["obs"]
    edit_card(folder, arrays=card["arrays"])


def damage_links(folder):
    """Spoil the tables that say where in the file its arrays are."""
    data = bytearray((folder / "data.h5").read_bytes())
    for at in range(60, 4000, 97):
        data[at] ^= 0xFF
    (folder / "data.h5").write_bytes(data)


def damage_count(folder):
    edit_card(folder, transitions=1)


def damage_statistics(folder):
    edit_card(folder, statistics={"return": {"mean": 1.0}})


def damage_references(folder):
    edit_card(folder, references={"random": 1.0})


def damage_date(folder):
    edit_card(folder, created="yesterday")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_links, "is damaged"),
        (damage_count, "the card says 1 transitions"),
        (damage_statistics, "field 'statistics'.*mean, std"),
        (damage_references, "field 'references'.*'expert'"),
        (damage_date, "field 'created'.*yesterday"),
        (damage_nothing_there, "not a folder"),
        (damage_no_card, "no dataset.json"),
        (damage_card_text, "cannot be read as JSON"),
        (damage_card_list, "holds a list"),
        (damage_card_field, "field 'episodes'"),
        (damage_future, f"schema version {SCHEMA_VERSION + 1}.*install a newer"),
        (damage_no_data, "no data.h5"),
        (damage_truncated, "was truncated: it has"),
        (damage_truncated_known, "damaged"),
        (damage_text, "not an HDF5 file"),
        (damage_foreign, "not one of offmarl"),
        (damage_missing_array, "'team_reward' is missing"),
        (damage_dtype, r"'action' is float64.*expected uint8"),
        (damage_shape, r"'legal' is uint8 .*expected"),
        (damage_episodes, "'episode_start' ends at row 5 after 1 episodes"),
        (damage_annotation, "'episode/lazy' is missing"),
        (damage_annotation_type, "'episode/lazy' is bool .*expected foo"),
        (damage_agents, "field 'env'.*there are no agents"),
        (damage_card_array, "'obs' is missing"),
    ],
)
def test_opening_names_what_is_wrong(copy, damage, message):
    damage(copy)
    with pytest.raises(DataError, match=message):
        Dataset.open(copy)


def test_file_cut_under_an_open_dataset(copy):
    dataset = Dataset.open(copy)
    with open(copy / "data.h5", "r+b") as file:
        file.truncate(3000)
    with pytest.raises(DataError):
        load_transitions(dataset)


def test_unknown_array_and_rows(dataset):
    with pytest.raises(UsageError, match="did you mean obs"):
        dataset.read("obss")
    with pytest.raises(DataError, match="do not exist"):
        dataset.read("obs", range(dataset.card.rows + 1))
    assert dataset.read("obs", slice(4, 4)).shape == (0, N_AGENTS, 4)


def test_chunk_rows_suit_wide_and_narrow_rows():
    from offmarl.data.schema import StoredArray

    wide = {"obs": StoredArray(shape=(10, 400, 10_000), dtype="float32")}
    narrow = {"obs": StoredArray(shape=(10, 1, 1), dtype="float32")}
    assert hdf5.chunk_rows(wide) == 1
    assert hdf5.chunk_rows(narrow) == 2**18
