"""Encoding: every format decodes to what was fed, whatever the chunks; nothing is lost at either end."""

from __future__ import annotations

import io
import wave

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_hybrid.audio.encoders import encoded_rate, open_encoder
from csm_hybrid.audio.formats import STREAMS

RATE, FRAME = 24_000, 1920
LOSSLESS = ("flac", "wav", "pcm")
LOSSY = ("mp3", "opus", "aac")
# The codec's delay and the padding of its last frame, which mp3 and aac streams cannot take back.
LONGEST_EXTRA_MS = 50.0
# What a transparent bit rate may change of a tone with a little noise: about -30 dB.
LOSSY_ERROR = 0.03


def tone(seconds: float, hertz: float = 220.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(1).normal(0, 50, len(t))
    return (9000 * np.sin(2 * np.pi * hertz * t) * (1 + np.sin(2 * np.pi * 3 * t)) / 2 + noise).astype(np.int16)


def encode(name: str, samples: np.ndarray, sizes: list[int], speed: float = 1.0) -> bytes:
    """Chunks of the sizes given, over and over."""
    encoder = open_encoder(name, RATE, speed)
    out, at, turn = [], 0, 0
    while at < len(samples):
        size = sizes[turn % len(sizes)]
        out.append(encoder.feed(samples[at : at + size]))
        at, turn = at + size, turn + 1
    return b"".join([*out, encoder.finish()])


def decode(name: str, data: bytes) -> np.ndarray:
    """Samples at 24 kHz in -1..1, by libav's decoders."""
    if name == "pcm":
        return np.frombuffer(data, dtype="<i2") / 32768
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    parts = []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(audio=0):
            parts += [f.to_ndarray()[0] for f in resampler.resample(frame)]
    parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("count", [1, FRAME, 3 * FRAME + 777])
def test_lossless_formats_give_the_samples_back(name: str, count: int) -> None:
    samples = tone(1.0)[:count]
    assert np.array_equal(np.rint(decode(name, encode(name, samples, [FRAME])) * 32768).astype(np.int16), samples)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("seconds", [0.08, 0.5, 1.03, 2.0])
def test_lossy_formats_give_the_sound_back_with_the_right_length(name: str, seconds: float) -> None:
    samples = tone(seconds)
    heard = decode(name, encode(name, samples, [FRAME]))
    extra = 1000 * (len(heard) - len(samples)) / RATE
    assert 0 <= extra < LONGEST_EXTRA_MS
    wanted = samples / 32768
    delay = int(np.argmax(np.correlate(heard, wanted, "valid")))
    error = np.sqrt(np.mean((heard[delay : delay + len(wanted)] - wanted) ** 2))
    assert not error > LOSSY_ERROR, "also the first and the last samples must be there"


@pytest.mark.parametrize("name", [n for n in STREAMS if n != "opus"])  # an Ogg stream's serial number is random
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_the_bytes_do_not_depend_on_the_chunks(name: str, sizes: list[int]) -> None:
    samples = tone(0.6)
    assert encode(name, samples, sizes) == encode(name, samples, [len(samples)])


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_opus_decodes_to_the_same_samples_whatever_the_chunks(sizes: list[int]) -> None:
    samples = tone(0.6)
    streamed, whole = (decode("opus", encode("opus", samples, s)) for s in (sizes, [len(samples)]))
    assert np.array_equal(streamed, whole)


@pytest.mark.parametrize("name", STREAMS)
def test_bytes_of_sound_flow_from_the_first_frame(name: str) -> None:
    without_sound = open_encoder(name, RATE).finish()
    encoder = open_encoder(name, RATE)
    first = encoder.feed(tone(0.08))
    assert len(first) > len(without_sound), "the first bytes must hold more than headers"
    encoder.finish()


def test_a_streamed_wav_is_read_by_the_standard_library() -> None:
    samples = tone(0.3)
    with wave.open(io.BytesIO(encode("wav", samples, [FRAME]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.readframes(len(samples)) == samples.astype("<i2").tobytes()


@pytest.mark.parametrize("speed", [0.25, 0.3, 0.5, 0.9, 1.25, 2.0, 2.1, 3.0, 4.0])
def test_speed_changes_the_length_and_not_the_pitch(speed: float) -> None:
    t = np.arange(2 * RATE) / RATE
    samples = (8000 * np.sin(2 * np.pi * 300 * t)).astype(np.int16)
    out = np.frombuffer(encode("pcm", samples, [FRAME], speed), dtype="<i2")
    assert len(out) == round(len(samples) / speed)
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))))
    assert np.argmax(spectrum) * RATE / len(out) == pytest.approx(300, abs=3)


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.9, 1.5, 4.0])
def test_speed_keeps_the_end_of_the_sound(speed: float) -> None:
    """The filter itself drops the end of its last window: up to 37 ms."""
    t = np.arange(RATE) / RATE
    samples = (8000 * np.sin(2 * np.pi * np.where(t < 0.9, 300, 1100) * t)).astype(np.int16)
    out = np.frombuffer(encode("pcm", samples, [FRAME], speed), dtype="<i2").astype(float)
    beat = out * np.exp(-2j * np.pi * 1100 * np.arange(len(out)) / RATE)
    window = RATE // 100
    loud = np.abs(np.convolve(beat, np.ones(window) / window, "valid")) > 2000
    # The last tenth of a second, give or take one window of the filter (half of it at either end).
    assert loud.sum() / RATE * speed == pytest.approx(0.1, abs=0.025 + 0.02 * speed)


@pytest.mark.parametrize("speed", [2.5, 3.0, 4.0])
def test_fast_speech_leaves_nothing_out(speed: float) -> None:
    """A single filter skips what lies between its windows: of short clicks it lost a third to two thirds."""
    samples = np.zeros(20 * RATE, dtype=np.int16)
    starts = range(1000, len(samples) - 2000, 2111)
    for start in starts:
        samples[start : start + 24] = 12000 * np.sin(np.arange(24) * np.pi / 4)
    out = np.frombuffer(encode("pcm", samples, [FRAME], speed), dtype="<i2")
    loud = np.flatnonzero(np.abs(out.astype(int)) > 100)
    heard = 1 + np.count_nonzero(np.diff(loud) > 200)
    # Some fall on the edges of two windows, where both are faint.
    assert heard > 0.7 * len(starts)


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_speed_does_not_depend_on_the_chunks(sizes: list[int]) -> None:
    samples = tone(0.7)
    assert encode("pcm", samples, sizes, 1.3) == encode("pcm", samples, [len(samples)], 1.3)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
@pytest.mark.parametrize("name", STREAMS)
def test_any_sample_rate_can_be_encoded(name: str, rate: int) -> None:
    """Opus knows five rates only: the others are brought to the next one."""
    assert encoded_rate(STREAMS["opus"], rate) == {16_000: 16_000, 22_050: 24_000, 44_100: 48_000}[rate]
    encoder = open_encoder(name, rate)
    samples = np.zeros(rate, np.int16)
    data = encoder.feed(samples) + encoder.finish()
    if name == "pcm":
        assert len(data) == 2 * rate
        return
    if name != "opus":  # which libav decodes at 48 kHz always
        with av.open(io.BytesIO(data)) as container:
            assert container.streams.audio[0].rate == encoded_rate(STREAMS[name], rate)
    assert len(decode(name, data)) / RATE == pytest.approx(1, abs=LONGEST_EXTRA_MS / 1000)
