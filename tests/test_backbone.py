"""The native backbone against slow NumPy, against llama.cpp, and against itself in other company."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference.random_decoder import random_backbone_tensors, random_config
from reference.tower import ReferenceTower

from csm_hybrid import _native, load
from csm_hybrid.backends.base import SavedPrefix
from csm_hybrid.backends.native_backbone import NativeBackbone
from csm_hybrid.backends.open import open_backbone
from csm_hybrid.errors import EngineError, ModelInvalid
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.config import ModelConfig
from csm_hybrid.model.ggml import GGMLType

POOL = _native.ThreadPool(threads=2)

F32_TOLERANCE = 2e-5
"""Relative to the largest value: as for the depth decoder, which is the same tower (test_depth_decoder.py)."""
ROUNDING = 0.04
"""Root mean square error over all positions that 8-bit activations cause, relative to the values: derived there
as well, where it is the root mean square over the positions of a frame."""
LLAMA_F32_TOLERANCE = 1e-4
"""Two engines that round sums of up to 768 f32 products in another order, in 6 layers."""
LLAMA_Q8_TOLERANCE = 2**0.5 * ROUNDING * (6 / 2) ** 0.5
"""Both round activations to 8 bits in blocks of 32, llama.cpp with a scale in f16 and keys and values in f16, and
each is at most ROUNDING from exact activations in 2 layers: at worst their errors are independent. Each of the
voice's 6 layers adds errors of its own, independent of the others'."""

QUANTISED = ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
POSITIONS = 70  # more than one group of 16, one tile of 32 queries and one pass of 64


def sized(*, positions: int = POSITIONS, **sizes: int) -> ModelConfig:
    """Sizes of a backbone; no multiples of 16 or 32 unless asked for."""
    config = random_config(vocab=37)
    odd = {"layers": 2, "width": 48, "heads": 6, "kv_heads": 2, "head_dim": 10, "ffn": 72}
    return dataclasses.replace(
        config, backbone=dataclasses.replace(config.decoder, positions=positions, **(odd | sizes))
    )


EVEN = sized(width=256, heads=8, kv_heads=2, head_dim=32, ffn=512)


def embeddings(config: ModelConfig, n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, config.backbone.width)).astype(np.float32)


def feed(backbone: NativeBackbone, x: np.ndarray, start: int = 0, sequence: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions ``start`` ... of one sequence in one pass, all of them wanted."""
    n = len(x)
    positions = np.arange(start, start + n, dtype=np.int32)
    return backbone.decode(x, positions, np.full(n, sequence, np.int32), np.ones(n, np.bool_))


