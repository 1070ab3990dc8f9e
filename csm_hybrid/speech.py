"""The public API: load a model, get speech whole or as it is made.

import csm_hybrid

with csm_hybrid.load() as model:            # the embedded voice; or load("csm-1b-q8_0.gguf")
    for chunk in model.stream("Hello."):    # float32 arrays, mono, at model.sample_rate
        ...
    speech = model.speak("Hello.", seed=1)  # speech.samples, speech.finish_reason
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from . import _native
from .backbone import open_backbone
from .codebook_decoder import open_decoder
from .codec import CodecKind, open_codec
from .engine import Engine
from .errors import InputError
from .model.bundle import Bundle
from .model.config import ModelConfig, Sampling
from .model.resolve import embedded_voice
from .passage import DEFAULT_HISTORY, Passage
from .prompt import NO_ENTRY, FrameEmbedder, Frames, PromptBuilder, Segment
from .streams import FinishReason, Request, StageTimes, Stream
from .threads import default_threads

# csm.rs's defaults, for a model file that brings none of its own.
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_K = 100


@dataclass(frozen=True)
class Speech:
    """A whole utterance: samples (N,) float32 in -1..1, mono; why it ended; the seed that repeats it."""

    samples: NDArray[np.float32]
    sample_rate: int
    finish_reason: FinishReason
    seed: int
    codes: NDArray[np.int32]  # (F, K)

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return len(self.samples) / self.sample_rate


class SpeechStream(Iterator[NDArray[np.float32]]):
    """Chunks of an utterance as they are made; read ``finish_reason`` when they have ended.

    Every chunk is a float32 array (n,) in -1..1. Close it, or leave its ``with`` block, to stop early.
    """

    def __init__(self, model: Model, passage: Passage, pieces: Sequence[str], buffer_frames: int) -> None:
        self._model = model
        self._passage = passage
        self._pieces = pieces
        self._buffer_frames = buffer_frames
        self._begin = time.perf_counter()
        self.first_audio_seconds: float | None = None
        self._submitted = 0
        # Of the pieces whose audio has been taken: how many, their codes and frames, whether one was cut.
        self._ended = 0
        self._codes: list[NDArray[np.int32]] = []
        self._frames = 0
        self._cut = False
        self._stream = self._submit(None)
        self._following = self._submit(self._stream) if len(pieces) > 1 else None

    def __next__(self) -> NDArray[np.float32]:
        while True:
            stream = self._stream
            self._model._advance(stream, self._buffer_frames)
            if stream.error is not None:
                raise stream.error
            if stream.audio:
                break
            if self._following is None:
                raise StopIteration
            self._go_on(self._following)
        if self.first_audio_seconds is None:
            self.first_audio_seconds = time.perf_counter() - self._begin
        count = min(len(stream.audio), self._buffer_frames)
        return np.concatenate([stream.audio.popleft() for _ in range(count)])

    def _submit(self, after: Stream | None) -> Stream:
        """Hands the next piece to the engine."""
        request = self._passage.request(self._pieces[self._submitted], alone=len(self._pieces) == 1)
        self._submitted += 1
        return self._model._submit(request, after)

    def _go_on(self, following: Stream) -> None:
        """Turns to the next piece, and has the one after it wait behind it."""
        self._ended += 1
        self._codes.append(self._codes_of(self._stream))
        self._frames += self._stream.frames
        self._cut = self._cut or self._stream.finish_reason == "length"
        self._stream, self._following = following, None
        most = self._passage.most_frames
        if self._submitted < len(self._pieces) and (most is None or self.frames < most):
            self._following = self._submit(following)

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the utterance; does nothing when it has ended."""
        self._model._cancel(self._stream)

    @property
    def finish_reason(self) -> FinishReason | None:
        """``eos`` (the model ended the speech), ``length``, ``cancelled``, ``error``; None while it runs."""
        reason = self._stream.finish_reason
        if reason in ("cancelled", "error"):
            return reason
        if reason is None or self._following is not None:
            return None
        return "length" if self._cut else reason

    @property
    def frames(self) -> int:
        """Frames made so far."""
        return self._frames + self._stream.frames

    @property
    def share(self) -> float:
        """The share of the text whose pieces have been spoken, 0 to 1."""
        spoken = sum(map(len, self._pieces[: self._ended]))
        return 1.0 if self.finish_reason in ("eos", "length") else spoken / sum(map(len, self._pieces))

    @property
    def seed(self) -> int:
        """The seed in use; given again, it repeats the speech exactly."""
        return self._passage.seed

    @property
    def codes(self) -> NDArray[np.int32]:
        """The codes made so far, (F, K) int32."""
        return np.concatenate([*self._codes, self._codes_of(self._stream)])

    def _codes_of(self, stream: Stream) -> NDArray[np.int32]:
        return np.array(stream.codes, dtype=np.int32).reshape(-1, self._model.config.codebooks)


class Model:
    """A loaded model. Safe to use from several threads; up to ``slots`` streams advance together.

    ``path`` is a single-file model (GGUF). ``gpu`` lets llama.cpp offload to a GPU when its build can;
    ``backbone`` and ``decoder`` are ``auto`` (llama.cpp with such a GPU, else native), ``native`` or ``llama``;
    ``codec`` is ``native`` or ``moshi`` (an extra).
    With ``ignore_end``, speech goes on to its longest length whatever the model says: for measurements.
    Raises ModelNotFound, ModelInvalid, DeviceError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        slots: int = 1,
        gpu: bool = True,
        backbone: str = "auto",
        decoder: str = "auto",
        codec: CodecKind = "native",
        codebooks: int | None = None,
        ignore_end: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        if slots < 1:
            raise InputError(f"slots must be at least 1, not {slots}")
        self.threads = threads or default_threads()
        self._lock = threading.RLock()
        with ExitStack() as stack:
            bundle = stack.enter_context(Bundle.open(path))
            self.config: ModelConfig = bundle.config
            self._pool = _native.ThreadPool(threads=self.threads)
            layers = -1 if gpu else 0
            self.backbone = open_backbone(bundle, self._pool, engine=backbone, sequences=slots, gpu_layers=layers)
            stack.callback(self.backbone.close)
            self.codebook_decoder = open_decoder(
                bundle, self._pool, engine=decoder, max_streams=slots, gpu_layers=layers
            )
            self.codec = open_codec(bundle, self._pool, kind=codec, codebooks=codebooks)
            self.embedder = FrameEmbedder(bundle)
            self._builder = PromptBuilder(bundle.config, bundle.tokenizer_json)
            # No code is NO_ENTRY, so that no frame ends the speech.
            config = replace(bundle.config, end_code=NO_ENTRY) if ignore_end else bundle.config
            self._engine = Engine(
                config, self.backbone, self.embedder, self.codebook_decoder, self.codec, slots=slots
            )
            self._stack = stack.pop_all()

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound (24000)."""
        return self.config.codec.sample_rate

    @property
    def engine(self) -> Engine:
        """The engine, for a caller that steps it from one thread of its own; nothing else of the model that
        speaks may then be used."""
        return self._engine

    @property
    def times(self) -> StageTimes:
        """Seconds spent in each stage since the model was loaded."""
        return self._engine.times

    def stream(
        self,
        text: str,
        *,
        speaker: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        max_seconds: float | None = None,
        buffer_frames: int = 1,
        context: Sequence[Segment] = (),
        template: str | None = None,
        history: float = DEFAULT_HISTORY,
    ) -> SpeechStream:
        """Speaks ``text``; gives its sound in chunks of up to ``buffer_frames`` frames (80 ms each for CSM-1B).

        Text beyond 80 tokens or 250 characters is spoken in pieces, each with the last ``history`` seconds as
        context.
        ``temperature`` (0 is greedy) and ``top_k`` default to the model file's own, else to 0.7 and 100.
        ``seed`` (0 to 2**63 - 1) repeats a speech exactly. ``max_seconds`` bounds the whole speech; without it, a
        piece has 30 s. The sound does not depend on ``buffer_frames``.
        Raises InputError and PromptTooLong at once; errors while speaking come from the iterator.
        """
        if buffer_frames < 1:
            raise InputError(f"the buffer must be at least 1 frame, not {buffer_frames}")
        if seed is not None and not 0 <= seed < 2**63:
            raise InputError(f"the seed must lie in 0..2**63-1, not {seed}")
        passage = Passage(
            self,
            speaker=speaker,
            context=context,
            template=template,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            max_seconds=max_seconds,
            history=history,
        )
        return SpeechStream(self, passage, passage.pieces(text) or [text], buffer_frames)

    def speak(self, text: str, **settings: object) -> Speech:
        """Speaks ``text`` and returns it whole; takes the settings of ``stream``."""
        stream = self.stream(text, **settings)  # type: ignore[arg-type]
        with stream:
            chunks = list(stream)
        samples = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
        assert stream.finish_reason is not None
        return Speech(samples, self.sample_rate, stream.finish_reason, stream.seed, stream.codes)

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        """The settings given, for all codebooks, completed by the model file's and then the program's defaults."""
        own = self.config.sampling or Sampling(DEFAULT_TEMPERATURE, DEFAULT_TOP_K)
        if temperature is not None and not 0 <= temperature <= 10:
            raise InputError(f"the temperature must lie in 0..10, not {temperature}")
        if top_k is not None and top_k < 1:
            raise InputError(f"top-k must be at least 1, not {top_k}")
        if temperature is not None:
            own = replace(own, temperature=temperature, depth_temperature=temperature)
        if top_k is not None:
            own = replace(own, top_k=top_k, depth_top_k=top_k)
        return own

    def max_frames(self, seconds: float) -> int:
        """How many frames fit in ``seconds``, at least one. Raises InputError when it is not positive."""
        if not 0 < seconds < float("inf"):
            raise InputError(f"the longest audio must be a positive time, not {seconds} s")
        return max(1, int(seconds * self.config.frame_rate + 1e-6))

    def prompt(
        self,
        text: str,
        speaker: int = 0,
        context: Sequence[Segment] = (),
        *,
        template: str | None = None,
        max_frames: int | None = None,
    ) -> Frames:
        """Frames (T, K + 1) of the prompt; see ``csm_hybrid.prompt``."""
        return self.builder(template).build(text, speaker, context, max_frames=max_frames)

    def builder(self, template: str | None = None) -> PromptBuilder:
        """What makes prompts of texts, with the model's own template or another. Raises InputError."""
        return self._builder if template is None else self._builder.with_template(template)

    def close(self) -> None:
        """Frees the model's memory; streams of it end."""
        with self._lock:
            self._stack.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self, stream: Stream, frames: int) -> None:
        """Steps the engine until ``stream`` holds that many frames of audio or has finished."""
        while not stream.finished and len(stream.audio) < frames:
            with self._lock:
                if not stream.finished:
                    self._engine.step()

    def _submit(self, request: Request, after: Stream | None) -> Stream:
        with self._lock:
            return self._engine.submit(request, after=after)

    def _cancel(self, stream: Stream) -> None:
        with self._lock:
            self._engine.cancel(stream)


def load(path: str | Path | None = None, **settings: object) -> Model:
    """Loads a single-file model, or the small embedded voice; takes the settings of ``Model``."""
    return Model(embedded_voice() if path is None else path, **settings)  # type: ignore[arg-type]
