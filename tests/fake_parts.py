"""Stand-ins for the towers and the codec whose results are easy to predict, and an engine of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from csm_hybrid.engine.engine import Engine
from csm_hybrid.engine.request import Request
from csm_hybrid.engine.sequence import Sequence
from csm_hybrid.errors import EngineError
from csm_hybrid.model.config import Sampling

K, WIDTH, VOCAB, FRAME_SAMPLES = 3, 2, 11, 4
GREEDY = Sampling(temperature=0.0, top_k=1)


class Config:
    backbone = SimpleNamespace(positions=2048)
    codebooks = K
    end_code = 0
    frame_rate = 12.5


class Embedder:
    """A frame becomes (its first entry, 0): what the backbone was fed can be read back."""

    def frames(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([frames[:, -1], np.zeros(len(frames))], axis=1).astype(np.float32)

    def codes(self, codes: np.ndarray) -> np.ndarray:
        return np.stack([codes[:, 0], np.zeros(len(codes))], axis=1).astype(np.float32)


class Backbone:
    """Remembers every pass; its hidden state is (last entry fed, positions so far)."""

    def __init__(self) -> None:
        self.fed: dict[int, list[float]] = {}
        self.passes: list[int] = []
        self.poison: float | None = None

    def decode(self, embeddings: Any, positions: Any, sequences: Any, outputs: Any) -> tuple[Any, Any]:
        self.passes.append(len(embeddings))
        hidden = []
        for row, position, sequence, wanted in zip(embeddings, positions, sequences, outputs, strict=True):
            history = self.fed.setdefault(int(sequence), [])
            assert position == len(history), "positions must follow one another"
            history.append(float(row[0]))
            if wanted:
                hidden.append([np.nan if row[0] == self.poison else row[0], len(history)])
        states = np.array(hidden, dtype=np.float32).reshape(-1, WIDTH)
        return states, np.zeros((len(hidden), VOCAB), dtype=np.float32)

    def forget(self, sequence: int) -> None:
        self.fed.pop(sequence, None)


class Decoder:
    """Every code is the entry fed last minus one: after a prompt that ends in n come n - 1 frames, then zeros."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.broken = False

    def decode_frames(self, *, hidden: np.ndarray, c0_logits: np.ndarray, samplers: list[Any]) -> np.ndarray:
        if self.broken:
            raise EngineError("broken")
        assert len(hidden) == len(c0_logits) == len(samplers)
        self.batches.append(len(hidden))
        return np.repeat(hidden[:, :1].astype(np.int32) - 1, K, axis=1)


class Codec:
    """Every sample is the frame's code; a state counts the frames it has seen."""

    def new_state(self) -> list[int]:
        return []

    def decode(self, states: list[list[int]], codes: np.ndarray) -> np.ndarray:
        assert len(states) == len(codes)
        for state, row in zip(states, codes, strict=True):
            state.append(int(row[0, 0]))
        return np.repeat(codes[:, 0, :1], FRAME_SAMPLES, axis=1).astype(np.float32)


def stopped() -> float:
    """A clock that stands still: nothing that is spoken is ever heard."""
    return 0.0


def engine(parts: tuple[Backbone, Decoder], slots: int = 1, clock: Callable[[], float] = stopped) -> Engine:
    backbone, decoder = parts
    return Engine(Config(), backbone, Embedder(), decoder, Codec(), slots=slots, clock=clock)  # type: ignore[arg-type]


def request(last: int, length: int = 2, max_frames: int = 100, history: int = 1000, **more: Any) -> Request:
    prompt = np.full((length, K + 1), -1, dtype=np.int32)
    prompt[:, -1] = 99
    prompt[-1, -1] = last
    return Request(prompt, GREEDY, max_frames, seed=1, history=history, **more)


def run(machine: Engine, limit: int = 1000) -> int:
    steps = 0
    while machine.step():
        steps += 1
        assert steps < limit
    return steps


def heard(stream: Sequence) -> list[int]:
    return [int(chunk[0]) for chunk in stream.audio]
