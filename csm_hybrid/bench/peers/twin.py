"""The model's synthetic twin: the same sizes and types with random weights, which must take the same time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from ...speech import Model
from .. import speech
from ..synthetic_spec import model_of
from . import Pair, Setting


def twin(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """A step of speech, in milliseconds; the argument is the type that the twin is quantised to."""
    path = model_of(str(setting.path), argument)
    other = stack.enter_context(Model(path, replace(setting.options, ignore_end=True)))
    what = setting.speaking

    def step(model: Model) -> float:
        return speech.run(model, what)["step"]

    return [Pair("speech, a step", "ms", lambda: step(other), lambda: step(setting.model))]
