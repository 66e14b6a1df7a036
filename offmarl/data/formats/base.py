"""What a format is: a way to read somebody else's dataset as whole episodes, and to write ours as one of theirs.

A `Source` is an open foreign dataset. It says how long its episodes are and what its arrays look like, and is
read in blocks of whole episodes, so that a file larger than memory can be imported.
Shapes: R rows, E episodes, T time, N agents, O observation, A action dimensions, K discrete choices, D state.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np

from offmarl.data.formats.beside import Beside
from offmarl.data.hdf5 import DAMAGE
from offmarl.data.schema import NUMBERS
from offmarl.data.store import Dataset
from offmarl.data.validate import BLOCK_BYTES, episode_blocks
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, OffmarlError, UsageError
from offmarl.reporter import Progress

TeamReward = Literal["sum", "copy"]
MOST_CHOICES = 1 << 16  # of one agent; more are a damaged number rather than a task


@dataclass(frozen=True)
class ReadOptions:
    """What the person says where a format does not."""

    known: EnvSpec | None = None  # the environment that --env names, if offmarl knows it
    horizon: int | None = None  # steps of an episode that ran out of time
    team_reward: TeamReward | None = None  # are stored rewards shares of the team's, or copies of it?

    def kept_agents(self, found: int) -> int:
        """How many agents to import: background agents, which the environment plays itself, are left out."""
        if self.known is None or found != self.known.n_agents + len(self.known.background):
            return found
        return self.known.n_agents


@dataclass
class Contents:
    """What a foreign dataset holds."""

    steps: np.ndarray  # [E] int64, actions in each episode
    obs_widths: tuple[int, ...]  # per agent
    discrete: bool
    action_widths: tuple[int, ...]  # per agent: dimensions, or number of choices
    state_dim: int = 0  # D, zero without a state
    agents: tuple[str, ...] = ()  # names, where the format has them
    has_legal: bool = False
    padded: bool = False  # observations of narrower agents are padded to the widest
    shared_reward: bool = False  # every agent was paid the same at every step
    has_agent_reward: bool = False
    horizon: int | None = None  # where the format, or a person, says so
    notes: list[str] = field(default_factory=list)  # what the reader should know of this import

    def __post_init__(self) -> None:
        """Raise `DataError` where no agent observes, or does, anything."""
        if not any(self.obs_widths):
            raise DataError(f"observations are empty for all agents ({self.n_agents})")
        if not any(self.action_widths):
            raise DataError(f"actions are empty, or all -1, for all agents ({self.n_agents})")
        if self.discrete and max(self.action_widths) > MOST_CHOICES:
            raise DataError(
                f"an agent has {max(self.action_widths):,} choices, expected at most {MOST_CHOICES:,}"
            )

    @property
    def n_agents(self) -> int:
        """N."""
        return len(self.obs_widths)


class Source(ABC):
    """An open foreign dataset."""

    path: Path
    contents: Contents
    beside: Beside | None = None  # what an export of offmarl stored beside it
    cut_by_horizon: ClassVar[bool] = False  # whether --horizon says where episodes end, also of a known task

    @abstractmethod
    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows [R, ...] of episodes first..last, T + 1 rows an episode, named as in a dataset of offmarl.

        Raises `DataError` naming the array, its shape and what was expected.
        """

    @abstractmethod
    def shown(self, kind: Literal["obs", "action", "state"], agent: int) -> str:
        """The array that holds `kind` of `agent`, with its shape, as an error would name it."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that the dataset consists of."""

    def close(self) -> None:  # noqa: B027 (some formats hold nothing open)
        """Close the files."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    notes: tuple[str, ...]  # what the format cannot hold, and where it went
    usage: str  # how the format's own library opens it


@dataclass(frozen=True)
class Format:
    """One foreign format. `recognise` is cheap and never raises; `write` is None where there is no exporter.

    Where an export is a folder, `foreign` finds in one what does not belong to the dataset.
    """

    name: str
    recognise: Callable[[Path], bool]
    open: Callable[[Path, ReadOptions], Source]
    write: Callable[[Dataset, Path, Progress], Exported] | None = None
    foreign: Callable[[Path], list[Path]] | None = None

    @property
    def folder(self) -> bool:
        """Whether an export is a folder rather than a file."""
        return self.foreign is not None


def require(package: str, extra: str) -> Any:
    """Import an optional package. Raises `UsageError` with the line that installs it."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(
            f"the package '{package}' is not installed: pip install 'offmarl[{extra}]'"
        ) from error


def with_final_rows(values: np.ndarray, steps: np.ndarray, final: np.ndarray | None = None) -> np.ndarray:
    """Insert a last row after each episode: `final` [E, ...], or zeros.

    `values` [sum of T, ...] holds `steps` [E] rows an episode; the answer is [sum of (T + 1), ...].
    """
    ends = np.cumsum(steps + 1) - 1
    rows = np.zeros((len(values) + len(steps), *values.shape[1:]), dtype=values.dtype)
    inner = np.ones(len(rows), dtype=bool)
    inner[ends] = False
    rows[inner] = values
    if final is not None:
        rows[ends] = final
    return rows


