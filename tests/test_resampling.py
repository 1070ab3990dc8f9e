"""Bringing sound to the codec: mono, its rate, loudness untouched."""

from __future__ import annotations

import numpy as np
import pytest

from csm_hybrid.audio.resampling import prepare
from csm_hybrid.backends.base import whole_frames
from csm_hybrid.errors import InputError


def _tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_tone_keeps_its_pitch_and_loudness(rate: int) -> None:
    """Against the same tone made at the codec's rate; the ends, where a filter sees silence, aside."""
    got = prepare(_tone(rate), rate, 24000)
    expected = _tone(24000)
    assert got.dtype == np.float32
    assert abs(len(got) - len(expected)) <= 1
    middle = slice(2000, 10000)
    assert not np.abs(got[middle] - expected[middle]).max() > 1e-3


def test_channels_are_averaged_and_the_codecs_rate_is_left_alone() -> None:
    left, right = _tone(24000), _tone(24000, hertz=660)
    got = prepare(np.stack([left, right], 1), 24000, 24000)
    assert np.allclose(got, (left + right) / 2, atol=1e-7)
    assert np.array_equal(prepare(left, 24000, 24000), left)


@pytest.mark.parametrize(
    ("samples", "rate", "rule"),
    [
        (np.zeros(0, np.float32), 24000, "not empty"),
        (np.zeros((2, 2, 2), np.float32), 24000, "channels"),
        (np.array([0, np.nan], np.float32), 24000, "not finite"),
        (np.zeros(4, np.float32), 0, "must be positive"),
    ],
)
def test_bad_sound(samples: np.ndarray, rate: int, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        prepare(samples, rate, 24000)


def test_whole_frames_are_filled_with_silence() -> None:
    assert whole_frames(np.ones(5, np.float32), 4).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert len(whole_frames(np.ones(8, np.float32), 4)) == 8
    with pytest.raises(InputError, match="mono"):
        whole_frames(np.ones((2, 2), np.float32), 4)
