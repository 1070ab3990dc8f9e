"""What a user's editor and type checker know of the public API; ``.ci/structure`` checks it, nothing runs it.

A line that must be refused is ignored by its error's code, and mypy complains of an ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import csm_hybrid
from csm_hybrid import ModelOptions, Segment, Speech, SpeechOptions, SpeechStream


def complete(words: Iterator[str]) -> None:
    """Options are typed keywords, wherever they are taken."""
    with csm_hybrid.load("model.gguf", slots=4, threads=2, backbone="llama") as model:
        assert_type(model.speak("Hello.", seed=1, speaker=0, temperature=0.5), Speech)
        assert_type(model.stream(words, history=5.0, buffer_frames=2), SpeechStream)
        anna = model.segment("anna.wav")
        model.speak("Hello.", context=[anna, Segment("Hi.", 0, np.zeros((1, 32), np.int32))])
        for samples in model.start("Hello.", SpeechOptions(seed=1)):
            assert_type(samples, NDArray[np.float32])
    assert_type(csm_hybrid.load(), csm_hybrid.Model)
    csm_hybrid.Model("model.gguf", ModelOptions(slots=2))


def refused(model: csm_hybrid.Model) -> None:
    """Names and types that are wrong."""
    model.speak("Hello.", sead=1)  # type: ignore[call-arg]
    model.speak("Hello.", temperature="hot")  # type: ignore[arg-type]
    model.stream("Hello.", 3)  # type: ignore[call-arg]
    csm_hybrid.load(slots="many")  # type: ignore[arg-type]
    csm_hybrid.load(slot=2)  # type: ignore[call-arg]
    SpeechOptions(seed=1).seed = 2  # type: ignore[misc]
