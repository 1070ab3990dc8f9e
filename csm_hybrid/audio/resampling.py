"""Sound as the codec takes it: mono, at its rate, whole frames. Loudness is left as it is."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float32]


def prepare(samples: NDArray[np.floating], rate: int, codec_rate: int) -> Floats:
    """Mono float32 samples (N,) at ``codec_rate`` from samples (N,) or (N, channels) at ``rate``.

    Channels are averaged, the rate is changed by soxr at its high quality. Raises InputError for an empty or
    misshapen sound, values that are not finite, or a rate that is not positive.
    """
    sound = np.asarray(samples, dtype=np.float32)
    if sound.ndim not in (1, 2) or sound.size == 0:
        raise InputError(f"a sound must be (samples,) or (samples, channels) and not empty, not {sound.shape}")
    if rate <= 0:
        raise InputError(f"the sample rate is {rate}, it must be positive")
    if not np.all(np.isfinite(sound)):
        raise InputError("the sound holds values that are not finite; is it decoded correctly?")
    if sound.ndim == 2:
        sound = sound.mean(axis=1, dtype=np.float32)
    if rate != codec_rate:
        sound = np.asarray(soxr.resample(sound, rate, codec_rate, quality="HQ"), dtype=np.float32)
    return np.ascontiguousarray(sound)
