"""How a long stage tells what it is doing, without knowing to whom."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Progress = Callable[[int, int], None]  # (done, total)


class Reporter(Protocol):
    """Somebody who watches: the terminal, a notebook, nobody."""

    def say(self, text: str) -> None:
        """One line about what happens next or has just been decided."""

    def bar(self, title: str) -> AbstractContextManager[Progress]:
        """A progress bar for the duration of a `with` block; call what it yields with (done, total)."""


class Silent:
    """Nobody watches."""

    def say(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def bar(self, title: str) -> Iterator[Progress]:
        """Count in silence."""
        yield lambda done, total: None
