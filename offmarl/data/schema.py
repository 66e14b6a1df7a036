"""What a dataset folder holds: `dataset.json` (the card) and the arrays of `data.h5`.

Where hundreds of agents look at one map (`EnvSpec.rendered`) only its states are stored; what is observed follows.

Shapes: R rows, E episodes, N agents, O observation, A action dimensions, K discrete choices, D state.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor

from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, UsageError
from offmarl.stored_json import read_versioned

SCHEMA_VERSION = 1
FORMAT = "offmarl"  # root attribute of every data.h5
CARD_NAME = "dataset.json"
DATA_NAME = "data.h5"
NUMBERS = "biuf"  # kinds of dtypes: flags, integers and floats
ID_GRAMMAR = re.compile(r"(?:[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*/)+[A-Za-z0-9_]+(?:[-.][A-Za-z0-9_]+)*-v\d+")


def check_id(dataset_id: str) -> str:
    """Return `dataset_id` if it is `namespace/name-vN` (namespaces may nest), else raise `UsageError`."""
    if not ID_GRAMMAR.fullmatch(dataset_id):
        raise UsageError(
            f"'{dataset_id}' is no dataset id: expected namespace/name-vN, for example mpe_spread/expert-v0"
        )
    return dataset_id


class ArrayLayout(NamedTuple):
    """How one array looks in the file."""

    shape: tuple[int, ...]  # of one row
    dtype: str  # as numpy spells it
    required: bool


def array_layout(spec: EnvSpec) -> dict[str, ArrayLayout]:
    """Say which arrays a dataset of `spec` must and may hold; flags and choices take narrow integers.

    Where `spec.rendered`, no observation is stored: `Dataset.read("obs")` makes them of the state. Such a dataset is
    compressed, and a few bytes a step and unit.
    """
    n_agents, width = spec.n_agents, spec.action_dim
    if spec.discrete:
        action = ArrayLayout((n_agents,), "uint8" if width <= 256 else "int32", True)
    else:
        action = ArrayLayout((n_agents, width), "float32", True)
    layout = {
        "obs": ArrayLayout((n_agents, spec.obs_dim), "float32", True),
        "state": ArrayLayout((spec.state_dim,), "float32", False),
        "action": action,
        "legal": ArrayLayout((n_agents, width), "uint8", False),
        "behaviour_probability": ArrayLayout((n_agents,), "float32", False),  # of the choices that were made
        "team_reward": ArrayLayout((), "float32", True),
        "agent_reward": ArrayLayout((n_agents,), "float32", False),
        "terminated": ArrayLayout((), "uint8", True),
        "truncated": ArrayLayout((), "uint8", True),
        "alive": ArrayLayout((n_agents,), "uint8", False),
        "position": ArrayLayout((n_agents, 2), "float32", False),
    }
    if spec.rendered:  # what is observed follows from the state, and is rendered when it is asked for
        layout["state"] = layout["state"]._replace(required=True)
        del layout["obs"], layout["position"]
    if not spec.state_dim:
        del layout["state"]
    if not spec.discrete:
        del layout["legal"]
    if not spec.discrete or spec.rendered:
        del layout["behaviour_probability"]
    return layout


class StoredArray(BaseModel):
    """Shape and type of an array as the card announces it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...]
    dtype: str


class DatasetCard(BaseModel):
    """The contents of `dataset.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    id: str
    created: str  # ISO 8601, UTC
    complete: bool  # false while a collection is under way, or was interrupted
    env: EnvSpec
    episodes: int = 0
    transitions: int = 0
    rows: int = 0  # transitions + episodes: the last row of an episode holds its final observation
    arrays: dict[str, StoredArray] = {}
    annotations: dict[str, StoredArray] = {}  # facts about each episode, hidden from learners
    provenance: dict[str, Any] = {}  # command, seed, behaviour, versions
    statistics: dict[str, Any] = Field(default={}, validate_default=True)
    references: dict[str, float] | None = None  # {"random", "expert"}: mean over agents of the episode return
    bytes: int = 0  # size of data.h5
    sha256: str = ""  # of data.h5

    @field_validator("id")
    @classmethod
    def _grammatical(cls, value: str) -> str:
        if not ID_GRAMMAR.fullmatch(value):
            raise ValueError("expected namespace/name-vN")
        return value

    @field_validator("created")
    @classmethod
    def _dated(cls, value: str) -> str:
        datetime.fromisoformat(value)
        return value

    @field_validator("references")
    @classmethod
    def _measured(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and value.keys() != {"random", "expert"}:
            raise ValueError(f"expected 'random' and 'expert', not {', '.join(value) or 'nothing'}")
        return value

    @field_validator("statistics")
    @classmethod
    def _summarised(cls, value: dict[str, Any], others: ValidationInfo) -> dict[str, Any]:
        """Make sure that what is complete says what its episodes earned."""
        earned = value.get("return")
        numbers = earned if isinstance(earned, dict) else {}
        if others.data.get("complete") and not all(
            isinstance(numbers.get(name), float) for name in ("mean", "std", "min", "max")
        ):
            raise ValueError("'return' needs the numbers mean, std, min and max")
        return value


def read_card(folder: Path) -> DatasetCard:
    """Read `dataset.json` of `folder`.

    Raises `DataError` for a folder or file that is missing, is not JSON, lacks a field or comes from a newer
    offmarl.
    """
    path = folder / CARD_NAME
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: a dataset is a folder with {CARD_NAME} and {DATA_NAME}")
    return read_versioned(path, "dataset", "dataset card", DatasetCard, SCHEMA_VERSION)[0]


def stored_arrays(
    spec: EnvSpec, arrays: Mapping[str, Tensor | np.ndarray], rows: int
) -> dict[str, np.ndarray]:
    """Convert arrays [rows, ...] to what the file holds.

    Raises `DataError` for one that is missing, unknown, misshapen or not exact in the stored type.
    """
    layout = array_layout(spec)
    for name in arrays:
        if name not in layout:
            raise DataError(f"array '{name}' has no place in such a dataset: {', '.join(layout)}")
    converted = {}
    for name, expected in layout.items():
        if name not in arrays:
            if expected.required:
                raise DataError(f"array '{name}' is missing")
            continue
        values = np.asarray(arrays[name])
        if values.shape != (rows, *expected.shape):
            raise DataError(
                f"array '{name}' has shape {list(values.shape)}, expected {[rows, *expected.shape]}"
            )
        if values.dtype.kind not in NUMBERS:
            raise DataError(f"array '{name}' holds {values.dtype}, expected numbers")
        with np.errstate(invalid="ignore", over="ignore"):  # what does not fit is told below
            stored = values.astype(expected.dtype)
        if expected.dtype != "float32" and not np.array_equal(stored, values):
            where = np.argwhere(stored != values)[0]
            raise DataError(
                f"array '{name}', row {where[0]}: {values[tuple(where)]} is not a {expected.dtype}"
            )
        converted[name] = stored
    return converted
