"""Errors for the person who reads them: what was wrong, with the value, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class OffmarlError(Exception):
    """Something failed; the command line prints the message on one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(OffmarlError):
    """A wrong flag, name or value: the command was never going to work (exit code 2)."""

    exit_code = 2


class DataError(OffmarlError):
    """A file or an array is not what it should be (exit code 1)."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """A `UsageError` for a name that does not exist, with the nearest names that do."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none yet'}"
    return UsageError(f"unknown {kind} '{name}': {hint}")
