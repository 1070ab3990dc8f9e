"""How to speak and how a model runs: every option once, with its type, default, limits and help.

The library, the command line, the server and the benchmark all take their options from these classes. Nothing
heavy is imported here, so that ``--help`` stays quick.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from . import defaults
from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

P = ParamSpec("P")
Self_ = TypeVar("Self_")
Text = TypeVar("Text")
Options = TypeVar("Options")
Result = TypeVar("Result")

MAX_SEED = 2**63 - 1
MAX_THREADS = 4096  # and slots


@dataclass(frozen=True)
class Segment:
    """Something already said: its text, its speaker and its codes (F, K) int32. Context for what follows."""

    text: str
    speaker: int
    codes: NDArray[np.int32]


@dataclass(frozen=True)
class Option:
    """What holds for a value: its limits (``low`` itself excluded if ``open_low``) or choices, and help for people.

    ``rule`` is the sentence of the error message up to ", not VALUE"; ``unset`` says what None stands for.
    """

    help: str
    rule: str = ""
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()
    unit: str = ""
    unset: str = ""

    def allows(self, value: Any) -> bool:
        """Whether a value other than None keeps within the limits."""
        if self.choices:
            return value in self.choices
        if self.low is None:
            return True
        try:
            if self.whole and operator.index(value) != value:
                return False
            above = value > self.low if self.open_low else value >= self.low
            return bool(above and (value < math.inf if self.high is None else value <= self.high))
        except TypeError:  # no number at all
            return False


def option(default: Any, help: str, rule: str = "", **limits: Any) -> Any:
    """A field of an options class: its default and, as ``Option``, what holds for it."""
    return dataclasses.field(default=default, metadata={"option": Option(help, rule, **limits)})


def option_of(options: type, name: str) -> Option:
    """What holds for a field of an options class."""
    found: Option = next(f for f in dataclasses.fields(options) if f.name == name).metadata["option"]
    return found


def check(options: Any) -> None:
    """Raises InputError for the first value that breaks its rule; None stands for "not given"."""
    for field in dataclasses.fields(options):
        value, rules = getattr(options, field.name), field.metadata.get("option")
        if rules is not None and value is not None and not rules.allows(value):
            raise InputError(f"{rules.rule}, not {value}{rules.unit}")


@dataclass(frozen=True, kw_only=True)
class SpeechOptions:
    """How to speak. Raises InputError for a value that breaks its rule."""

    speaker: int = option(0, "The speaker's number.", "the speaker's number must be at least 0", low=0, whole=True)
    context: Sequence[Segment] = option((), "What was said before, oldest first.")
    template: str | None = option(
        None,
        'How speaker and text are put together, such as "[{speaker}]{text}".',
        unset="the model's own",
    )
    temperature: float | None = option(
        None,
        "Variation; 0 always takes the likeliest code.",
        "the temperature must lie in 0..10",
        low=0,
        high=10,
        unset=f"the model's own, else {defaults.TEMPERATURE:g}",
    )
    top_k: int | None = option(
        None,
        "Draw from this many likeliest codes.",
        "top-k must be at least 1",
        low=1,
        whole=True,
        unset=f"the model's own, else {defaults.TOP_K}",
    )
    seed: int | None = option(
        None,
        "Repeats a speech exactly.",
        "the seed must be a whole number in 0..2**63-1",
        low=0,
        high=MAX_SEED,
        whole=True,
        unset="random",
    )
    max_seconds: float | None = option(
        None,
        "The longest audio, in seconds.",
        "the longest audio must be a positive time",
        low=0,
        open_low=True,
        unit=" s",
        unset=f"{defaults.LONGEST_UTTERANCE:g} for each chunk of the text",
    )
    # More history makes a steadier voice and a dearer prompt; small models lose the thread when it gets long.
    history: float = option(
        15.0,
        "Seconds of what a long text has said that are context for what follows; keeps the voice steady.",
        "the history must be a time from 0 on",
        low=0,
        unit=" s",
    )
    buffer_frames: int = option(
        1,
        "Frames of sound to hand on at once; the sound does not depend on it.",
        "the buffer must be at least 1 frame",
        low=1,
        whole=True,
    )
    pace: float = option(
        1.0,
        "Seconds of sound that the listener hears in a second; who runs dry first goes first.",
        "the pace must be positive",
        low=0,
        open_low=True,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model runs. Raises InputError for a value that breaks its rule."""

    threads: int | None = option(
        None,
        "CPU threads.",
        f"threads must lie in 1..{MAX_THREADS}",
        low=1,
        high=MAX_THREADS,
        unset="the CPUs at hand",
    )
    slots: int = option(1, "Speeches made at once.", f"slots must lie in 1..{MAX_THREADS}", low=1, high=MAX_THREADS)
    gpu: bool = option(True, "Let llama.cpp offload to a GPU, where its build can.")
    backbone: str = option(
        "auto",
        "What runs the backbone: this package's own code, or llama.cpp (for GPUs).",
        "the backbone runs on auto, native or llama",
        choices=("auto", "native", "llama"),
    )
    decoder: str = option(
        "auto",
        "What runs the depth decoder: this package's own code, or llama.cpp (for GPUs).",
        "the depth decoder runs on auto, native or llama",
        choices=("auto", "native", "llama"),
    )
    codec: str = option(
        "native",
        "What runs the Mimi codec: this package's own code, or kyutai's moshi on torch (an extra).",
        "the codec runs on native or moshi",
        choices=("native", "moshi"),
    )
    codebooks: int | None = option(
        None,
        "Decode the sound from the first N codebooks only: coarser and a little faster.",
        "codebooks must be at least 1",
        low=1,
        unset="all",
    )
    # 64 KiB a position with CSM-1B: 10 MiB for ten seconds of a voice and their transcript, so some 25 voices.
    prefix_cache: int = option(
        256 * 2**20,
        "Bytes in which what contexts lead to is kept for the next request; 0 keeps none.",
        "prefix_cache must be at least 0 bytes",
        low=0,
    )
    ignore_end: bool = option(False, "Speak on to the longest length whatever the model says: for measurements.")

    def __post_init__(self) -> None:
        check(self)


def takes_options(
    options: Callable[P, Options],
) -> Callable[[Callable[[Self_, Text, Options], Result]], Callable[Concatenate[Self_, Text, P], Result]]:
    """Lets a method ``(self, text, options)`` be called as ``(self, text, **its fields)``, typed so."""

    def decorate(method: Callable[[Self_, Text, Options], Result]) -> Callable[Concatenate[Self_, Text, P], Result]:
        def call(self: Self_, text: Text, *args: P.args, **fields: P.kwargs) -> Result:
            return method(self, text, options(*args, **fields))

        functools.update_wrapper(call, method)
        own = list(inspect.signature(method).parameters.values())[:2]
        spelled = inspect.signature(options).parameters.values()
        call.__signature__ = inspect.Signature([*own, *spelled])  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]  # it may be called by keyword, too

    return decorate
