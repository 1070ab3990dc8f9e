"""The loop of text to speech, for many sequences at once.

The engine holds a fixed number of slots. ``step()`` advances every sequence in a slot by one frame: one backbone
pass for all of them, one decode of the other codebooks, one codec call. Sequences join and leave between steps, in
the order that :mod:`.scheduler` sets; what a continuation begins with says :mod:`.history`, and a context that a
request before had is not taken in again (:mod:`.prefix_cache`). It is synchronous and not thread-safe: one thread
owns it (:mod:`.runner`).

A sequence's codes depend on its own prompt, sampler and codec state alone: with the native engines a request with a
seed gives the same samples, bit for bit, alone and in any company. With a tower on llama.cpp company can change
rounding, where it multiplies one row and several by kernels that add up in another order: the last bits may differ,
and then a draw that lands just between two codes may fall to the other side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CsmError, EngineError
from .history import continuation
from .request import FinishReason, Request
from .scheduler import Scheduler
from .sequence import Sequence

if TYPE_CHECKING:
    from ..backends.base import Backbone, Codec, DepthDecoder
    from ..backends.embedder import FrameEmbedder
    from ..model.config import ModelConfig
    from .prefix_cache import PrefixCache


@dataclass
class StageTimes:
    """Seconds spent in each stage since the engine was made, and the steps and frames they made.

    ``backbone`` counts the passes that give every sequence in them a frame; one that takes in some of a prompt counts
    to ``prompt``.
    """

    prompt: float = 0.0
    backbone: float = 0.0
    decoder: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    steps: int = 0
    frames: int = 0


@dataclass(frozen=True)
class _Part:
    """What one sequence puts into a backbone pass."""

    sequence: Sequence
    embeddings: NDArray[np.float32]
    speaks: bool  # its last position gives a frame


class Engine:
    """Advances up to ``slots`` sequences together; further ones wait.

    ``prefixes`` saves taking in again what requests have as context; ``clock`` gives the time in seconds.
    """

    def __init__(
        self,
        config: ModelConfig,
        backbone: Backbone,
        embedder: FrameEmbedder,
        decoder: DepthDecoder,
        codec: Codec,
        *,
        slots: int = 1,
        prefixes: PrefixCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.times = StageTimes()
        self.prefixes = prefixes
        self._backbone = backbone
        self._embedder = embedder
        self._decoder = decoder
        self._codec = codec
        self._clock = clock
        self._scheduler = Scheduler(slots, clock)
        self._arrivals = 0

    @property
    def slots(self) -> int:
        """Sequences that can advance together."""
        return self._scheduler.slots

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._scheduler.waiting)

    def submit(self, request: Request, *, after: Sequence | None = None) -> Sequence:
        """Takes a request in; it starts at the next step at which a slot is free.

        With ``after``, it goes on from an earlier sequence of the same speech: when that ends, it takes over the
        slot, or waits for one as long as the listener has enough to hear and others wait. It ends with the earlier
        one when that is cancelled or fails. All that was said before is its context, see :mod:`.history`.
        """
        sequence = Sequence.of(request)
        if after is None:
            sequence.arrival = self._arrivals = self._arrivals + 1
            self._scheduler.waiting.append(sequence)
            return sequence
        sequence.previous = after if request.history else None
        if after.finished:
            self._go_on(sequence, after)
            self._scheduler.waiting.append(sequence)
        else:
            after.follower = sequence
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence and frees its slot; nothing happens to one that has finished."""
        if not sequence.finished:
            self._finish(sequence, "cancelled")

    def step(self) -> bool:
        """Advances every running sequence by one frame, or by a part of its prompt.

        Returns False when there was nothing to advance. A sequence that fails gets ``error`` and leaves; the others
        go on. A KeyboardInterrupt cancels the sequences that it caught half-way.
        """
        for sequence, slot in self._scheduler.admit():
            self._start(sequence, slot)
        parts = self._gather()
        if not parts:  # those that were admitted may have failed: go on with the next
            return bool(self._scheduler.free_slots and self._scheduler.waiting)
        begin = time.perf_counter()
        try:
            speaking, hidden, logits = self._run_backbone(parts)
            if speaking:
                self._speak(speaking, hidden, logits)
        except Exception as error:
            # What failed for all together cannot be laid at one sequence's door.
            for part in parts:
                if not part.sequence.finished:
                    self._fail(part.sequence, error)
        except BaseException:  # an interruption: how far each has come, nobody knows
            for part in parts:
                self.cancel(part.sequence)
            raise
        self.times.total += time.perf_counter() - begin
        self.times.steps += 1
        return True

    def _go_on(self, sequence: Sequence, previous: Sequence) -> None:
        """What a chunk takes over from the one before it, which has ended."""
        sequence.arrival, sequence.dry_at = previous.arrival, previous.dry_at
        sequence.earlier_frames = previous.earlier_frames + previous.frames

    def _start(self, sequence: Sequence, slot: int, held: Sequence | None = None) -> None:
        """Gives a sequence a slot, in which the backbone still holds ``held``'s positions."""
        self._scheduler.seat(sequence, slot)
        if sequence.frames_left <= 0:
            self._finish(sequence, "length")
            return
        try:
            self._recall(sequence, slot, held)
            sequence.codec_state = self._codec.new_state()
        except Exception as error:
            self._fail(sequence, error)

    def _recall(self, sequence: Sequence, slot: int, held: Sequence | None) -> None:
        """Puts what was said before in front of a continuation's prompt, and skips what the slot still holds."""
        request, previous, sequence.previous = sequence.request, sequence.previous, None
        made = continuation(
            request, previous, positions=self.config.backbone.positions, end_code=self.config.end_code
        )
        sequence.prompt, sequence.text_start = made.prompt, made.text_start
        if made.unbroken and previous is not None and previous is held:
            sequence.position = previous.position
            return
        self._backbone.forget(slot)
        if request.context and self.prefixes is not None:
            sequence.position = self.prefixes.recall(slot, sequence.context)

    def _gather(self) -> list[_Part]:
        """The next input of every sequence: a spoken frame each, and prompt positions up to the budget."""
        parts = [_Part(s, s.next_input, True) for s in self._scheduler.running if s.next_input is not None]
        for part in self._scheduler.prompt_parts():
            begin = time.perf_counter()
            try:
                embeddings = self._embedder.frames(part.sequence.prompt[part.begin : part.end])
            except Exception as error:
                self._fail(part.sequence, error)
                continue
            self.times.prompt += time.perf_counter() - begin
            parts.append(_Part(part.sequence, embeddings, part.end == len(part.sequence.prompt)))
        return parts

    def _run_backbone(self, parts: Many[_Part]) -> tuple[list[Sequence], NDArray[np.float32], NDArray[np.float32]]:
        counts = [len(p.embeddings) for p in parts]
        slots = [p.sequence.slot for p in parts]
        outputs = np.zeros(sum(counts), dtype=np.bool_)
        outputs[np.cumsum(counts) - 1] = [p.speaks for p in parts]
        positions = [p.sequence.position + np.arange(n, dtype=np.int32) for p, n in zip(parts, counts, strict=True)]
        begin = time.perf_counter()
        hidden, logits = self._backbone.decode(
            np.concatenate([p.embeddings for p in parts]),
            np.concatenate(positions),
            np.repeat(np.array(slots, dtype=np.int32), counts),
            outputs,
        )
        elapsed = time.perf_counter() - begin
        if outputs.all():  # every position speaks
            self.times.backbone += elapsed
        else:
            self.times.prompt += elapsed
        for part, count in zip(parts, counts, strict=True):
            part.sequence.position += count
            self._keep_context(part.sequence, count)
        speaking = [p.sequence for p in parts if p.speaks]
        sane = np.isfinite(np.concatenate([hidden, logits], axis=1)).all(axis=1)
        for sequence, ok in zip(speaking, sane.tolist(), strict=True):
            if not ok:
                self._fail(sequence, EngineError("the backbone gave a value that is not a number"))
        return [s for s, ok in zip(speaking, sane.tolist(), strict=True) if ok], hidden[sane], logits[sane]

    def _keep_context(self, sequence: Sequence, count: int) -> None:
        """Keeps a context that the last ``count`` positions have completed."""
        completed = sequence.position - count < sequence.request.context <= sequence.position
        if completed and sequence.slot is not None and self.prefixes is not None:
            self.prefixes.keep(sequence.slot, sequence.context)

    def _speak(self, sequences: list[Sequence], hidden: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """One frame of each sequence: its codes, then its sound."""
        begin = time.perf_counter()
        rows, codes = self._together(
            sequences,
            lambda i: self._decoder.decode_frames(
                hidden=hidden[i], c0_logits=logits[i], samplers=[sequences[row].sampler for row in i]
            ),
        )
        self.times.decoder += time.perf_counter() - begin
        sequences = [sequences[row] for row in rows]
        ended = (codes[:, : max(1, self.config.codebooks - 1)] == self.config.end_code).all(axis=1)
        for sequence in (s for s, end in zip(sequences, ended.tolist(), strict=True) if end):
            self._finish(sequence, "eos")
        sequences = [s for s, end in zip(sequences, ended.tolist(), strict=True) if not end]
        codes = codes[~ended]
        begin = time.perf_counter()
        rows, sound = self._together(
            sequences,
            lambda i: self._codec.decode([sequences[row].codec_state for row in i], codes[i, np.newaxis, :]),
        )
        self.times.codec += time.perf_counter() - begin
        codes = codes[rows]
        following = self._embedder.codes(codes) if rows else sound
        now = self._clock()
        for i, sequence in enumerate([sequences[row] for row in rows]):
            sequence.codes.append(codes[i])
            sequence.audio.append(sound[i])
            sequence.next_input = following[i : i + 1]
            heard_from = now if sequence.dry_at is None else max(now, sequence.dry_at)
            sequence.dry_at = heard_from + 1 / (self.config.frame_rate * sequence.request.pace)
            self.times.frames += 1
            if sequence.frames_left <= 0:
                self._finish(sequence, "length")

    def _together(
        self, sequences: list[Sequence], stage: Callable[[list[int]], NDArray[Any]]
    ) -> tuple[list[int], NDArray[Any]]:
        """Runs a stage for all sequences in one call; when that fails, one by one, and the culprits leave.

        Returns the rows (indices into ``sequences``) that are left and their results. That a second call gives the
        others what the first would have given takes a stage that checks its input before it changes any state.
        """
        rows = list(range(len(sequences)))
        nothing = np.zeros((0, self.config.codebooks), dtype=np.int32)
        if not rows:
            return rows, nothing
        try:
            return rows, stage(rows)
        except Exception as error:
            if len(rows) == 1:
                self._fail(sequences[0], error)
                return [], nothing
        kept: list[int] = []
        results = []
        for row in rows:
            try:
                results.append(stage([row]))
                kept.append(row)
            except Exception as error:
                self._fail(sequences[row], error)
        return kept, np.concatenate(results) if results else nothing

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        if not isinstance(error, CsmError):
            wrapped = EngineError(f"the engine failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        sequence.error = error
        self._finish(sequence, "error")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        sequence.next_input = sequence.codec_state = None
        slot = self._scheduler.remove(sequence)
        follower, sequence.follower = sequence.follower, None
        if follower is not None and not follower.finished:
            if reason in ("cancelled", "error"):
                follower.error = sequence.error
                self._finish(follower, reason)
            else:
                self._go_on(follower, sequence)
                if slot is not None and not self._scheduler.outranked(follower):
                    self._start(follower, slot, held=sequence)
                    return
                self._scheduler.waiting.append(follower)
        if slot is not None:
            self._backbone.forget(slot)
