"""Classes that people bring along: `module:Class` instead of a name."""

from dataclasses import is_dataclass
from importlib import import_module
from typing import TypeVar

from offmarl.errors import UsageError

Base = TypeVar("Base")


def own_class(kind: str, target: str, base: type[Base]) -> type[Base]:
    """Import `module:Class`, a subclass of `base`; modules of the current folder are found by the command line.

    Raises `UsageError` saying which part of `target` is not there, of what the class has to be a subclass, which
    methods it lacks, or that its settings are no dataclass.
    """
    module, _, name = target.partition(":")
    if not name or not all(module.split(".")):
        raise UsageError(f"{kind} '{target}': expected module:Class, for example my_module:MyClass")
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        raise UsageError(f"{kind} '{target}': cannot import '{module}' ({error})") from error
    except AttributeError as error:
        raise UsageError(f"{kind} '{target}': '{module}' has no '{name}'") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{kind} '{target}': not a subclass of {base.__module__}.{base.__qualname__}")
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise UsageError(f"{kind} '{target}': it has no {', '.join(lacking)}")
    if not is_dataclass(getattr(found, "config_class", None)):
        raise UsageError(f"{kind} '{target}': its config_class is to be a dataclass of its settings")
    return found
