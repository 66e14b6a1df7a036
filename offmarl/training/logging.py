"""Metrics of a training run: a line of JSON and TensorBoard scalars every so many steps."""

import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from offmarl.atomic import write_text


class Averages:
    """Means of metrics [S] over the steps since the last reading; a step may leave some metrics out."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Count one step."""
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, list[float]]:
        """Means per seed, and start again."""
        means = {name: (total / self._counts[name]).tolist() for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class MetricsLog:
    """`metrics.jsonl`, one line a reading: {"step": 50, "critic_loss": {"mean": 0.1, "seeds": [0.1]}, ...}.

    Lines after `step` are dropped when opening, so that a resumed run has every step once.
    """

    def __init__(self, path: Path, step: int, tensorboard: Path | None) -> None:
        lines = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._board: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, list[float]]) -> None:
        """Add one reading, values per seed."""
        line: dict[str, Any] = {"step": step}
        for name, seeds in metrics.items():
            line[name] = {"mean": fmean(seeds), "seeds": seeds}
            if self._board is not None:
                self._board.add_scalar(name, fmean(seeds), step)
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of `path`, none if it does not exist, up to one that a crash cut short or something damaged."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines
