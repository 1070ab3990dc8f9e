"""Sound to bytes, in one continuous encoding, for a stream that is sent as it grows or for a file.

    samples (n,) int16 ──speed──▶ samples ──encoder, container──▶ bytes

Chunks may be cut anywhere: the bytes of a format do not depend on it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Protocol

import av
import numpy as np
from av.filter import Graph

from .formats import STREAMS, Encoding, Format
from .pcm import Output, PlainStream, Samples, SeekableOutput


class Encoder(Protocol):
    """Takes samples bit by bit and writes bytes to its output."""

    def feed(self, samples: Samples) -> None:
        """Takes samples (n,) int16, mono; writes the bytes that are ready. Raises OSError for libav's errors."""

    def finish(self) -> None:
        """Writes the last bytes; nothing may be fed afterwards. Raises OSError for libav's errors."""


class StreamEncoder:
    """Bytes of a format as they can be sent: what each call returns comes after what earlier ones did."""

    def __init__(self, form: Format, sample_rate: int, speed: float) -> None:
        assert form.stream is not None
        self._outbox = _Outbox()
        encoder: Encoder
        if form.codec is None:
            encoder = PlainStream(self._outbox, sample_rate, header=form.name == "wav")
        else:
            encoder = _Compressed(form, form.stream, sample_rate, self._outbox)
        self._encoder = encoder if speed == 1.0 else _Paced(encoder, sample_rate, speed)

    def feed(self, samples: Samples) -> bytes:
        """Takes samples (n,) int16, mono; returns the bytes that are ready. Raises OSError for libav's errors."""
        self._encoder.feed(samples)
        return self._outbox.take()

    def finish(self) -> bytes:
        """Returns the last bytes; nothing may be fed afterwards. Raises OSError for libav's errors."""
        self._encoder.finish()
        return self._outbox.take()


def open_encoder(name: str, sample_rate: int, speed: float = 1.0) -> StreamEncoder:
    """An encoder for a stream of the format ``name`` (a key of STREAMS) of mono sound at ``sample_rate`` Hz.

    ``speed`` (0.25 to 4) makes it faster or slower at the same pitch. Raises OSError for libav's errors.
    """
    return StreamEncoder(STREAMS[name], sample_rate, speed)


def open_file_encoder(form: Format, sample_rate: int, output: SeekableOutput) -> Encoder:
    """An encoder for a file of a compressed format, of mono sound at ``sample_rate`` Hz.

    Raises OSError for libav's errors.
    """
    assert form.file is not None
    return _Compressed(form, form.file, sample_rate, output)


def encoded_rate(form: Format, sample_rate: int) -> int:
    """The rate, in Hz, of a stream of sound at ``sample_rate``."""
    assert form.stream is not None
    return _rate(form, form.stream, sample_rate)


def _rate(form: Format, encoding: Encoding, sample_rate: int) -> int:
    """The rate that is asked for, or the next one that the codec knows."""
    wanted = encoding.rate or sample_rate
    known: list[int] | None = None if form.codec is None else av.Codec(form.codec, "w").audio_rates
    if known is None or wanted in known:
        return wanted
    return min((rate for rate in known if rate > wanted), default=max(known))


class _Outbox:
    """A file for PyAV to write to. It cannot seek, so a container never goes back to fill in a header."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


@contextlib.contextmanager
def _libav_errors() -> Iterator[None]:
    """Raises OSError for libav's errors, some of which are ValueErrors and the like."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.strerror or str(error)) from error


class _Compressed:
    """A codec and its container, by libav."""

    def __init__(self, form: Format, encoding: Encoding, sample_rate: int, output: Output) -> None:
        self._rate = sample_rate
        self._position = 0
        with _libav_errors():
            options = {"flush_packets": "1", **encoding.container_options}
            self._container: Any = av.open(output, "w", format=form.container, options=options)
            self._stream: Any = self._container.add_stream(
                form.codec,
                rate=_rate(form, encoding, sample_rate),
                layout="mono",
                options=dict(encoding.codec_options),
            )
            if encoding.bit_rate is not None:
                self._stream.bit_rate = encoding.bit_rate
            context = self._stream.codec_context
            context.open()
            self._resampler = av.AudioResampler(
                format=context.format, layout="mono", rate=context.sample_rate, frame_size=context.frame_size
            )

    def feed(self, samples: Samples) -> None:
        if len(samples):
            with _libav_errors():
                self._encode(self._resampler.resample(_frame(samples, self._rate, self._position)))
            self._position += len(samples)

    def finish(self) -> None:
        with _libav_errors():
            with contextlib.suppress(av.EOFError):  # from a second time, after an interruption of the first
                if self._position:
                    self._encode(self._resampler.resample(None))
            with contextlib.suppress(av.EOFError):
                self._container.mux(self._stream.encode(None))
            self._container.close()

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


class _Paced:
    """Speeds the sound up or down, with ffmpeg's ``atempo`` filter, on its way to another encoder."""

    def __init__(self, encoder: Encoder, sample_rate: int, speed: float) -> None:
        self._encoder = encoder
        self._rate = sample_rate
        self._speed = speed
        self._position = 0
        self._given = 0
        # One atempo makes sound down to half as fast, and above twice as fast skips some of it: two share the rest.
        filters = max(1, math.ceil(abs(math.log2(speed))))
        self._graph = Graph()
        source = self._graph.add_abuffer(sample_rate=sample_rate, format="s16", layout="mono")
        for _ in range(filters):
            tempo = self._graph.add("atempo", repr(speed ** (1 / filters)))
            source.link_to(tempo)
            source = tempo
        source.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def feed(self, samples: Samples) -> None:
        if len(samples):
            self._graph.push(_frame(samples, self._rate, self._position))
            self._position += len(samples)
        for paced in self._pull():
            self._given += len(paced)
            self._encoder.feed(paced)

    def finish(self) -> None:
        if self._position:
            # atempo drops the end of its last window: let that be silence, and cut where the sound itself ends.
            total = round(self._position / self._speed)
            silence = np.zeros(_pace_padding(self._rate), dtype=np.int16)
            self._graph.push(_frame(silence, self._rate, self._position))
            self._graph.push(None)
            rest = np.concatenate([np.zeros(0, dtype=np.int16), *self._pull()])
            self._encoder.feed(rest[: max(0, total - self._given)])
        self._encoder.finish()

    def _pull(self) -> Iterator[Samples]:
        while True:
            try:
                frame: Any = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame.to_ndarray()[0]


def _pace_padding(sample_rate: int) -> int:
    """Eight of atempo's windows, in samples: at the speed of 4 they become two.

    A window is the next power of two from 1/24 s on.
    """
    return 8 << math.ceil(math.log2(max(1, sample_rate // 24)))


def _frame(samples: Samples, rate: int, position: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[np.newaxis, :]), format="s16", layout="mono")
    frame.sample_rate = rate
    frame.pts = position
    return frame
