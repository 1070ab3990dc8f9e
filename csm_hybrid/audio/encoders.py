"""Sound to bytes, in one continuous encoding that can be sent as it grows.

    samples (n,) int16 ──speed──▶ samples ──encoder, container──▶ bytes

Chunks may be cut anywhere: the bytes of a format do not depend on it. Every ``feed`` gives what can be sent by
now; ``finish`` gives the rest, so that nothing is lost at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from .files import wav_header

Samples = NDArray[np.int16]

_PACE_PADDING = 8192  # samples: eight of atempo's windows at 24 kHz, two at the speed of 4


@dataclass(frozen=True)
class Format:
    """How one ``response_format`` is made. ``rate`` is the codec's own, where it is not the model's."""

    media_type: str
    codec: str | None = None  # None: plain samples
    container: str = ""
    bit_rate: int | None = None
    rate: int | None = None
    codec_options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)


# mp3 and aac frames hold a fixed number of samples and their streams cannot say how many to skip: at 48 kHz the
# codec's delay and the padding of its last frame together stay below 50 ms, at 24 kHz they would take up to 85.
# flac's and ogg's options make short frames and pages, so that bytes flow from the first 80 ms on.
FORMATS = {
    "mp3": Format("audio/mpeg", "libmp3lame", "mp3", 128_000, 48_000, {}, {"write_xing": "0", "id3v2_version": "0"}),
    "opus": Format("audio/ogg", "libopus", "ogg", 64_000, None, {}, {"page_duration": "20000"}),
    "aac": Format("audio/aac", "aac", "adts", 128_000, 48_000),
    "flac": Format(
        "audio/flac", "flac", "flac", None, None, {"compression_level": "2"}, {"metadata_header_padding": "0"}
    ),
    "wav": Format("audio/wav"),
    "pcm": Format("audio/pcm"),
}


class Encoder(Protocol):
    """Takes samples bit by bit and gives bytes."""

    def feed(self, samples: Samples) -> bytes:
        """Takes samples (n,) int16, mono; returns the bytes that are ready."""

    def finish(self) -> bytes:
        """Returns the last bytes; nothing may be fed afterwards."""


def open_encoder(name: str, sample_rate: int, speed: float = 1.0) -> Encoder:
    """An encoder for a ``response_format`` (a key of FORMATS) of mono sound at ``sample_rate``.

    ``speed`` (0.25 to 4) makes it faster or slower at the same pitch.
    """
    form = FORMATS[name]
    encoder: Encoder
    encoder = _Plain(sample_rate, header=name == "wav") if form.codec is None else _Compressed(form, sample_rate)
    return encoder if speed == 1.0 else _Paced(encoder, sample_rate, speed)


class _Plain:
    """Samples as they are, 16-bit little-endian; a WAV header of unknown length comes first."""

    def __init__(self, sample_rate: int, *, header: bool) -> None:
        self._head = wav_header(sample_rate) if header else b""

    def feed(self, samples: Samples) -> bytes:
        head, self._head = self._head, b""
        return head + samples.astype("<i2").tobytes()

    def finish(self) -> bytes:
        head, self._head = self._head, b""
        return head


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


class _Compressed:
    def __init__(self, form: Format, sample_rate: int) -> None:
        self._outbox = _Outbox()
        self._rate = sample_rate
        self._container: Any = av.open(
            self._outbox, "w", format=form.container, options={"flush_packets": "1", **form.container_options}
        )
        self._stream: Any = self._container.add_stream(
            form.codec, rate=form.rate or sample_rate, layout="mono", options=form.codec_options
        )
        if form.bit_rate is not None:
            self._stream.bit_rate = form.bit_rate
        context = self._stream.codec_context
        context.open()
        self._resampler = av.AudioResampler(
            format=context.format, layout="mono", rate=context.sample_rate, frame_size=context.frame_size
        )
        self._position = 0

    def feed(self, samples: Samples) -> bytes:
        if len(samples):
            self._encode(self._resampler.resample(_frame(samples, self._rate, self._position)))
            self._position += len(samples)
        return self._outbox.take()

    def finish(self) -> bytes:
        if self._position:
            self._encode(self._resampler.resample(None))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._outbox.take()

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

    def feed(self, samples: Samples) -> bytes:
        if len(samples):
            self._graph.push(_frame(samples, self._rate, self._position))
            self._position += len(samples)
        return self._drain()

    def finish(self) -> bytes:
        if not self._position:
            return self._encoder.finish()
        # atempo drops the end of its last window: let that be silence, and cut where the sound itself ends.
        total = round(self._position / self._speed)
        self._graph.push(_frame(np.zeros(_PACE_PADDING, dtype=np.int16), self._rate, self._position))
        self._graph.push(None)
        rest = list(self._pull())
        last = np.concatenate(rest)[: max(0, total - self._given)] if rest else np.zeros(0, dtype=np.int16)
        return self._encoder.feed(last) + self._encoder.finish()

    def _drain(self) -> bytes:
        parts = []
        for samples in self._pull():
            self._given += len(samples)
            parts.append(self._encoder.feed(samples))
        return b"".join(parts)

    def _pull(self) -> Iterator[Samples]:
        while True:
            try:
                frame: Any = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame.to_ndarray()[0]


def _frame(samples: Samples, rate: int, position: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[np.newaxis, :]), format="s16", layout="mono")
    frame.sample_rate = rate
    frame.pts = position
    return frame
