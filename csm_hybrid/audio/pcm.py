"""Plain samples, 16-bit little-endian, and the header that makes a WAV of them."""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]

UNKNOWN_SIZE = 0xFFFFFFFF  # what readers of a streamed WAV take as "until the end"


class Output(Protocol):
    """What encoders write to; libav goes back in it where it has ``seek`` and ``tell`` as well."""

    def write(self, data: bytes, /) -> int:
        """Takes all of ``data``, and returns its length."""


class SeekableOutput(Output, Protocol):
    """An output in which an encoder goes back, to complete what it wrote first."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Goes to a position, and returns it."""

    def tell(self) -> int:
        """The position, in bytes."""


def to_int16(samples: NDArray[np.float32]) -> Samples:
    """Samples (n,) in -1..1 as 16-bit integers (n,), rounded; beyond full scale they are clipped."""
    return np.rint(np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)


def to_bytes(samples: Samples) -> bytes:
    """Samples (n,) as 2n bytes, little-endian."""
    return samples.astype("<i2").tobytes()


def wav_header(sample_rate: int, data_bytes: int = UNKNOWN_SIZE) -> bytes:
    """The 44 bytes before 16-bit mono samples; a length that is unknown, or too long for a WAV's 32 bits, is written
    as 0xFFFFFFFF in both fields.
    """
    riff = data_bytes + 36  # from after its own field on
    if riff > UNKNOWN_SIZE:
        riff = data_bytes = UNKNOWN_SIZE
    head = struct.pack("<4sI4s", b"RIFF", riff, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return head + form + struct.pack("<4sI", b"data", data_bytes)


class PlainStream:
    """Samples as they are; ``header``: a WAV's header of unknown length comes before the first of them."""

    def __init__(self, output: Output, sample_rate: int, *, header: bool) -> None:
        self._output = output
        self._header = wav_header(sample_rate) if header else b""

    def feed(self, samples: Samples) -> None:
        """Writes samples (n,)."""
        header, self._header = self._header, b""
        self._output.write(header + to_bytes(samples))

    def finish(self) -> None:
        """Writes the header, if nothing was fed."""
        self.feed(np.zeros(0, dtype=np.int16))


class WavFile:
    """A WAV whose header holds the true sizes once it is finished."""

    def __init__(self, output: SeekableOutput, sample_rate: int) -> None:
        self._output = output
        self._sample_rate = sample_rate
        self._data_bytes = 0
        output.write(wav_header(sample_rate))

    def feed(self, samples: Samples) -> None:
        """Writes samples (n,)."""
        self._data_bytes += self._output.write(to_bytes(samples))

    def finish(self) -> None:
        """Completes the header."""
        self._output.seek(0)
        self._output.write(wav_header(self._sample_rate, self._data_bytes))
