"""The sampler: its distribution, its seeds, and logits that are not numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from csm_hybrid._native import Sampler


def draw(logits: np.ndarray, n: int, *, seed: int = 1, temperature: float = 1.0, top_k: int = 0) -> np.ndarray:
    sampler = Sampler(seed=seed, temperature=temperature, top_k=top_k)
    return np.array([sampler.sample(logits) for _ in range(n)])


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 5), (1.3, 100), (0.9, 16)])
def test_distribution(temperature: float, top_k: int) -> None:
    """Pearson's chi-square of 20 000 draws against softmax(logits / T) over the top k."""
    logits = np.random.default_rng(3).standard_normal(16).astype(np.float32) * 1.5
    kept = np.sort(logits)[-top_k] if 0 < top_k < len(logits) else -np.inf
    p = np.where(logits >= kept, np.exp(logits.astype(np.float64) / temperature), 0.0)
    p /= p.sum()
    n = 20_000
    counts = np.bincount(draw(logits, n, temperature=temperature, top_k=top_k), minlength=len(logits))
    assert np.all(counts[p == 0] == 0)
    inside = p > 0
    chi_square = np.sum((counts[inside] - n * p[inside]) ** 2 / (n * p[inside]))
    # With f degrees of freedom chi-square has mean f and variance 2 f: 5 standard deviations above. The seed
    # is fixed, so this either holds or doesn't; a wrong temperature or top-k misses it by far.
    freedom = int(inside.sum()) - 1
    assert chi_square <= freedom + 5 * math.sqrt(2 * freedom)


def test_seeds() -> None:
    logits = np.random.default_rng(4).standard_normal(2051).astype(np.float32)
    np.testing.assert_array_equal(draw(logits, 50, seed=7), draw(logits, 50, seed=7))
    assert np.any(draw(logits, 50, seed=7) != draw(logits, 50, seed=8))
    assert len(set(draw(logits, 50, seed=0))) > 25  # successive draws are not the same draw
    draw(logits, 1, seed=2**64 - 1)


def test_draws_of_neighbouring_seeds_are_independent() -> None:
    """Guards against noise that depends on seed + number: the streams of seeds s and s + 1 would be one,
    shifted."""
    logits = np.zeros(64, np.float32)
    a, b = draw(logits, 200, seed=10), draw(logits, 200, seed=11)
    for shift in (0, 1, 2):
        same = np.mean(a[shift:] == b[: len(b) - shift])
        assert same <= 1 / 64 + 5 * math.sqrt(1 / 64 / 200)  # 5 standard deviations of a fair coincidence


def test_a_draw_depends_on_its_number_and_logits_alone() -> None:
    """What other logits were drawn from before must not matter: a seed repeats whatever the first codes
    were."""
    rng = np.random.default_rng(5)
    first, second, last = rng.standard_normal((3, 100)).astype(np.float32)
    a, b = (Sampler(seed=3, temperature=0.8, top_k=20) for _ in range(2))
    a.sample(first)
    b.sample(second)
    assert a.sample(last) == b.sample(last)
    assert a.draws == b.draws == 2


def test_a_small_change_of_the_logits_changes_few_codes() -> None:
    """The noise belongs to an entry: 1 % noise on the logits may swap near ties only."""
    rng = np.random.default_rng(6)
    logits = rng.standard_normal((200, 500)).astype(np.float32)
    changed = logits + rng.standard_normal(logits.shape).astype(np.float32) * 0.01
    a, b = (Sampler(seed=9, temperature=1.0, top_k=50) for _ in range(2))
    same = np.mean([a.sample(x) == b.sample(y) for x, y in zip(logits, changed, strict=True)])
    assert same >= 0.9


def test_greedy_ignores_the_seed_and_takes_the_lowest_of_equals() -> None:
    logits = np.array([0, 5, 5, 1], np.float32)
    for seed in range(20):
        assert draw(logits, 1, seed=seed, temperature=0.0)[0] == 1


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.random.default_rng(7).standard_normal(100).astype(np.float32)
    assert set(draw(logits, 50, temperature=1e-30)) == {int(np.argmax(logits))}


