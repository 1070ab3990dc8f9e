"""What may be said of repeated measurements, on numbers whose answers are known."""

from __future__ import annotations

import itertools
import math

import pytest

from csm_hybrid.bench.figures import Change, Figure, apart, figure, interleave, ratio, short, shown, sized


@pytest.mark.parametrize(
    ("samples", "median"), [([3.0], 3.0), ([9, 1, 5], 5.0), ([4, 1, 3, 2], 2.5), ([1, 1, 1, 100], 1.0)]
)
def test_median_and_range(samples: list[float], median: float) -> None:
    value = figure(samples, "ms")
    assert (value.median, value.low, value.high) == (median, min(samples), max(samples))


def test_a_figure_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        figure([], "ms")


def change(old: list[float], new: list[float], better: str = "lower") -> str:
    return Change("x", Figure(tuple(old), "ms", better), Figure(tuple(new), "ms", better)).verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "better", "verdict"),
    [
        ([10, 11, 12], [7, 8, 9], "lower", "better"),
        ([10, 11, 12], [13, 14, 15], "lower", "worse"),
        ([10, 11, 12], [13, 14, 15], "higher", "better"),
        ([10, 11, 12], [13, 14, 15], "neither", "changed"),
        ([10, 11, 12], [12, 13, 14], "lower", "same"),  # the ranges touch
        ([10, 11, 99], [8, 9, 12], "lower", "same"),  # one slow run spoils the proof
        ([100, 100, 100], [101, 101, 101], "lower", "same"),  # steady, but too small to matter
        ([100, 100, 100], [103, 103, 103], "lower", "worse"),
        ([0, 0, 0], [0, 0, 0], "lower", "same"),
        ([0, 0, 0], [1, 1, 1], "lower", "worse"),
        ([10, 11], [20, 21], "lower", "same"),  # too few to tell
        ([10, 11, 12], [20, 21], "lower", "same"),
        ([0], [1], "lower", "same"),
    ],
)
def test_changes_are_told_beyond_noise_only(old: list[float], new: list[float], better: str, verdict: str) -> None:
    assert change(old, new, better) == verdict


def test_chance_alone_seldom_counts_as_a_change() -> None:
    """The docstring's promise: 2 of the 252 ways to share out ten different samples lie apart."""
    values = [1.0 * 1.1**i for i in range(10)]
    found = 0
    for chosen in itertools.combinations(range(10), 5):
        old = [values[i] for i in chosen]
        new = [values[i] for i in range(10) if i not in chosen]
        found += change(old, new) != "same"
    assert found == 2


def test_ratios_are_of_turns_not_of_medians() -> None:
    """A machine that halves its speed between turns must not show up in a ratio."""
    assert ratio(figure([1, 2, 4], "ms"), figure([2, 4, 8], "ms")).samples == (0.5, 0.5, 0.5)


def test_interleaving_takes_turns_and_leaves_the_warm_up_out() -> None:
    order: list[str] = []
    told: list[str] = []

    def run(name: str) -> dict[str, float]:
        order.append(name)
        return {"time": float(len(order))}

    found = interleave({n: lambda n=n: run(n) for n in "ab"}, warmup=1, rounds=2, progress=told.append)
    assert order == ["a", "b"] * 3
    assert found == {"a": {"time": [3.0, 5.0]}, "b": {"time": [4.0, 6.0]}}
    assert told == ["a", "b"] * 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1234"), (123.4, "123"), (37.14, "37.1"), (3.714, "3.71"), (0.3714, "0.371"),
     (0.03714, "0.0371"), (-3.714, "-3.71"), (float("inf"), "inf")],
)  # fmt: skip
def test_numbers_are_short_without_exponents(value: float, text: str) -> None:
    assert short(value) == text


def test_figures_show_their_range() -> None:
    assert shown(figure([37, 36.5, 38], "ms")) == "37.0 ms (36.5–38.0)"
    assert shown(figure([2], "×")) == "2.00×"
    assert shown(figure([16], "")) == "16"


@pytest.mark.parametrize(
    ("count", "text"), [(65536, "64 KiB"), (512, "512 B"), (3 << 29, "1.50 GiB"), (1 << 40, "1024 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert sized(count) == text


def test_json_round_trip() -> None:
    value = figure([1.5, 2.5], "ms", "higher")
    assert Figure.from_json(value.to_json()) == value


@pytest.mark.parametrize(("one", "other", "share"), [(100, 80, 0.25), (80, 100, 0.25), (0, 0, 0), (0, 1, math.inf)])
def test_how_far_two_quantities_lie_apart(one: float, other: float, share: float) -> None:
    assert apart(one, other) == pytest.approx(share)
