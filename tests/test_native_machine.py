"""The machine's yardsticks: no exact figure can be expected, but impossible ones can be refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from csm_hybrid import _native

# No processor does more than this with two threads; a busy machine may do as little as it likes.
SLOWEST, FASTEST = 0.0, 1e13


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [64 * 6, 4096, 100_001, 1 << 22])
def test_read_bandwidth_is_a_possible_figure(threads: int, size: int) -> None:
    pool = _native.ThreadPool(threads=threads)
    rates = _native.measure_read(pool=pool, bytes=size, samples=3, seconds=0.001)
    assert len(rates) == 3
    assert all(SLOWEST < r < FASTEST * threads for r in rates)


@pytest.mark.parametrize("arithmetic", ["f32", "int8"])
def test_peaks_are_possible_figures(arithmetic: str) -> None:
    rates = _native.measure_peak(pool=_native.ThreadPool(threads=2), arithmetic=arithmetic, samples=3, seconds=0.001)
    assert all(math.isfinite(r) and SLOWEST < r < FASTEST for r in rates)


def test_samples_last_as_long_as_was_asked() -> None:
    """Guards against a work so short that the clock's steps would be measured."""
    import time

    pool = _native.ThreadPool(threads=1)
    begin = time.perf_counter()
    _native.measure_peak(pool=pool, arithmetic="f32", samples=4, seconds=0.01)
    assert time.perf_counter() - begin >= 0.04 * 0.5  # the machine may have sped up since the first try


@pytest.mark.parametrize("isa", _native.available_isas())
def test_every_instruction_set_measures(isa: str) -> None:
    code = (
        "import csm_hybrid._native as n; p = n.ThreadPool(threads=1);"
        "print(n.isa(), *n.measure_read(pool=p, bytes=320, samples=1, seconds=1e-3),"
        " *(n.measure_peak(pool=p, arithmetic=a, samples=1, seconds=1e-3)[0] for a in ('f32', 'int8')))"
    )
    environment = os.environ | {"CSM_HYBRID_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    name, *rates = done.stdout.split()
    assert name == isa
    assert all(SLOWEST < float(r) < FASTEST for r in rates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bytes": 200, "samples": 1, "seconds": 0.1}, "less than two cache lines"),
        ({"bytes": 4096, "samples": 0, "seconds": 0.1}, "samples must be at least 1"),
        ({"bytes": 4096, "samples": 1, "seconds": 0.0}, "seconds must be positive"),
        ({"bytes": 4096, "samples": 1, "seconds": math.nan}, "seconds must be positive"),
    ],
)
def test_impossible_measurements_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.measure_read(pool=_native.ThreadPool(threads=2), **settings)


def test_unknown_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match="known: f32, int8"):
        _native.measure_peak(pool=_native.ThreadPool(threads=1), arithmetic="f64", samples=1, seconds=0.1)
