"""Options of an environment, given as a mapping, read into the dataclass that declares them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from offmarl.errors import unknown_name
from offmarl.settings import configure

Options = TypeVar("Options")


def read_options(env_id: str, options_class: type[Options], values: Mapping[str, Any]) -> Options:
    """The options of `env_id`. Raises `UsageError` naming the option, the value and what was expected."""
    known = [field.name for field in fields(options_class)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown_name(f"option of {env_id}", name, known)
    return configure(options_class, dict(values), "env")