def expected(
    config: ModelConfig, tensors: dict, x: np.ndarray, *, rounded: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits by the slow reference."""
    tower = ReferenceTower(config.backbone, tensors, round_activations=rounded)
    hidden = np.array([tower.step(row) for row in x.astype(np.float64)])
    return hidden, np.array([tower.product("output.weight", row) for row in hidden])


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))


def rms_error(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square error over all positions, relative to the values."""
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


def rms_errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Root mean square error of each position, relative to its values."""
    return np.asarray(np.sqrt(np.mean((got - want) ** 2, axis=1) / np.mean(want**2, axis=1)))


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.F16, GGMLType.BF16], ids=lambda k: k.name)
@pytest.mark.parametrize("sizes", [{}, {"layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 2, "ffn": 1}])
def test_unquantised_weights(sizes: dict[str, int], kind: GGMLType) -> None:
    config = sized(**sizes)
    tensors = random_backbone_tensors(config, kind)
    x = embeddings(config, POSITIONS)
    got = feed(NativeBackbone(config, tensors, POOL), x)
    for mine, want in zip(got, expected(config, tensors, x), strict=True):
        assert relative_error(mine, want) <= F32_TOLERANCE


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights(name: str) -> None:
    tensors = random_backbone_tensors(EVEN, GGMLType[name])
    x = embeddings(EVEN, 12)
    got = feed(NativeBackbone(EVEN, tensors, POOL), x)
    for mine, want in zip(got, expected(EVEN, tensors, x), strict=True):
        assert rms_error(mine, want) <= ROUNDING
    # With the reference rounding the same way only f32's error is left, until a value that is nearly halfway between
    # two steps goes to the other one: position 0, which sees no other, comes through most often.
    first = [feed(NativeBackbone(EVEN, tensors, POOL), row[None])[0][0] for row in x]
    same = [expected(EVEN, tensors, row[None], rounded=True)[0][0] for row in x]
    assert np.min(rms_errors(np.array(first), np.array(same))) <= F32_TOLERANCE


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K], ids=lambda k: k.name)
def test_results_depend_on_the_own_sequence_alone(kind: GGMLType) -> None:
    """Whole, cut anywhere, or woven among other sequences: the same bits."""
    tensors = random_backbone_tensors(EVEN, kind)
    x = embeddings(EVEN, POSITIONS)
    whole = feed(NativeBackbone(EVEN, tensors, POOL), x)
    for cuts in ([1], [16, 17, 40], range(1, POSITIONS)):
        backbone = NativeBackbone(EVEN, tensors, POOL)
        pieces = [feed(backbone, part, start) for part, start in zip(np.split(x, cuts), [0, *cuts], strict=True)]
        for got, want in zip(zip(*pieces, strict=True), whole, strict=True):
            np.testing.assert_array_equal(np.concatenate(got), want)
    woven(NativeBackbone(EVEN, tensors, POOL, slots=4), x, whole)


def woven(backbone: NativeBackbone, x: np.ndarray, whole: tuple[np.ndarray, np.ndarray]) -> None:
    """Feeds sequence 2 in pieces of random sizes beside random pieces of the others, in random order."""
    rng = np.random.default_rng(7)
    length = [0, 0, 0, 0]
    while length[2] < len(x):
        counts = [int(rng.integers(0, 9)) if s != 2 else int(rng.integers(1, 12)) for s in range(4)]
        counts = [min(c, len(x) - length[s]) for s, c in enumerate(counts)]
        owner = rng.permutation(np.repeat(np.arange(4, dtype=np.int32), counts))
        places = np.zeros(len(owner), np.int32)
        rows = rng.standard_normal((len(owner), x.shape[1])).astype(np.float32)
        for s in range(4):
            places[owner == s] = length[s] + np.arange(counts[s])
        rows[owner == 2] = x[places[owner == 2]]
        wanted = rng.random(len(owner)) < 0.7
        hidden, logits = backbone.decode(rows, places, owner, wanted)
        mine = owner[wanted] == 2
        np.testing.assert_array_equal(hidden[mine], whole[0][places[wanted][mine]])
        np.testing.assert_array_equal(logits[mine], whole[1][places[wanted][mine]])
        length = [length[s] + counts[s] for s in range(4)]


@pytest.mark.parametrize("threads", [1, 3, 7, 40])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    tensors = random_backbone_tensors(EVEN, GGMLType.Q8_0)
    x = embeddings(EVEN, 40)
    want = feed(NativeBackbone(EVEN, tensors, POOL), x)
    got = feed(NativeBackbone(EVEN, tensors, _native.ThreadPool(threads=threads)), x)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_nothing_is_left_of_a_forgotten_sequence() -> None:
    tensors = random_backbone_tensors(EVEN)
    x = embeddings(EVEN, 20)
    backbone = NativeBackbone(EVEN, tensors, POOL, slots=2)
    beside = feed(backbone, x[:5], sequence=1)
    feed(backbone, np.full((30, EVEN.backbone.width), 3, np.float32))
    backbone.forget(0)
    for got, want in zip(feed(backbone, x), feed(NativeBackbone(EVEN, tensors, POOL), x), strict=True):
        np.testing.assert_array_equal(got, want)
    more = feed(backbone, x[5:], 5, sequence=1)
    for start, rest, want in zip(beside, more, feed(NativeBackbone(EVEN, tensors, POOL), x), strict=True):
        np.testing.assert_array_equal(np.concatenate([start, rest]), want)


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.Q8_0], ids=lambda k: k.name)
def test_what_follows_a_copy_is_the_same_in_every_bit(kind: GGMLType) -> None:
    """In another sequence that has held something else, cut into other passes, beside a third one."""
    config = EVEN if kind is GGMLType.Q8_0 else sized()
    backbone = NativeBackbone(config, random_backbone_tensors(config, kind), POOL, slots=3)
    x, other = embeddings(config, POSITIONS), embeddings(config, POSITIONS, seed=2)
    whole = feed(backbone, x)
    beside = feed(backbone, other[:20], sequence=2)
    for count in (1, 15, 16, 17, 40, 64, POSITIONS - 1):  # about the groups of 16 positions in which keys lie
        saved = backbone.save(0, count)
        feed(backbone, other, sequence=1)
        backbone.forget(1)
        assert backbone.restore(1, saved)
        middle = (count + POSITIONS) // 2
        parts = [feed(backbone, x[a:b], a, sequence=1) for a, b in ((count, middle), (middle, POSITIONS)) if a < b]
        for i in (0, 1):
            np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i][count:])
        backbone.forget(1)
    again = feed(backbone, other[20:30], 20, sequence=2)
    backbone.forget(2)
    np.testing.assert_array_equal(feed(backbone, other[:20], sequence=2)[0], beside[0])
    np.testing.assert_array_equal(feed(backbone, other[20:30], 20, sequence=2)[0], again[0])


def test_a_copy_is_as_large_as_its_keys_and_values() -> None:
    backbone = NativeBackbone(EVEN, random_backbone_tensors(EVEN, GGMLType.Q8_0), POOL)
    feed(backbone, embeddings(EVEN, 48))
    tower = EVEN.backbone
    position = 2 * tower.layers * tower.kv_heads * tower.head_dim * 4
    assert backbone.save(0, 48).data.nbytes == 48 * position
    assert backbone.save(0, 33).data.nbytes <= 48 * position


def test_what_cannot_be_copied_is_refused_and_changes_nothing() -> None:
    config = sized()
    backbone = NativeBackbone(config, random_backbone_tensors(config, GGMLType.F32), POOL, slots=2)
    x = embeddings(config, 20)
    whole = feed(backbone, x)
    backbone.forget(0)
    feed(backbone, x[:10])
    saved = backbone.save(0, 10)
    for refused in (
        lambda: backbone.save(0, 11),
        lambda: backbone.save(0, -1),
        lambda: backbone.save(0, POSITIONS + 1),
        lambda: backbone.save(2, 1),
        lambda: backbone.restore(0, saved),
        lambda: backbone.restore(-1, saved),
        lambda: backbone.restore(1, SavedPrefix(11, saved.data[:-1])),
        lambda: backbone.restore(1, SavedPrefix(40, saved.data)),
        lambda: backbone.restore(1, SavedPrefix(POSITIONS + 1, saved.data)),
    ):
        with pytest.raises(EngineError):
            refused()
    np.testing.assert_array_equal(feed(backbone, x[10:], 10)[0], whole[0][10:])
    feed(backbone, x, sequence=1)


def test_a_value_that_is_not_a_number_stays_in_its_sequence() -> None:
    backbone = NativeBackbone(EVEN, random_backbone_tensors(EVEN, GGMLType.Q8_0), POOL, slots=2)
    x = embeddings(EVEN, 20)
    bad = x.copy()
    bad[3, 5] = np.nan
    rows, owner = np.concatenate([bad, x]), np.repeat(np.arange(2, dtype=np.int32), 20)
    places, wanted = np.tile(np.arange(20, dtype=np.int32), 2), np.ones(40, np.bool_)
    hidden, _ = backbone.decode(rows, places, owner, wanted)
    assert np.isfinite(hidden[20:]).all()
    assert np.isnan(hidden[3:20]).any(axis=1).all()
    backbone.forget(0)
    np.testing.assert_array_equal(feed(backbone, x)[0], hidden[20:])


INSTRUCTION_SETS = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_backbone import EVEN, POOL, NativeBackbone, embeddings, feed, random_backbone_tensors
from csm_hybrid.model.ggml import GGMLType
for kind in (GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K):
    tensors = random_backbone_tensors(EVEN, kind)
    hidden, _ = feed(NativeBackbone(EVEN, tensors, POOL), embeddings(EVEN, 1))
    np.save({out!r} + "-" + kind.name + ".npy", hidden)
"""


@pytest.mark.parametrize("isa", _native.available_isas())
def test_instruction_sets(isa: str, tmp_path: Path) -> None:
    """Each against the slow reference in f32, and against exact activations where they are rounded."""
    out = tmp_path / "hidden"
    code = INSTRUCTION_SETS.format(tests=str(Path(__file__).parent), out=str(out))
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"CSM_HYBRID_ISA": isa}, check=True)
    for kind in (GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K):
        want, _ = expected(EVEN, random_backbone_tensors(EVEN, kind), embeddings(EVEN, 1))
        got = np.load(f"{out}-{kind.name}.npy")
        error = relative_error(got, want) if kind == GGMLType.F32 else rms_error(got, want)
        assert error <= (F32_TOLERANCE if kind == GGMLType.F32 else ROUNDING)


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", LLAMA_F32_TOLERANCE), ("q8_0", LLAMA_Q8_TOLERANCE)])
def test_against_llama_cpp(kind: str, tolerance: float, bundles: Callable[[str, str], Path]) -> None:
    """Two sequences of the voice's model, a prompt and then single positions, through both engines."""
    with Bundle.open(bundles("voice", kind)) as bundle:
        engines = [open_backbone(bundle, POOL, engine=e, slots=2, gpu_layers=0) for e in ("native", "llama")]
        x = embeddings(bundle.config, 100, seed=3)
        owner = np.array([0] * 50 + [1] * 30 + [0, 1] * 10, np.int32)
        places = np.concatenate(
            [np.arange(50), np.arange(30), np.stack([np.arange(50, 60), np.arange(30, 40)], 1).ravel()]
        )
        for begin, end in [(0, 50), (50, 80), *((i, i + 2) for i in range(80, 100, 2))]:
            rows = slice(begin, end)
            wanted = np.ones(end - begin, np.bool_)
            wanted[0] = False
            (native, native_logits), (llama, llama_logits) = (
                e.decode(x[rows], places[rows].astype(np.int32), owner[rows], wanted) for e in engines
            )
            assert rms_error(native, llama) <= tolerance
            assert rms_error(native_logits, llama_logits) <= tolerance
        for engine in engines:
            engine.close()