def last_of_each(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The last of `steps` [E] rows of each episode, [E, ...]."""
    return values[np.cumsum(steps) - 1]


def paid(rewards: np.ndarray, convention: TeamReward, begin: int) -> dict[str, np.ndarray]:
    """Turn stored rewards [T, N] into `team_reward` [T] and, where they are the agents' own, `agent_reward`.

    `copy`: everybody's entry is the team's reward. `sum`: entries are shares, and the team's is their sum.
    `begin` is the number of the first step. Raises `UsageError` for copies that are none.
    """
    rewards = rewards.astype(np.float32)
    if convention == "copy":
        differ = np.flatnonzero(rewards.max(axis=1) > rewards.min(axis=1))
        if len(differ):
            stored = ", ".join(f"{reward:g}" for reward in rewards[differ[0], :8])
            raise UsageError(
                f"--team-reward copy: at step {begin + int(differ[0]):,} the agents' rewards differ ({stored}), so "
                "they are no copies of the team's: --team-reward sum, which takes them for shares"
            )
        return {"team_reward": rewards[:, 0]}
    return {"team_reward": rewards.sum(axis=1, dtype=np.float64).astype(np.float32), "agent_reward": rewards}


def left_out(kept: int, found: int) -> str:
    """Say that agents behind the first `kept` of `found` are not imported."""
    agents = f"agent {kept} is" if found == kept + 1 else f"agents {kept} to {found - 1} are"
    return f"{agents} left out: the environment plays the part itself"


def convention_note(convention: TeamReward, shared: bool, default: bool) -> str:
    """Say how the team reward was made."""
    how = {
        "sum": "team_reward is the sum of the agents' stored rewards",
        "copy": "team_reward is the reward that is stored for every agent",
    }[convention]
    same = "; all agents are paid the same at every step" if shared else ""
    other = "copy" if convention == "sum" else "sum"
    return f"{how}{same}" + (f" (--team-reward {other} reads it otherwise)" if default else "")


def ends_of(steps: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> dict[str, np.ndarray]:
    """Flags [R] of both kinds from one flag an episode [E]: they stand on the row of the last action."""
    last_action = np.cumsum(steps + 1) - 2
    flags = {}
    for name, ended in (("terminated", terminated), ("truncated", truncated)):
        rows = np.zeros(int((steps + 1).sum()), dtype=np.uint8)
        rows[last_action] = ended
        flags[name] = rows
    return flags


def same_length(steps: np.ndarray) -> bool:
    """Whether every episode is equally long, which is how a time limit looks."""
    return len(steps) > 1 and bool((steps == steps[0]).all())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of a file before what is wrong with its arrays, all on one line."""
    try:
        yield
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}: {' '.join(str(error).split())}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """As `naming`, and turn whatever a library makes of a damaged file into a `DataError`."""
    try:
        with naming(path):
            yield
    except OffmarlError:
        raise
    except (
        *DAMAGE,
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        IndexError,
        TypeError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is damaged, or was cut short: {reason[:300]}") from error


def choices_of(name: str, largest: float) -> int:
    """How many choices there are in an array whose largest is `largest`. Raises `DataError` for what is no choice."""
    if not -1 <= largest < MOST_CHOICES:
        raise DataError(
            f"array '{name}' holds {largest:g}, expected choices from 0 to {MOST_CHOICES - 1:,} at most"
        )
    return int(largest) + 1


def check_numbers(name: str, array: np.ndarray | h5py.Dataset) -> None:
    """Raise `DataError` where an array holds something else than numbers, such as texts."""
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"array '{name}' holds {array.dtype}, expected numbers")


def array_of(group: h5py.Group, name: str, dimensions: int | None = None) -> h5py.Dataset:
    """An array of numbers in an HDF5 file. Raises `DataError` for one that is missing or has other dimensions."""
    try:
        found = group[name]
    except KeyError:
        found = None
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"array '{name}' is missing; there are: {', '.join(sorted(group)[:12]) or 'none'}")
    if dimensions is not None and found.ndim != dimensions:
        raise DataError(f"array '{name}' has shape {list(found.shape)}, expected {dimensions} dimensions")
    check_numbers(name, found)
    return found


def natural_order(name: str) -> list[str | int]:
    """Sort by this to have agent_2 before agent_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    try:
        with open(path, "rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def hdf5_keys(path: Path) -> set[str]:
    """Names at the root of an HDF5 file; none for what is no such file, or is damaged."""
    if not is_hdf5(path):
        return set()
    try:
        with h5py.File(path, "r", locking=False) as file:
            return set(file)
    except (OSError, RuntimeError):
        return set()


def dataset_blocks(dataset: Dataset, progress: Progress) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Read a dataset in blocks of whole episodes: first and last episode, and their rows of every array."""
    start, names, row_bytes = dataset.episode_start.numpy(), list(dataset.card.arrays), dataset.row_bytes
    if dataset.spec.rendered:
        names.append("obs")
        row_bytes += 4 * dataset.spec.n_agents * dataset.spec.obs_dim
    for first, last in episode_blocks(start, max(1, BLOCK_BYTES // row_bytes)):
        begin, end = int(start[first]), int(start[last])
        yield first, last, {name: dataset.read_numpy(name, begin, end) for name in names}
        progress(end, dataset.card.rows)


def action_rows(steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rows that hold an action: all but the last of each episode of `steps` [E] actions."""
    lengths = np.asarray(steps) + 1
    inner = np.ones(int(lengths.sum()), dtype=bool)
    inner[np.cumsum(lengths) - 1] = False
    return np.flatnonzero(inner)
