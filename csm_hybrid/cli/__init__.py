"""The ``csm-hybrid`` command: parses, calls the library, and turns its errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from .. import __version__
from ..errors import CsmError

INTERRUPTED = 130  # what shells say of a program that Ctrl-C has ended: 128 + SIGINT

# Each command lives in the module of its name and is imported when it is asked for, so that --help stays quick.
COMMANDS = {
    "say": "Speak a text into an audio file, a pipe or the loudspeaker.",
    "serve": "Serve speech over HTTP, with OpenAI's API.",
    "bench": "Measure speed, where the time goes, and how near that is to the limit.",
    "quantize": "Convert a checkpoint into a single-file model.",
}


class _Failure(click.ClickException):
    def __init__(self, error: CsmError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: what was spoken is kept, and nothing half-made."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name)
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{cmd_name}", __name__), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _signals_interrupt():
                return super().invoke(ctx)
        except CsmError as error:
            raise _Failure(error) from error
        except KeyboardInterrupt:
            click.echo("\nInterrupted." if sys.stderr.isatty() else "Interrupted.", err=True)  # after ^C or a bar
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="csm-hybrid")
def main() -> None:
    """A fast, small speech engine for Sesame's CSM: text in, speech out, on a plain CPU.

    Without a model, a small embedded model speaks. Exit codes: 0 success, 1 error, 2 wrong usage or input,
    3 unusable model, 4 output that cannot be written, 5 engine failure, 130 interrupted.
    """
