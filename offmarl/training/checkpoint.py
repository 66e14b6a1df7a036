"""Checkpoints: one safetensors file with the learner's tensors, replaced atomically."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offmarl.atomic import replacing
from offmarl.errors import DataError

FORMAT = "offmarl run 1"
_LEARNER, _SAMPLING = "learner.", "sampling"


@dataclass
class Checkpoint:
    """Where a training run was after `step` updates."""

    step: int
    learner: dict[str, Tensor]  # Learner.state_dict()
    sampling: Tensor  # [S, bytes] uint8: states of the generators that draw batches
    metrics: dict[str, list[float]]  # last logged, [S] each

    def save(self, path: Path) -> None:
        """Write to `path`; a reader, or a crash, sees the old file or this one."""
        tensors = {_LEARNER + name: tensor.cpu() for name, tensor in self.learner.items()}
        metadata = {"format": FORMAT, "step": str(self.step), "metrics": json.dumps(self.metrics)}
        with replacing(path) as temporary:
            write_tensors(temporary, {**tensors, _SAMPLING: self.sampling.cpu()}, metadata)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "Checkpoint":
        """Read `path`. Raises `DataError` for a file that is missing, damaged or something else."""
        if not path.is_file():
            raise DataError(f"there is no checkpoint at {path}")
        metadata, tensors = read_tensors(path, "checkpoint", device)
        if metadata.get("format") != FORMAT or _SAMPLING not in tensors:
            raise DataError(f"{path} is no training checkpoint: its format is {metadata.get('format')!r}")
        learner = {
            name.removeprefix(_LEARNER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_LEARNER)
        }
        try:
            step, metrics = int(metadata["step"]), json.loads(metadata["metrics"])
        except (KeyError, ValueError) as error:
            raise DataError(f"{path} is damaged: its step or its metrics cannot be read ({error})") from error
        if tensors[_SAMPLING].dtype != torch.uint8:
            raise DataError(f"{path} is damaged: '{_SAMPLING}' holds {tensors[_SAMPLING].dtype}, not bytes")
        return cls(step, learner, tensors[_SAMPLING], metrics)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file. Raises `OSError` where the disk is full: the library has an error of its own for it."""
    try:
        save_file(tensors, str(path), metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def read_tensors(
    path: Path, what: str, device: torch.device | str
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and the tensors of a safetensors file; `what` it should be is for the message.

    Raises `DataError` for a file that is missing or damaged.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
            return stored.metadata() or {}, tensors
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as a {what}: {error}") from error
