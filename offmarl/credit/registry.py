"""Decomposers by name. Importing the names is cheap: PyTorch is loaded with the first class."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from offmarl.errors import UsageError, unknown_name
from offmarl.own_code import own_class
from offmarl.settings import configure

if TYPE_CHECKING:
    import torch

    from offmarl.credit.base import Decomposer, Progress
    from offmarl.envs.base import EnvSpec

DECOMPOSERS: dict[str, str] = {
    "macca": "offmarl.credit.macca:Macca",
    "macca-paper": "offmarl.credit.macca_paper:MaccaPaper",
    "mean": "offmarl.credit.baselines:EqualSplit",
    "additive": "offmarl.credit.additive:Additive",
    "shapley": "offmarl.credit.shapley:Shapley",
    "difference": "offmarl.credit.difference:Difference",
}


def decomposer_class(method: str) -> type[Decomposer]:
    """Import the class behind `method`, a name or `module:Class`. Raises `UsageError` for an unknown one."""
    if ":" in method:
        from offmarl.credit.base import Decomposer

        return own_class("decomposition method", method, Decomposer)  # type: ignore[type-abstract]
    if method not in DECOMPOSERS:
        raise unknown_name("decomposition method", method, DECOMPOSERS)
    module, _, attribute = DECOMPOSERS[method].partition(":")
    found: type[Decomposer] = getattr(import_module(module), attribute)
    return found


def require_setting(method: str, setting: str, flag: str) -> None:
    """Raise `UsageError` for a flag that `method` has no use for, naming the methods that have."""
    if not _has_setting(method, setting):
        able = ", ".join(name for name in DECOMPOSERS if _has_setting(name, setting))
        raise UsageError(f"{flag} means nothing to the method '{method}'; it is for: {able}")


def _has_setting(method: str, setting: str) -> bool:
    return setting in (field.name for field in fields(decomposer_class(method).config_class))


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
