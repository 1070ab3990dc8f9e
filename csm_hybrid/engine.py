"""The loop of text to speech, for many streams at once.

The engine holds a fixed number of slots. ``step()`` advances every stream in a slot by one frame: one backbone
pass for all of them, one codebook decode, one codec call. Streams join and leave between steps. It is
synchronous and not thread-safe: one thread owns it.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _native
from .errors import CsmError, EngineError

if TYPE_CHECKING:
    from .backbone import Backbone
    from .codebook_decoder import CodebookDecoder
    from .codec import Codec
    from .model.config import ModelConfig, Sampling
    from .prompt import FrameEmbedder, Frames

FinishReason = Literal["eos", "length", "cancelled", "error"]

# Prompt positions that one step takes in while other streams are speaking: few enough that the step stays
# near its usual length, many enough that weights read once serve a good number of positions.
PREFILL_CHUNK = 32


@dataclass(frozen=True)
class Request:
    """What to speak: the prompt (T, K + 1), how codes are drawn, and at most how many frames."""

    prompt: Frames
    sampling: Sampling
    max_frames: int
    seed: int | None = None


@dataclass
class StageTimes:
    """Seconds spent in each stage since the engine was made, and the steps and frames they made."""

    prompt: float = 0.0
    backbone: float = 0.0
    decoder: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    steps: int = 0
    frames: int = 0


class Stream:
    """One request on its way through the engine; ``audio`` fills with one array of samples a frame."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.seed = secrets.randbits(63) if request.seed is None else request.seed
        self.audio: deque[NDArray[np.float32]] = deque()
        self.codes: list[NDArray[np.int32]] = []
        self.finish_reason: FinishReason | None = None
        self.error: CsmError | None = None
        self.paused = False  # a paused stream keeps its slot and is not advanced
        self.slot: int | None = None
        self._position = 0  # positions that the backbone has taken in
        self._sampler = _native.Sampler(
            seed=self.seed,
            temperature=request.sampling.temperature,
            top_k=request.sampling.top_k,
            depth_temperature=request.sampling.depth_temperature,
            depth_top_k=request.sampling.depth_top_k,
        )
        self._codec_state: Any = None
        self._next: NDArray[np.float32] | None = None  # (1, d_b), the frame to feed

    @property
    def finished(self) -> bool:
        """Whether no more audio will come."""
        return self.finish_reason is not None

    @property
    def frames(self) -> int:
        """Frames spoken so far."""
        return len(self.codes)


@dataclass
class _Part:
    """What one stream puts into a backbone pass."""

    stream: Stream
    embeddings: NDArray[np.float32]
    speaks: bool  # its last position gives a frame