def test_speech_of_both_engines(bundles: Callable[[str, str], Path]) -> None:
    """In f32 the errors of 1e-5 decide no greedy choice of a short sentence: the same codes, hence the same sound."""
    path = bundles("voice", "f32")
    said = []
    for engine in ("native", "llama"):
        with load(path, gpu=False, backbone=engine, decoder=engine) as model:
            said.append(model.speak("Hello there.", temperature=0, max_seconds=3))
    assert said[0].codes.shape[0] > 5
    np.testing.assert_array_equal(said[0].codes, said[1].codes)
    np.testing.assert_array_equal(said[0].samples, said[1].samples)


# ---- unusable input ----


def test_every_problem_of_the_weights_is_listed() -> None:
    config = sized()
    tensors = random_backbone_tensors(config)
    del tensors["blk.1.ffn_up.weight"]
    tensors["output.weight"] = dataclasses.replace(tensors["output.weight"], shape=(48, 37))
    with pytest.raises(ModelInvalid) as caught:
        NativeBackbone(config, tensors, POOL)
    for part in (
        "output.weight has the shape (48, 37), not (37, 48)",
        "blk.1.ffn_up.weight is missing; it must have the shape (72, 48)",
    ):
        assert part in str(caught.value)


def test_a_refused_pass_changes_nothing() -> None:
    config = sized(positions=10)
    tensors = random_backbone_tensors(config)
    backbone = NativeBackbone(config, tensors, POOL, slots=2)
    x = embeddings(config, 11)
    feed(backbone, x[:6])
    with pytest.raises(EngineError, match="slot 0 is full: it holds 10 positions"):
        feed(backbone, x[6:], 6)
    with pytest.raises(EngineError, match="the next position of slot 0 is 6, not 7"):
        feed(backbone, x[7:], 7)
    with pytest.raises(EngineError, match=r"slot 2 is outside 0\.\.1"):
        feed(backbone, x[:1], sequence=2)
    with pytest.raises(EngineError, match=r"embeddings must have the shape \(any, 48\), not \(2, 47\)"):
        feed(backbone, x[:2, 1:], 6)
    got = feed(backbone, x[6:10], 6)
    want = feed(NativeBackbone(config, tensors, POOL), x[:10])
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs[6:])


