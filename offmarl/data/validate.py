"""Is a dataset what it says it is? Every problem names the array and the row.

Shapes: R rows, E episodes, N agents, A action dimensions, K discrete choices.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from offmarl.data.schema import DATA_NAME
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_render import impossible, no_beginning
from offmarl.errors import DataError
from offmarl.reporter import Progress

if TYPE_CHECKING:
    from offmarl.data.store import Dataset

BLOCK_BYTES = 16 << 20  # read at a time


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with one array."""

    array: str
    row: int | None  # the first row concerned; None: the array as a whole
    message: str
    rows: int = 1  # how many rows are concerned

    def __str__(self) -> str:
        where = "" if self.row is None else f", row {self.row}"
        more = f" (and {self.rows - 1} rows more)" if self.rows > 1 else ""
        return f"array '{self.array}'{where}: {self.message}{more}"


def validate(dataset: "Dataset", progress: Progress | None = None) -> list[Problem]:
    """Read all of `dataset`, block by block, and list what is wrong with it; an empty list is a clean bill.

    Checked: the file's sha256 and its chunks' checksums, order and length of episodes, end flags, finite
    numbers, actions in range and legal, team reward against the sum of the agents', zeros where there is nothing
    to store. `progress` counts rows.
    """
    problems: dict[tuple[str, str], Problem] = {}

    def report(found: Problem) -> None:
        """Join problems of the same kind: the first row stands for all."""
        key = (found.array, found.message.partition(":")[0])
        known = problems.get(key)
        problems[key] = found if known is None else replace(known, rows=known.rows + found.rows)

    if dataset.card.complete:
        digest = sha256(dataset.folder / DATA_NAME)
        if digest != dataset.card.sha256:
            message = (
                f"the file was changed after it was written: sha256 {digest}, card says {dataset.card.sha256}"
            )
            report(Problem(DATA_NAME, None, message))
    start = dataset.episode_start.numpy()
    for problem in episode_problems(dataset.card.env, start):
        report(problem)
    if (np.diff(start) < 1).any():
        return list(problems.values())  # rows cannot be told apart into episodes: nothing more can be said
    unreadable: set[str] = set()
    for first, last in episode_blocks(start, max(1, BLOCK_BYTES // dataset.row_bytes)):
        begin, end = int(start[first]), int(start[last])
        arrays = {}
        for name in dataset.card.arrays:
            try:
                arrays[name] = dataset.read_numpy(name, begin, end)
            except DataError as error:
                if name not in unreadable:
                    report(Problem(name, begin, f"cannot be read: {error}", end - begin))
                unreadable.add(name)
        for problem in row_problems(dataset.card.env, arrays, start[first : last + 1] - begin, begin):
            report(problem)
        if progress is not None:
            progress(end, int(start[-1]))
    return list(problems.values())


def require_valid(dataset: "Dataset", progress: Progress | None = None) -> None:
    """Raise `DataError` with the first problem of `dataset`, before anything is made of it."""
    problems = validate(dataset, progress)
    if problems:
        more = f" (and {len(problems) - 1} problems more)" if len(problems) > 1 else ""
        raise DataError(
            f"{dataset.folder}: {problems[0]}{more}; offmarl data validate {dataset.folder} lists them all"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def episode_blocks(episode_start: np.ndarray, rows: int) -> Iterator[tuple[int, int]]:
    """Cut episodes into runs first..last of about `rows` rows, at least one episode each."""
    first, episodes = 0, len(episode_start) - 1
    while first < episodes:
        last = int(np.searchsorted(episode_start, episode_start[first] + rows, side="right")) - 1
        last = min(max(last, first + 1), episodes)
        yield first, last
        first = last


def episode_problems(spec: EnvSpec, episode_start: np.ndarray) -> Iterator[Problem]:
    """Check that episodes lie one after another, each with a step, a final observation and an end in time."""
    if episode_start[0] != 0:
        yield Problem("episode_start", None, f"the first episode starts at row {episode_start[0]}, not at 0")
    length = np.diff(episode_start)
    short = np.flatnonzero(length < 2)
    if len(short):
        episode = int(short[0])
        message = (
            f"an episode needs two rows: episode {episode} has {length[episode]} "
            f"(rows {episode_start[episode]} to {episode_start[episode + 1]})"
        )
        yield Problem("episode_start", int(episode_start[episode]), message, len(short))
        return  # with these lengths nothing more can be said
    long = np.flatnonzero(length - 1 > spec.horizon)
    if len(long):
        episode = int(long[0])
        message = (
            f"longer than the horizon of {spec.horizon}: episode {episode} has {length[episode] - 1} steps; give "
            f"the task a horizon of {length.max() - 1}, or cut the episodes"
        )
        yield Problem("episode_start", int(episode_start[episode]), message, len(long))


def row_problems(
    spec: EnvSpec, arrays: Mapping[str, np.ndarray], episode_start: np.ndarray, first_row: int
) -> Iterator[Problem]:
    """Check rows of whole episodes: `episode_start` [E + 1] counts from 0, row 0 is called `first_row`."""
    rows = int(episode_start[-1])
    final = np.zeros(rows, dtype=bool)
    final[episode_start[1:] - 1] = True

    def first(bad: np.ndarray) -> tuple[int, int]:
        """Find the first row where `bad` [R, ...] holds, and how many there are."""
        where = np.flatnonzero(bad.reshape(rows, -1).any(axis=1))
        return int(where[0]), len(where)

    finite = True
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            finite = False
            row, count = first(~np.isfinite(values))
            value = values[row][~np.isfinite(values[row])].ravel()[0]
            yield Problem(name, first_row + row, f"not a finite number: {value}", count)
    for name in ("terminated", "truncated", "legal", "alive"):
        if name in arrays and arrays[name].max(initial=0) > 1:
            row, count = first(arrays[name] > 1)
            yield Problem(name, first_row + row, f"a flag must be 0 or 1: {arrays[name][row].max()}", count)
    if "terminated" in arrays and "truncated" in arrays:
        ended = (arrays["terminated"] | arrays["truncated"]) != 0
        expected = np.zeros(rows, dtype=bool)
        expected[episode_start[1:] - 2] = True
        if (expected & ~ended).any():
            row, count = first(expected & ~ended)
            message = "episode without an end: neither terminated nor truncated at its last action"
            yield Problem("terminated", first_row + row, message, count)
        if (ended & ~expected).any():
            row, count = first(ended & ~expected)
            name = "terminated" if arrays["terminated"][row] else "truncated"
            yield Problem(name, first_row + row, "end flag inside an episode", count)
    if spec.rendered and "state" in arrays and finite:
        states = torch.from_numpy(arrays["state"])
        wrong = impossible(spec, states).numpy()
        begins = torch.from_numpy(episode_start[:-1])
        wrong[episode_start[:-1]] |= no_beginning(spec, states[begins]).numpy()
        if wrong.any():
            row, count = first(wrong)
            message = f"no state of {spec.id} with these options: were they collected on another map?"
            yield Problem("state", first_row + row, message, count)
    if "action" in arrays:
        yield from _action_problems(spec, arrays, final, first_row)
    if finite and "obs" in arrays:
        yield from _padding_problems(spec, arrays["obs"], first_row)
    if finite and "agent_reward" in arrays and "team_reward" in arrays:
        agent = arrays["agent_reward"].astype(np.float64)
        difference = np.abs(agent.sum(axis=1) - arrays["team_reward"])
        # float32 rounding of N summands, relative to their size and not to that of their sum
        relative = max(1e-5, 2 * spec.n_agents * float(np.finfo(np.float32).eps))
        wrong = difference > relative * np.abs(agent).sum(axis=1) + 1e-6
        if wrong.any():
            row, count = first(wrong)
            message = (
                f"team reward is not the sum of the agents': {arrays['team_reward'][row]} "
                f"against {agent[row].sum():.6g}"
            )
            yield Problem("team_reward", first_row + row, message, count)
    if finite:
        yield from _last_row_problems(arrays, episode_start[1:] - 1, first_row)


def _action_problems(
    spec: EnvSpec, arrays: Mapping[str, np.ndarray], final: np.ndarray, first_row: int
) -> Iterator[Problem]:
    """Check that actions exist and were legal; the last row of an episode holds none."""
    action = arrays["action"]
    if not spec.discrete:
        outside = ~final[:, None, None] & (np.abs(action) > 1)
        if outside.any():
            rows = np.flatnonzero(outside.any(axis=(1, 2)))
            value = action[rows[0]][outside[rows[0]]][0]
            yield Problem("action", first_row + int(rows[0]), f"outside [-1, 1]: {value}", len(rows))
        return
    choices = np.array([len(names) for names in spec.action_names])  # [N]
    unknown = (action < 0) | (action >= choices)
    if unknown.any():
        rows, agents = np.nonzero(unknown)
        agent = agents[0]
        message = f"no such choice: agent {agent} took {action[rows[0], agent]} of {choices[agent]}"
        yield Problem("action", first_row + int(rows[0]), message, len(np.unique(rows)))
    elif "legal" in arrays:
        taken = np.take_along_axis(arrays["legal"], action[..., None].astype(np.int64), axis=2)[..., 0]
        illegal = (taken == 0) & ~final[:, None]
        if "alive" in arrays:
            illegal &= arrays["alive"] != 0
        if illegal.any():
            rows, agents = np.nonzero(illegal)
            message = f"illegal action taken: agent {agents[0]} took {action[rows[0], agents[0]]}"
            yield Problem("action", first_row + int(rows[0]), message, len(np.unique(rows)))


def _padding_problems(spec: EnvSpec, obs: np.ndarray, first_row: int) -> Iterator[Problem]:
    """Check that behind what a narrower agent observes there are zeros."""
    for agent, names in enumerate(spec.obs_names):
        padding = obs[:, agent, len(names) :]  # [R, O - width]
        if padding.any():
            row, entry = np.argwhere(padding)[0]
            count = int(padding.any(axis=1).sum())
            message = (
                f"padding must be 0: agent {agent} observes {len(names)} numbers, behind them stands "
                f"{padding[row, entry]}"
            )
            yield Problem("obs", first_row + int(row), message, count)


def _last_row_problems(
    arrays: Mapping[str, np.ndarray], last_rows: np.ndarray, first_row: int
) -> Iterator[Problem]:
    """Check that the last row of an episode, which holds its final observation, holds no action and no reward."""
    for name in ("action", "team_reward", "agent_reward"):
        if name in arrays and arrays[name][last_rows].any():
            values = arrays[name][last_rows].reshape(len(last_rows), -1)
            episode, entry = np.argwhere(values)[0]
            count = int(values.any(axis=1).sum())
            message = (
                f"must be 0 in the last row of an episode, which is for the final observation: "
                f"{values[episode, entry]}"
            )
            yield Problem(name, first_row + int(last_rows[episode]), message, count)