class Engine:
    """Advances up to ``slots`` streams together; further ones wait in order of arrival."""

    def __init__(
        self,
        config: ModelConfig,
        backbone: Backbone,
        embedder: FrameEmbedder,
        decoder: CodebookDecoder,
        codec: Codec,
        *,
        slots: int = 1,
    ) -> None:
        self.config = config
        self.slots = slots
        self.times = StageTimes()
        self._backbone = backbone
        self._embedder = embedder
        self._decoder = decoder
        self._codec = codec
        self._free = list(range(slots - 1, -1, -1))
        self._running: list[Stream] = []
        self._waiting: deque[Stream] = deque()

    @property
    def running(self) -> int:
        """Streams that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Streams that wait for a slot."""
        return len(self._waiting)

    def submit(self, request: Request) -> Stream:
        """Takes a request in; it starts at the next step at which a slot is free."""
        stream = Stream(request)
        self._waiting.append(stream)
        return stream

    def cancel(self, stream: Stream) -> None:
        """Ends a stream and frees its slot; nothing happens to one that has finished."""
        if not stream.finished:
            self._finish(stream, "cancelled")

    def step(self) -> bool:
        """Advances every running stream by one frame, or by a piece of its prompt.

        Returns whether anything was advanced. A stream that fails gets ``error`` and leaves; the others go on.
        """
        self._admit()
        parts = self._gather()
        if not parts:
            return False
        begin = time.perf_counter()
        try:
            speaking, hidden, logits = self._run_backbone(parts)
            if speaking:
                self._speak(speaking, hidden, logits)
        except CsmError as error:
            # What failed for all together cannot be laid at one stream's door.
            for part in parts:
                if not part.stream.finished:
                    self._fail(part.stream, error)
        self.times.total += time.perf_counter() - begin
        self.times.steps += 1
        return True

    def _admit(self) -> None:
        while self._free and self._waiting:
            stream = self._waiting.popleft()
            stream.slot = self._free.pop()
            stream._codec_state = self._codec.new_state()
            self._running.append(stream)

    def _gather(self) -> list[_Part]:
        """The next input of every stream: a spoken frame each, and prompt positions up to the budget."""
        active = [s for s in self._running if not s.paused]
        speaking = [s for s in active if s._next is not None]
        parts = [_Part(s, s._next, True) for s in speaking if s._next is not None]
        budget = PREFILL_CHUNK if speaking else None
        for stream in active:
            if stream._next is not None or budget == 0:
                continue
            prompt = stream.request.prompt
            end = len(prompt) if budget is None else min(len(prompt), stream._position + budget)
            if budget is not None:
                budget -= end - stream._position
            begin = time.perf_counter()
            embeddings = self._embedder.frames(prompt[stream._position : end])
            self.times.prompt += time.perf_counter() - begin
            parts.append(_Part(stream, embeddings, end == len(prompt)))
        return parts

    def _run_backbone(self, parts: Sequence[_Part]) -> tuple[list[Stream], NDArray[np.float32], NDArray[np.float32]]:
        counts = [len(p.embeddings) for p in parts]
        slots = [p.stream.slot for p in parts]
        outputs = np.zeros(sum(counts), dtype=np.bool_)
        outputs[np.cumsum(counts) - 1] = [p.speaks for p in parts]
        positions = [p.stream._position + np.arange(n, dtype=np.int32) for p, n in zip(parts, counts, strict=True)]
        begin = time.perf_counter()
        hidden, logits = self._backbone.decode(
            np.concatenate([p.embeddings for p in parts]),
            np.concatenate(positions),
            np.repeat(np.array(slots, dtype=np.int32), counts),
            outputs,
        )
        elapsed = time.perf_counter() - begin
        if all(p.stream._next is not None for p in parts):
            self.times.backbone += elapsed
        else:
            self.times.prompt += elapsed
        for part, count in zip(parts, counts, strict=True):
            part.stream._position += count
        speaking = [p.stream for p in parts if p.speaks]
        sane = np.isfinite(np.concatenate([hidden, logits], axis=1)).all(axis=1)
        for stream, ok in zip(speaking, sane.tolist(), strict=True):
            if not ok:
                self._fail(stream, EngineError("the backbone gave a value that is not a number"))
        return [s for s, ok in zip(speaking, sane.tolist(), strict=True) if ok], hidden[sane], logits[sane]

    def _speak(self, streams: list[Stream], hidden: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """One frame of each stream: its codes, then its sound."""
        begin = time.perf_counter()
        codes = self._decoder.decode_frames(hidden=hidden, c0_logits=logits, samplers=[s._sampler for s in streams])
        self.times.decoder += time.perf_counter() - begin
        checked = codes[:, : max(1, self.config.codebooks - 1)]
        ended = (checked == self.config.end_code).all(axis=1)
        for stream in (s for s, end in zip(streams, ended.tolist(), strict=True) if end):
            self._finish(stream, "eos")
        streams = [s for s, end in zip(streams, ended.tolist(), strict=True) if not end]
        codes = codes[~ended]
        if not streams:
            return
        begin = time.perf_counter()
        states = [s._codec_state for s in streams if s._codec_state is not None]
        sound = self._codec.decode(states, codes[:, np.newaxis, :])
        self.times.codec += time.perf_counter() - begin
        following = self._embedder.codes(codes)
        for i, stream in enumerate(streams):
            stream.codes.append(codes[i])
            stream.audio.append(sound[i])
            stream._next = following[i : i + 1]
            self.times.frames += 1
            if stream.frames >= stream.request.max_frames:
                self._finish(stream, "length")

    def _fail(self, stream: Stream, error: CsmError) -> None:
        stream.error = error
        self._finish(stream, "error")

    def _finish(self, stream: Stream, reason: FinishReason) -> None:
        stream.finish_reason = reason
        stream._next = None
        stream._codec_state = None
        if stream.slot is None:
            self._waiting.remove(stream)
            return
        self._backbone.forget(stream.slot)
        self._running.remove(stream)
        self._free.append(stream.slot)
        stream.slot = None
