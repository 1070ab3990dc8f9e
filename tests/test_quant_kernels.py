"""Every kernel of every instruction set that this CPU has, against NumPy.

Integer parts are compared exactly, by inputs for which every float operation is exact; with general inputs
floats are held to a bound derived from the number of roundings.
"""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from csm_hybrid import _native
from csm_hybrid.model.ggml import quantize_rows, row_bytes

EPS = 2.0**-24  # largest relative error of one f32 rounding

PLAIN = [T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1]
K_QUANTS = [T.Q4_K, T.Q5_K, T.Q6_K]
FLOATS = [T.F32, T.F16, T.BF16]
ISAS = _native.available_isas()

# (offset of the quants in a block, bytes of a block) of the formats with an offset added to each weight.
AFFINE = {T.Q4_1: (4, 20), T.Q5_1: (4, 24), T.Q4_K: (16, 144), T.Q5_K: (16, 176)}


def weights(kind: T, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Rows (rows, row_bytes) uint8 of random weights whose size differs from row to row."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, cols)).astype(np.float32) * np.exp(rng.standard_normal((rows, 1))).astype(
        np.float32
    )
    if kind in FLOATS:
        return gguf.quants.quantize(w, kind).view(np.uint8).reshape(rows, -1)
    return quantize_rows(kind, w)


