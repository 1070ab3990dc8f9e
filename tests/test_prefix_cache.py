"""Contexts that are kept: never fed again, bounded, and without any effect on the sound."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_backbone import POOL, feed

import csm_hybrid
from csm_hybrid.backends.base import SavedPrefix
from csm_hybrid.backends.open import open_backbone
from csm_hybrid.engine.prefix_cache import PrefixCache
from csm_hybrid.errors import InputError
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.options import Segment
from csm_hybrid.speech import Model

SAID = "The sun was shining when we left the house."
TEXT = "Please put the keys on the table."


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_copies_too(kind: str, bundles: Callable[[str, str], Path]) -> None:
    bundle = Bundle.open(bundles("voice", kind))
    backbone = open_backbone(bundle, POOL, engine="llama", slots=2, gpu_layers=0)
    x = np.random.default_rng(1).standard_normal((60, bundle.config.backbone.width)).astype(np.float32) * 0.1
    whole = [feed(backbone, x[a:b], a) for a, b in ((0, 40), (40, 60))]  # type: ignore[arg-type]
    saved = backbone.save(0, 40)
    assert saved is not None
    feed(backbone, x[::-1][:30], sequence=1)  # type: ignore[arg-type]
    backbone.forget(1)
    assert backbone.restore(1, saved)
    after = feed(backbone, x[40:], 40, sequence=1)  # type: ignore[arg-type]
    np.testing.assert_array_equal(after[0], whole[1][0])
    assert not backbone.restore(0, SavedPrefix(40, saved.data[:100])), "no copy of its own"
    np.testing.assert_array_equal(feed(backbone, x[:40])[0], whole[0][0])  # type: ignore[arg-type]
    backbone.close()


class Copier:
    """A backbone whose copies have a given size; it remembers what it was asked for."""

    def __init__(self, size: int = 100) -> None:
        self.size: int | None = size
        self.saves = 0
        self.fails = False

    def save(self, sequence: int, count: int) -> SavedPrefix | None:
        self.saves += 1
        if self.fails:
            raise MemoryError
        return None if self.size is None else SavedPrefix(count, np.zeros(self.size, np.uint8))

    def restore(self, sequence: int, saved: SavedPrefix) -> bool:
        return not self.fails


def context(number: int, rows: int = 1) -> np.ndarray:
    return np.full((rows, 4), number, np.int32)  # a key of 16 bytes a row


def test_those_used_last_stay() -> None:
    backbone = Copier()
    cache = PrefixCache(backbone, limit=3 * 116)  # type: ignore[arg-type]
    for number in (1, 2, 3):
        cache.keep(0, context(number))
    assert (len(cache), cache.size) == (3, 348)
    assert cache.recall(0, context(1)) == 1
    cache.keep(0, context(4))
    assert [cache.recall(0, context(n)) for n in (1, 2, 3, 4)] == [1, 0, 1, 1]
    cache.keep(0, context(4))
    assert backbone.saves == 4, "what is kept is not copied again"
    backbone.size = 300
    cache.keep(0, context(5, rows=2))
    assert (len(cache), cache.size) == (1, 332), "one that is large takes the place of several"
    assert cache.recall(0, context(5)) == 0
    assert cache.recall(0, context(5, rows=2)) == 2
    cache.clear()
    assert (len(cache), cache.size, cache.recall(0, context(5, rows=2))) == (0, 0, 0)


def test_what_does_not_fit_or_cannot_be_copied_is_not_kept() -> None:
    backbone = Copier(size=1000)
    cache = PrefixCache(backbone, limit=1015)  # type: ignore[arg-type]
    cache.keep(0, context(1, rows=2))
    backbone.size = None
    cache.keep(0, context(2))
    backbone.fails = True
    cache.keep(0, context(3))
    assert (len(cache), cache.size, backbone.saves) == (0, 0, 3)
    PrefixCache(backbone, limit=0).keep(0, context(1))  # type: ignore[arg-type]
    assert backbone.saves == 3
    backbone.fails, backbone.size = False, 10
    cache.keep(0, context(4))
    backbone.fails = True
    assert cache.recall(0, context(4)) == 0, "taken in again, where it cannot be put back"


def test_a_context_known_to_be_too_large_is_not_copied_again() -> None:
    backbone = Copier(size=1000)
    cache = PrefixCache(backbone, limit=1015)  # type: ignore[arg-type]
    cache.keep(0, context(1, rows=5))
    for number, rows in ((1, 5), (2, 5), (3, 9)):
        cache.keep(0, context(number, rows))
    assert (len(cache), backbone.saves) == (0, 1)
    backbone.size = 100
    cache.keep(0, context(4, rows=4))
    assert (len(cache), backbone.saves) == (1, 2), "a shorter one may fit"


def voice(model: Model, number: int, frames: int = 20) -> Segment:
    codes = np.random.default_rng(number).integers(0, 1024, (frames, model.config.codebooks)).astype(np.int32)
    return Segment(SAID, 0, codes)


@pytest.fixture
def model() -> Iterator[Model]:
    with csm_hybrid.load(slots=2) as opened:
        yield opened


def fed(model: Model) -> list[int]:
    """The positions of the passes that the backbone is given from now on."""
    counts: list[int] = []
    decode = model.backbone.decode

    def counting(embeddings: Any, *rest: Any) -> Any:
        counts.append(len(embeddings))
        return decode(embeddings, *rest)

    model.backbone.decode = counting  # type: ignore[method-assign]
    return counts


def test_a_known_voice_is_not_taken_in_again_and_sounds_the_same(model: Model) -> None:
    segment, counts = voice(model, 1), fed(model)
    own = len(model.prompt(TEXT))
    cold = model.speak(TEXT, seed=1, context=[segment])
    assert sum(counts) == len(model.prompt(TEXT, 0, [segment])) + len(cold.codes)
    for seed, text in ((1, TEXT), (2, SAID), (1, TEXT)):
        counts.clear()
        warm = model.speak(text, seed=seed, context=[segment])
        assert sum(counts) == len(model.prompt(text)) + len(warm.codes)
    np.testing.assert_array_equal(warm.samples, cold.samples)
    counts.clear()
    model.speak(TEXT, seed=1, context=[voice(model, 2)], max_seconds=0.08)
    assert sum(counts) > own + 20, "another voice is another one"


@pytest.mark.parametrize(("backbone", "company"), [("native", 3), ("native", 1), ("llama", 1)])
def test_the_sound_does_not_depend_on_what_is_kept(backbone: str, company: int) -> None:
    """Of long texts, whose chunks have the voice in common too; with the native engine also in company."""

    def speeches(limit: int) -> tuple[list[np.ndarray], int]:
        heard: list[list[np.ndarray]] = [[], [], []]
        with csm_hybrid.load(slots=min(2, company), prefix_cache=limit, backbone=backbone, gpu=False) as model:
            counts = fed(model)
            for _ in range(2):
                for first in range(0, 3, company):
                    running = [
                        (
                            i,
                            model.stream(
                                f"{SAID} {TEXT} " * 3, seed=i, context=[voice(model, i % 2)], history=history
                            ),
                        )
                        for i, history in list(enumerate((0.0, 15.0, 3.0)))[first : first + company]
                    ]
                    while running:
                        for i, stream in list(running):
                            chunk = next(stream, None)
                            running.remove((i, stream)) if chunk is None else heard[i].append(chunk)
        return [np.concatenate(chunks) for chunks in heard], sum(counts)

    without, most = speeches(0)
    kept, fewer = speeches(2**28)
    assert fewer < most
    for a, b in zip(without, kept, strict=True):
        np.testing.assert_array_equal(a, b)
        half = len(a) // 2
        np.testing.assert_array_equal(a[:half], a[half:])


def test_memory_stays_within_the_limit_over_many_voices() -> None:
    """Counted: no copy lives on that the cache does not hold, and none when the model is closed."""

    def copies() -> int:
        gc.collect()
        return sum(isinstance(thing, SavedPrefix) for thing in gc.get_objects())

    before = copies()
    with csm_hybrid.load() as model:
        model.speak(TEXT, seed=1, context=[voice(model, 0)], max_seconds=0.08)
        one = model.prefixes.size
    with csm_hybrid.load(prefix_cache=3 * one) as model:
        cache = model.prefixes
        for number in range(40):
            model.speak(TEXT, seed=1, context=[voice(model, number % 8)], max_seconds=0.08)
            assert cache.size <= cache.limit
            assert copies() - before == len(cache) <= 3
        assert len(cache) == 3
        assert cache.size == sum(len(key) + saved.data.nbytes for key, saved in cache._kept.items())
    assert copies() == before
    with pytest.raises(InputError, match="-1"):
        csm_hybrid.load(prefix_cache=-1)
