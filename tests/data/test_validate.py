import json
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offmarl.data import validate as module
from offmarl.data.store import Dataset
from offmarl.data.validate import episode_blocks, require_valid, validate
from offmarl.errors import DataError


@pytest.fixture(params=[1 << 24, 2_000], ids=["one block", "many blocks"])
def discrete(request, collected, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", request.param)
    return shutil.copytree(collected[True], tmp_path / "copy")


def edit(folder, array, row, value):
    """Change numbers, and make size and sha256 fit again, as a careful forger would."""
    with h5py.File(folder / "data.h5", "a") as file:
        file[array][row] = value
    seal(folder)


def seal(folder):
    card = json.loads((folder / "dataset.json").read_text())
    card["bytes"] = (folder / "data.h5").stat().st_size
    card["sha256"] = module.sha256(folder / "data.h5")
    (folder / "dataset.json").write_text(json.dumps(card))


def only_problem(folder):
    problems = validate(Dataset.open(folder))
    assert len(problems) == 1, problems
    return problems[0]


def test_clean_data_is_clean(dataset):
    assert validate(dataset) == []


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("obs", np.nan, "not a finite number: nan"),
        ("state", np.inf, "not a finite number: inf"),
        ("team_reward", 77, "team reward is not the sum of the agents'"),
        ("action", 3, "no such choice: agent 0 took 3 of 3"),
        ("legal", 0, "illegal action taken: agent 0 took"),
        ("alive", 7, "a flag must be 0 or 1: 7"),
    ],
)
def test_row_and_array_are_named(discrete, array, value, message):
    dataset = Dataset.open(discrete)
    row = int(dataset.episode_start[-3]) + 1
    if array == "legal":  # only the living can act illegally
        row += int(dataset.read("alive", slice(row, None))[:-1].all(dim=1).nonzero()[0])
    dataset.close()
    edit(discrete, array, row, value)
    problem = only_problem(discrete)
    assert (problem.array, problem.row) == ("action" if array == "legal" else array, row)
    assert message in str(problem)


@pytest.mark.parametrize(("array", "value"), [("action", 1), ("agent_reward", 0.5), ("team_reward", 0.5)])
def test_nothing_but_an_observation_in_the_last_row(discrete, array, value):
    start = Dataset.open(discrete).episode_start
    row = int(start[3]) - 1
    edit(discrete, array, row, value)
    if array.endswith("reward"):  # so that their sum is right
        edit(discrete, "agent_reward", row, 0.5)
        edit(discrete, "team_reward", row, 1.5)
    problems = {problem.array: problem for problem in validate(Dataset.open(discrete))}
    assert problems.keys() == ({"action"} if array == "action" else {"agent_reward", "team_reward"})
    assert (problems[array].row, problems[array].rows) == (row, 1)
    assert "must be 0 in the last row of an episode" in problems[array].message


def test_padding_that_is_not_zero(discrete):
    card = json.loads((discrete / "dataset.json").read_text())
    card["env"]["obs_names"][1] = ["x", "y", "vx"]  # what follows is the clock, which starts at 0
    (discrete / "dataset.json").write_text(json.dumps(card))
    problem = only_problem(discrete)
    clock = Dataset.open(discrete).read("obs")[:, 1, 3]
    assert (problem.array, problem.row, problem.rows) == ("obs", 1, int((clock != 0).sum()))
    assert problem.message == "padding must be 0: agent 1 observes 3 numbers, behind them stands 1.0"


def test_episodes_longer_than_the_horizon(discrete):
    card = json.loads((discrete / "dataset.json").read_text())
    lengths = Dataset.open(discrete).episode_start.diff() - 1
    card["env"]["horizon"] = int(lengths.max()) - 1
    (discrete / "dataset.json").write_text(json.dumps(card))
    problem = only_problem(discrete)
    assert problem.rows == int((lengths == lengths.max()).sum())
    assert f"give the task a horizon of {lengths.max()}" in problem.message


def test_continuous_actions_out_of_range(collected, tmp_path):
    folder = shutil.copytree(collected[False], tmp_path / "copy")
    edit(folder, "action", 3, 1.5)
    problem = only_problem(folder)
    assert str(problem) == "array 'action', row 3: outside [-1, 1]: 1.5"


def test_ends(discrete):
    end = int(Dataset.open(discrete).episode_start[5]) - 2
    with h5py.File(discrete / "data.h5", "a") as file:
        file["terminated"][end] = file["truncated"][end] = 0
        file["truncated"][end - 1] = 1
    seal(discrete)
    problems = {(p.array, p.row): p.message for p in validate(Dataset.open(discrete))}
    assert "episode without an end" in problems["terminated", end]
    assert "end flag inside an episode" in problems["truncated", end - 1]
    assert len(problems) == 2


def test_many_rows_make_one_problem(discrete):
    edit(discrete, "team_reward", np.s_[20:60], np.nan)
    problem = only_problem(discrete)
    assert (problem.row, problem.rows) == (20, 40)
    assert "39 rows more" in str(problem)


def test_edited_file_is_noticed_by_its_hash(discrete):
    with h5py.File(discrete / "data.h5", "a") as file:
        file["position"][2] = 0.25  # a legal value: only the hash can tell
    card = json.loads((discrete / "dataset.json").read_text())
    card["bytes"] = (discrete / "data.h5").stat().st_size
    (discrete / "dataset.json").write_text(json.dumps(card))
    problem = only_problem(discrete)
    assert problem.array == "data.h5"
    assert "changed after it was written" in problem.message


def test_flipped_bit_is_noticed_by_the_checksum(discrete):
    with h5py.File(discrete / "data.h5") as file:
        offset = file["obs"].id.get_chunk_info(0).byte_offset
    with open(discrete / "data.h5", "r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)[0]
        file.seek(offset + 100)
        file.write(bytes([byte ^ 1]))
    found = {problem.array: problem.message for problem in validate(Dataset.open(discrete))}
    assert "sha256" in found["data.h5"]
    assert "cannot be read" in found["obs"]


def test_disordered_episodes(discrete):
    with h5py.File(discrete / "data.h5", "a") as file:
        file["episode_start"][3] = file["episode_start"][5]
    seal(discrete)
    problem = only_problem(discrete)
    assert problem.array == "episode_start"
    assert "an episode needs two rows: episode 3 has" in problem.message


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=20), rows=st.integers(1, 30))
def test_blocks_cover_all_episodes_and_stay_small(lengths, rows):
    start = np.concatenate([[0], np.cumsum(lengths)])
    blocks = list(episode_blocks(start, rows))
    assert [episode for first, last in blocks for episode in range(first, last)] == list(range(len(lengths)))
    for first, last in blocks:
        assert last == first + 1 or start[last] - start[first] <= rows


def test_what_is_not_valid_is_refused_with_its_first_problem(discrete):
    require_valid(Dataset.open(discrete))
    edit(discrete, "team_reward", 4, np.nan)
    edit(discrete, "obs", 3, np.inf)
    with pytest.raises(
        DataError, match=r"array 'obs', row 3: not a finite number: inf \(and 1 problems more\)"
    ):
        require_valid(Dataset.open(discrete))