def dequantised(kind: T, data: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(data.view(np.float32) if kind == T.F32 else data, kind).astype(np.float64)


def product(isa: str, kind: T, data: np.ndarray, cols: int, x: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(data).reshape(-1)
    return _native.kernel_matmul(isa=isa, data=flat, type=int(kind), rows=len(data), cols=cols, x=x)


def rounded(isa: str, x: np.ndarray) -> np.ndarray:
    """The values (n, cols) float64 that the activations are rounded to."""
    q, scale = _native.kernel_round(isa=isa, x=x.reshape(-1))
    return (q.reshape(-1, 32).astype(np.float64) * scale[:, None]).reshape(x.shape)


def shapes(kind: T) -> list[tuple[int, int]]:
    if kind in FLOATS:
        return [(1, 1), (16, 2), (17, 31), (40, 129)]
    if kind in K_QUANTS:
        return [(1, 256), (17, 512), (40, 768)]
    return [(1, 32), (16, 64), (17, 96), (40, 1056)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", PLAIN + K_QUANTS, ids=lambda k: k.name)
def test_quantised_product(isa: str, kind: T) -> None:
    """Against the weights as gguf-py dequantises them, times the rounded activations, in float64."""
    for rows, cols in shapes(kind):
        data = weights(kind, rows, cols)
        w = dequantised(kind, data)
        offset = np.zeros_like(w)
        if kind in AFFINE:
            begin, size = AFFINE[kind]
            bare = data.copy().reshape(rows, -1, size)
            bare[:, :, begin:] = 0  # q = 0 everywhere: what remains is the offset
            offset = np.abs(dequantised(kind, bare.reshape(rows, -1)))
        for n in (1, 2, 3, 8, 13):
            x = np.random.default_rng(n).standard_normal((n, cols)).astype(np.float32)
            x_rounded = rounded(isa, x)
            got = product(isa, kind, data, cols, x).astype(np.float64)
            # A block adds two terms, |d q x| <= (|w| + |offset|) |x| and |offset x|, each after at most 5
            # roundings (d sc, its product with the activation's scale, the fused multiply-add without
            # fusing), and every sum is rounded once more for each of the at most 2 cols / 16 terms that
            # follow.
            terms = np.abs(x_rounded) @ (np.abs(w) + 2 * offset).T
            bound = (5 + 2 * cols / 16) * EPS * terms
            error = np.abs(got - x_rounded @ w.T)
            assert np.all(error <= bound), f"{rows}x{cols}, n={n}: {np.max(error / bound)} of the bound"


def exact_weights(kind: T, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Random bits for everything but d = m = dmin = 1, so that all weights are integers."""
    data = rng.integers(0, 256, (rows, row_bytes(kind, cols)), dtype=np.uint8)
    one = np.array([1.0], np.float16).view(np.uint8)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = data.reshape(rows, -1, size)
    if kind == T.Q6_K:
        # Scales in -64 .. 63: a sum of 16 products of 63 and 127 stays below 2^24 after them.
        blocks[:, :, 192:208] = (rng.integers(-64, 64, blocks[:, :, 192:208].shape)).astype(np.int8).view(np.uint8)
        blocks[:, :, 208:210] = one
    else:
        blocks[:, :, 0:2] = one
        if kind in AFFINE:
            blocks[:, :, 2:4] = one
    return data


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", PLAIN + K_QUANTS, ids=lambda k: k.name)
def test_integer_parts_are_exact(isa: str, kind: T) -> None:
    """All-integer inputs, up to the largest sums: an overflow or a saturation in 8, 16 or 32 bits would
    show."""
    rng = np.random.default_rng(5)
    cols = 256
    data = exact_weights(kind, 48, cols, rng)
    data[16:] = data[16:] | exact_weights(kind, 32, cols, rng)  # more ones: larger quants
    quants = dequantised(kind, data)
    x = np.zeros((9, cols), np.float32)
    for b in range(8):  # one block at full scale, all signs, at each of the 8 places
        x[b, 32 * b : 32 * b + 32] = 127 * rng.choice([-1, 1], 32)
    x[3, 96:128] = 127
    x[4, 128:160] = -127
    x[8] = rng.integers(-2, 3, cols)
    x[8, ::32] = 127
    expected = (x.astype(np.int64) @ quants.astype(np.int64).T).astype(np.float64)
    got = product(isa, kind, data, cols, x).astype(np.float64)
    assert np.max(np.abs(expected)) < 2**24
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FLOATS, ids=lambda k: k.name)
def test_float_product(isa: str, kind: T) -> None:
    for rows, cols in shapes(kind):
        data = weights(kind, rows, cols)
        w = dequantised(kind, data)
        for n in (1, 2, 3, 8, 13):
            x = np.random.default_rng(n).standard_normal((n, cols)).astype(np.float32)
            got = product(isa, kind, data, cols, x).astype(np.float64)
            # Each of cols products is rounded, and each of the cols + 1 additions.
            bound = (cols + 2) * EPS * (np.abs(x.astype(np.float64)) @ np.abs(w).T)
            assert np.all(np.abs(got - x.astype(np.float64) @ w.T) <= bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", PLAIN + K_QUANTS + FLOATS, ids=lambda k: k.name)
def test_a_vector_gives_the_same_bits_alone_and_in_a_batch(isa: str, kind: T) -> None:
    rows, cols = 33, 512
    data = weights(kind, rows, cols)
    x = np.random.default_rng(1).standard_normal((23, cols)).astype(np.float32)
    together = product(isa, kind, data, cols, x)
    for b in (0, 7, 8, 15, 16, 19, 20, 21, 22):  # places in passes of 8, 4, 2 and 1
        np.testing.assert_array_equal(product(isa, kind, data, cols, x[b : b + 1])[0], together[b])


@pytest.mark.parametrize("isa", ISAS)
def test_rounding_of_activations(isa: str) -> None:
    x = np.random.default_rng(2).standard_normal(64 * 32).astype(np.float32)
    x[:32] = 0
    x[32:64] *= np.float32(1e-30)
    x[64:96] = [-127, 126.5, 125.5, *range(29)]  # halfway: to even
    q, scale = _native.kernel_round(isa=isa, x=x)
    largest = np.max(np.abs(x.reshape(-1, 32)), axis=1)
    np.testing.assert_array_equal(scale, largest / np.float32(127))
    error = np.abs(x.reshape(-1, 32) - q.reshape(-1, 32) * scale[:, None].astype(np.float64))
    assert np.all(error <= (0.5 + 127 * 4 * EPS) * scale[:, None])  # half a step and the rounding of x / scale
    assert np.all(np.max(np.abs(q.reshape(-1, 32).astype(int)), axis=1)[largest > 0] == 127)
    assert list(q[64:67]) == [-127, 126, 126]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_activation_is_not_hidden(isa: str, bad: float) -> None:
    """Guards against a maximum that drops NaN: the block would be rounded as if nothing were wrong."""
    x = np.ones((1, 64), np.float32)
    x[0, 40] = bad
    data = weights(T.Q8_0, 16, 64)
    assert np.all(np.isnan(product(isa, T.Q8_0, data, 64, x)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
def test_vector_operations(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    a = (rng.standard_normal(n) * 4).astype(np.float32)
    b = rng.standard_normal(n).astype(np.float32)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)

    def run(name: str) -> np.ndarray:
        return _native.kernel_vector(isa=isa, name=name, a=a, b=b).astype(np.float64)

    def close(got: np.ndarray, expected: np.ndarray, roundings: float) -> bool:
        return bool(np.all(np.abs(got - expected) <= roundings * EPS * np.abs(expected)))

    assert np.all(np.abs(run("add_scaled") - (b64 + 0.5 * a64)) <= 2 * EPS * (np.abs(b64) + np.abs(a64)))
    # n + 6 roundings: the sum, the mean, eps, the root, the reciprocal and two products.
    assert close(run("rms_norm"), a64 / np.sqrt(np.mean(a64**2) + 1e-5) * b64, n + 6)
    # exp within 2e-7 (kernels/vector_ops.inc), 4 roundings.
    assert close(run("silu_mul"), a64 / (1 + np.exp(-a64)) * b64, 4 + 2e-7 / EPS)
    # exp of a difference rounded once (|difference| < 40), the sum of n, the reciprocal, the product.
    soft = np.exp(a64 - a64.max())
    assert close(run("softmax"), soft / soft.sum(), n + 40 + 2 * 2e-7 / EPS)


@pytest.mark.parametrize("isa", ISAS)
def test_silu_far_out(isa: str) -> None:
    a = np.array([-1e30, -200, -88, 88, 200, 1e30, 0, np.nan], np.float32)
    got = _native.kernel_vector(isa=isa, name="silu_mul", a=a, b=np.ones_like(a))
    # exp is clamped at exp(88) = 1.7e38, so what ought to be nothing is |gate| / 1.7e38 at most.
    assert np.all(np.abs(got[:3]) <= [1e-8, 2e-36, 1e-36])
    np.testing.assert_array_equal(got[3:7], a[3:7])
    assert np.isnan(got[7])


def test_unsuitable_arguments() -> None:
    data = weights(T.Q8_0, 2, 32).reshape(-1)
    x = np.zeros((1, 32), np.float32)
    good = {"isa": "scalar", "data": data, "type": 8, "rows": 2, "cols": 32, "x": x}
    for change, error in [
        ({"isa": "sse9"}, "unknown instruction set 'sse9'"),
        ({"type": 99}, "GGML type 99, which is not supported"),
        ({"rows": 3}, "holds 68 bytes, not the 102"),
        ({"x": np.zeros((1, 31), np.float32)}, r"x must have the shape \(any, 32\), not \(1, 31\)"),
    ]:
        with pytest.raises(ValueError, match=error):
            _native.kernel_matmul(**(good | change))
    with pytest.raises(TypeError, match="C-contiguous NumPy array of float32"):
        _native.kernel_matmul(**(good | {"x": np.zeros((1, 32))}))
