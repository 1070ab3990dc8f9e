"""Progress on standard error: a bar on a terminal, else a line per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import click


class Progress(Protocol):
    """Shows how far a long work has come."""

    def stage(self, label: str, length: int) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a stage of ``length`` units; what is entered is called with the units done since the last call."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, label: str, length: int) -> Iterator[Callable[[int], None]]:
        """A stage that is not shown."""
        yield lambda done: None


class Terminal:
    """Bars on a terminal, one line per stage elsewhere."""

    @contextmanager
    def stage(self, label: str, length: int) -> Iterator[Callable[[int], None]]:
        """A stage as a bar or a line on standard error."""
        if not sys.stderr.isatty():
            click.echo(label, err=True)
            yield lambda done: None
            return
        with click.progressbar(length=length, label=label, file=sys.stderr, width=30) as bar:
            yield bar.update
