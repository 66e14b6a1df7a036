"""Decomposers by name."""

from importlib import import_module
from typing import Any

import torch

from offmarl.credit.base import Decomposer, Progress
from offmarl.envs.base import EnvSpec
from offmarl.errors import unknown_name
from offmarl.settings import configure

DECOMPOSERS: dict[str, str] = {
    "macca": "offmarl.credit.macca:Macca",
    "mean": "offmarl.credit.baselines:EqualSplit",
}


def decomposer_class(method: str) -> type[Decomposer]:
    """Import the class behind `method`. Raises `UsageError` for an unknown name."""
    if method not in DECOMPOSERS:
        raise unknown_name("decomposition method", method, DECOMPOSERS)
    module, _, attribute = DECOMPOSERS[method].partition(":")
    found: type[Decomposer] = getattr(import_module(module), attribute)
    return found


def make_decomposer(
    method: str,
    spec: EnvSpec,
    values: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Decomposer:
    """Build the decomposer `method` for a task, with `values` over its defaults.

    Raises `UsageError` for an unknown name or setting, or a value out of range.
    """
    chosen = decomposer_class(method)
    return chosen(spec, configure(chosen.config_class, values or {}, "credit"), seed, device, progress)
