"""Classes that people bring along: `module:Class` instead of a name."""

from importlib import import_module
from typing import TypeVar

from offmarl.errors import UsageError

Base = TypeVar("Base")


def own_class(kind: str, target: str, base: type[Base]) -> type[Base]:
    """Import `module:Class`, a subclass of `base`; modules of the current folder are found by the command line.

    Raises `UsageError` saying which part of `target` is not there, or of what the class has to be a subclass.
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
    return found
