"""Settings given as `--set key=value`, applied to the dataclass that declares them."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from offmarl.errors import UsageError, unknown_name

Config = TypeVar("Config")

# Bounds that a config declares and `configure` checks.
LARGEST = 1e30  # single precision ends at 3e38: PyTorch refuses what lies beyond from deep inside
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
UpToOne = Annotated[float, Field(ge=0, le=1)]
Discount = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
# Units of each hidden layer. One of 100,000,000 would take all memory, its neighbours' too, before anyone can be told.
Hidden = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1)]


def parse_yaml(text: str) -> Any:
    """Read YAML. Raises `ValueError`, in one line, for a text that is none, or a value that does not fit its tag."""
    try:
        return yaml.safe_load(text)
    # PyYAML lets through what Python says of 2020-13-45 (ValueError) or `!!bool maybe` (KeyError).
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from error


def parse_settings(assignments: Iterable[str], sections: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Turn `["env.agents=8", "learner.alpha=5"]` into `{"env": {"agents": 8}, "learner": {"alpha": 5}}`.

    Values are read as YAML (numbers, booleans, lists, strings). Every known section is present in the
    answer. Raises `UsageError` for a text without `=`, or a section that is not in `sections`.
    """
    sections = list(sections)
    parsed: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot or not name:
            example = f"{sections[0]}.name=value"
            raise UsageError(f"--set {assignment!r}: expected section.key=value, for example {example}")
        if section not in parsed:
            raise unknown_name("section of --set", section, sections)
        try:
            parsed[section][name] = parse_yaml(text)
        except ValueError as error:
            raise UsageError(f"--set {assignment!r}: the value is not valid YAML ({error})") from error
    return parsed


def configure(config_class: type[Config], values: dict[str, Any], section: str) -> Config:
    """Build the dataclass `config_class` from `values`, checking names and types.

    Raises `UsageError` naming the key, the value and what was expected.
    """
    assert is_dataclass(config_class)
    known = [field.name for field in fields(config_class)]
    for name in values:
        if name not in known:
            raise unknown_name(f"setting of {section}", name, known)
    try:
        return TypeAdapter(_strict(config_class)).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        if not problem["loc"]:  # values that do not go together
            raise UsageError(
                f"settings of {section}: {problem['msg'].removeprefix('Value error, ')}"
            ) from error
        where = ".".join(str(part) for part in (section, *problem["loc"]))
        raise UsageError(f"--set {where}={problem['input']!r}: {problem['msg']}") from error


def departures(config: Any) -> dict[str, Any]:
    """List the settings of a dataclass that are not their defaults."""
    values = {known.name: (getattr(config, known.name), known.default) for known in fields(config)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _strict(config_class: type[Config]) -> type[Config]:
    """The class itself, told once to accept 5 for 5.0 but not "5", and to refuse unknown keys."""
    if "__pydantic_config__" not in vars(config_class):
        with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(config_class)
    return config_class