def test_ties_with_the_last_kept_entry_stay() -> None:
    logits = np.array([3, 1, 1, 1, 0], np.float32)
    assert set(draw(logits, 500, top_k=2)) == {0, 1, 2, 3}
    assert set(draw(logits, 50, top_k=1)) == {0}


@pytest.mark.parametrize("vocab", [1, 15, 16, 33, 300, 2051])
@pytest.mark.parametrize("top_k", [1, 2, 17, 50])
def test_kept_entries(vocab: int, top_k: int) -> None:
    """Which entries are ever drawn, with rounded logits (many ties), negative ones and some that are no numbers."""
    rng = np.random.default_rng(vocab * 100 + top_k)
    for spread in (1, 40):
        logits = (np.round(rng.standard_normal(vocab) * spread * 4) / 4 - 9).astype(np.float32)
        logits[rng.random(vocab) < 0.1] = rng.choice([np.nan, -np.inf])
        numbers = np.sort(logits[np.isfinite(logits)])
        if len(numbers) == 0:
            continue
        least = numbers[-top_k] if top_k <= len(numbers) else -np.inf
        kept = set(np.flatnonzero((logits >= least) & np.isfinite(logits)))
        # At this temperature all are as likely as any: 40 draws for each miss one with probability n e^-40.
        assert set(draw(logits, 40 * len(kept), temperature=1e6, top_k=top_k)) == kept
        assert draw(logits, 1, temperature=0, top_k=top_k)[0] == np.nanargmax(logits)


def test_top_k_of_the_whole_vocabulary_or_more_keeps_all() -> None:
    logits = np.zeros(8, np.float32)
    for top_k in (-1, 0, 8, 9, 2**31 - 1):
        assert set(draw(logits, 300, top_k=top_k)) == set(range(8))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 2, 3, 50])
def test_not_a_number_is_never_drawn(temperature: float, top_k: int) -> None:
    nan, inf = np.nan, np.inf
    logits = np.array([nan, 1, nan, 1.5, -inf, nan], np.float32)
    assert set(draw(logits, 100, temperature=temperature, top_k=top_k)) <= {1, 3}
    assert set(draw(np.array([nan, nan], np.float32), 10, temperature=temperature, top_k=top_k)) == {0}
    assert set(draw(np.array([-inf, -inf], np.float32), 10, temperature=temperature, top_k=top_k)) == {0}
    assert set(draw(np.array([nan, -inf], np.float32), 10, temperature=temperature, top_k=top_k)) == {0}
    assert set(draw(np.array([nan, inf, 5, inf], np.float32), 10, temperature=temperature, top_k=top_k)) == {1}


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_unusable_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number"):
        Sampler(seed=0, temperature=temperature, top_k=0)


def test_unusable_logits() -> None:
    sampler = Sampler(seed=0, temperature=1.0, top_k=0)
    with pytest.raises(ValueError, match="empty"):
        sampler.sample(np.zeros(0, np.float32))
    with pytest.raises(TypeError, match="float32"):
        sampler.sample(np.zeros(3))


def test_code_0_and_the_others_have_their_own_settings() -> None:
    logits = np.random.default_rng(4).normal(size=50).astype(np.float32)
    mixed = Sampler(seed=1, temperature=0.0, top_k=1, depth_temperature=1.5, depth_top_k=0)
    first = [mixed.sample(logits, codebook=0) for _ in range(30)]
    depth = [mixed.sample(logits, codebook=3) for _ in range(30)]
    assert set(first) == {int(logits.argmax())}
    assert len(set(depth)) > 5
    plain = Sampler(seed=1, temperature=1.5, top_k=0)
    drawn = [plain.sample(logits) for _ in range(60)]
    assert drawn[30:] == depth, "the n-th draw of a seed does not depend on the settings of earlier ones"
