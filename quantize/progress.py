"""Progress on standard error: a bar where a person watches, else a line per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import click


class Progress(Protocol):
    """Something that shows how work goes on."""

    def stage(self, label: str, length: int) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a stage of ``length`` units; the value entered is told every few units done."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, label: str, length: int) -> Iterator[Callable[[int], None]]:
        """A stage that nobody watches."""
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
