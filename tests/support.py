"""Helpers that several tests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.source import open_checkpoint, with_overrides

from csm_hybrid.engine.request import Request
from csm_hybrid.engine.runner import Utterance
from csm_hybrid.speech import Model

WAIT = 60.0  # seconds, for what must come
VOICE = Path(__file__).parent / "voice"


def to_bundle(checkpoint: Path, path: Path, kind: str, *, name: str | None = None) -> Path:
    """Converts a checkpoint directory to a bundle of type ``kind`` at ``path``; returns ``path``."""
    convert(with_overrides(open_checkpoint(checkpoint), name=name, prompt_template=None), path, recipe_named(kind))
    return path


def spoken(model: Model, requests: Sequence[Request]) -> np.ndarray:
    """What the engine makes of requests that continue one another, all handed to it at once."""
    utterances: list[Utterance] = []
    news = threading.Event()
    for request in requests:
        after = utterances[-1] if utterances else None
        utterances.append(model.runner.submit(request, after=after, notify=news.set))
    while not utterances[-1].ended:
        assert news.wait(WAIT)
        news.clear()
    return np.concatenate([u.take(u.ready_frames) for u in utterances if u.ready_frames])


def settle(model: Model) -> None:
    """Waits until the engine has nothing to do."""
    deadline = time.monotonic() + WAIT
    while model.runner.load.running or model.runner.load.waiting:
        assert time.monotonic() < deadline, "something still holds a slot, or waits for one"
        time.sleep(0.001)