def test_unwanted_results_cost_nothing() -> None:
    backbone = NativeBackbone(EVEN, random_backbone_tensors(EVEN), POOL)
    x = embeddings(EVEN, 3)
    hidden, logits = backbone.decode(x, np.arange(3, dtype=np.int32), np.zeros(3, np.int32), np.zeros(3, np.bool_))
    assert hidden.shape == (0, EVEN.backbone.width)
    assert logits.shape == (0, EVEN.audio_vocab)


def test_only_passes_whose_results_are_all_wanted_are_measured() -> None:
    backbone = NativeBackbone(EVEN, random_backbone_tensors(EVEN), POOL)
    x = embeddings(EVEN, 5)
    backbone.measure(on=True)
    backbone.decode(x[:3], np.arange(3, dtype=np.int32), np.zeros(3, np.int32), np.arange(3) == 2)
    assert backbone.parts() == {"attention": 0.0, "feed_forward": 0.0, "head": 0.0, "barriers": 0.0}
    feed(backbone, x[3:4], 3)
    found = backbone.parts()
    assert all(seconds > 0 for seconds in found.values()), found
    backbone.measure(on=False)
    feed(backbone, x[4:], 4)
    assert backbone.parts() == found


def test_more_memory_than_there_is() -> None:
    """A context that no machine holds is an error of one line, and at once."""
    config = sized(positions=1 << 17, layers=1, heads=2, kv_heads=2, head_dim=256)
    with pytest.raises(
        EngineError, match="not enough memory for the backbone with 1048576 streams of 131072 positions"
    ):
        NativeBackbone(config, random_backbone_tensors(config), POOL, slots=1 << 20)


@pytest.mark.parametrize("engine", ["native", "llama"])
def test_closed(engine: str, bundles: Callable[[str, str], Path]) -> None:
    with Bundle.open(bundles("voice", "q8_0")) as bundle:
        backbone = open_backbone(bundle, POOL, engine=engine, gpu_layers=0)
        backbone.close()
        backbone.close()
        with pytest.raises(EngineError, match="the backbone is closed"):
            feed(backbone, embeddings(bundle.config, 1))  # type: ignore[arg-type]


def test_unknown() -> None:
    with pytest.raises(EngineError, match="unknown engine 'gpu'; known: auto, native, llama"):
        open_backbone(None, POOL, engine="gpu")  # type: ignore[arg-type]
