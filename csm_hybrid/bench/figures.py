"""Repeated measurements, and what may be said of them.

A figure is printed as its median and the range of its samples. Two figures differ *beyond noise* when their
ranges do not overlap and their medians are more than ``SMALLEST_CHANGE`` apart: of two sets of five samples
from the same distribution, one in 126 pairs lies apart by chance (2 of the 252 ways to share out ten samples).
Of three, it is one in ten; figures of fewer samples are not judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Better = Literal["lower", "higher", "neither"]
Key = TypeVar("Key")

# Below this, a difference is of no use to anyone, however steady the machine.
SMALLEST_CHANGE = 0.02
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Figure:
    """One quantity measured one or more times; ``unit`` is written after its numbers."""

    samples: tuple[float, ...]
    unit: str
    better: Better = "lower"

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a figure needs at least one sample")

    @property
    def median(self) -> float:
        """The middle sample, or the mean of the two in the middle."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The smallest sample."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The largest sample."""
        return max(self.samples)

    def scaled(self, factor: float, unit: str) -> Figure:
        """The same figure in another unit."""
        return Figure(tuple(s * factor for s in self.samples), unit, self.better)

    def to_json(self) -> dict[str, Any]:
        """Samples, and the median and range that follow from them."""
        return {
            "unit": self.unit,
            "better": self.better,
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "samples": list(self.samples),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Figure:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError for anything else."""
        return cls(tuple(float(s) for s in value["samples"]), str(value["unit"]), value["better"])


def figure(samples: Iterable[float], unit: str, better: Better = "lower") -> Figure:
    """A figure of any iterable of numbers."""
    return Figure(tuple(float(s) for s in samples), unit, better)


def ratio(of: Figure, to: Figure, better: Better = "lower") -> Figure:
    """The ratios of two figures sampled turn by turn: each pair met the same state of the machine."""
    pairs = zip(of.samples, to.samples, strict=True)
    return Figure(tuple(a / b for a, b in pairs), "×", better)


def apart(one: float, other: float) -> float:
    """By what share the larger of two quantities exceeds the smaller: the same for a rate and for its inverse."""
    low, high = sorted((one, other))
    if low == high:
        return 0.0
    return high / low - 1 if low > 0 else float("inf")


@dataclass(frozen=True)
class Change:
    """How a figure differs from an older one; less than ``smallest`` (see ``apart``) is no change."""

    name: str
    old: Figure
    new: Figure
    smallest: float = SMALLEST_CHANGE

    @property
    def factor(self) -> float:
        """New median ÷ old median."""
        return self.new.median / self.old.median if self.old.median else float("inf")

    @property
    def judged(self) -> bool:
        """Whether there are samples enough on both sides to tell a change from noise."""
        return min(len(self.old.samples), len(self.new.samples)) >= FEWEST_SAMPLES

    @property
    def beyond_noise(self) -> bool:
        """Whether the two ranges lie apart and the medians differ by more than ``smallest``."""
        separate = self.new.low > self.old.high or self.new.high < self.old.low
        return self.judged and separate and apart(self.new.median, self.old.median) > self.smallest

    @property
    def verdict(self) -> Literal["better", "worse", "changed", "same"]:
        """What the change means, ``same`` within noise and where it is not judged."""
        if not self.beyond_noise:
            return "same"
        if self.new.better == "neither":
            return "changed"
        smaller = self.new.median < self.old.median
        return "better" if smaller == (self.new.better == "lower") else "worse"


def interleave(
    runs: Mapping[Key, Callable[[], Mapping[str, float]]],
    *,
    warmup: int,
    rounds: int,
    progress: Callable[[Key], None] = lambda _: None,
) -> dict[Key, dict[str, list[float]]]:
    """Runs everything in turn, ``rounds`` times, after ``warmup`` rounds that do not count.

    A machine that slows down slows all of them down. Every run returns its measurements by name; the result
    holds, for each key and name, one sample a round. ``progress`` gets every counted run's key before
    it begins.
    """
    out: dict[Key, dict[str, list[float]]] = {key: {} for key in runs}
    for turn in range(warmup + rounds):
        for key, run in runs.items():
            if turn >= warmup:
                progress(key)
            values = run()
            if turn >= warmup:
                for name, value in values.items():
                    out[key].setdefault(name, []).append(value)
    return out


def short(value: float) -> str:
    """A number with three digits that count, without an exponent."""
    if value == 0 or not abs(value) < float("inf"):
        return f"{value:g}"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if abs(value) >= 1 else _places(value)
    return f"{value:.{digits}f}"


def _places(value: float) -> int:
    places, size = 2, abs(value)
    while size < 0.1 and places < 9:
        size *= 10
        places += 1
    return places + 1


def shown(value: Figure, *, unit: bool = True) -> str:
    """``37.1 ms (36.5–38.0)``; the range is left out where there is one sample."""
    if not value.unit and all(s == int(s) for s in value.samples):  # a count
        return f"{value.median:g}"
    text = short(value.median)
    if unit and value.unit:
        text += value.unit if value.unit in {"×", "%"} else f" {value.unit}"
    if len(value.samples) > 1:
        text += f" ({short(value.low)}–{short(value.high)})"
    return text


def sized(count: float, steps: Sequence[str] = ("B", "KiB", "MiB", "GiB")) -> str:
    """A number of bytes in a unit that suits it."""
    size, step = float(count), 0
    while size >= 1024 and step < len(steps) - 1:
        size /= 1024
        step += 1
    return f"{short(size)} {steps[step]}" if size % 1 else f"{int(size)} {steps[step]}"
