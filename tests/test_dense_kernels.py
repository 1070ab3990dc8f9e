"""The codec's kernels on every instruction set of this CPU, with odd tails, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from reference.mimi import elu, gelu, layer_norm

from csm_hybrid import _native

UNIT = 2.0**-24
"""Unit roundoff of float32."""
FUNCTION_ERROR = 4e-7
"""Of ELU and GELU, absolute near one and relative beyond: both polynomials and exp's 2e-7, with rounding."""

ISAS = _native.available_isas()
SHAPES = [
    (1, 1, 1),
    (5, 1, 37),
    (1, 7, 3),
    (3, 16, 5),
    (6, 64, 33),
    (7, 65, 16),
    (13, 130, 40),
    (25, 95, 17),
    (2, 33, 9),
]


def _rng() -> np.random.Generator:
    return np.random.default_rng(3)


def _floats(*shape: int) -> NDArray[np.float32]:
    return _rng().standard_normal(shape).astype(np.float32)


def _within(got: NDArray[np.float32], expected: NDArray[np.float64], bound: NDArray[np.float64] | float) -> bool:
    error = np.abs(got - expected)
    return not np.any(~(error <= bound))  # also false for NaN


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_product(isa: str, shape: tuple[int, int, int]) -> None:
    """K multiply-adds and a bias, in any order: error at most (K + 2) u sum |x| |w| (Higham, ch. 3)."""
    m, n, k = shape
    x, w, bias = _floats(m, k), _floats(n, k) * 0.5, _floats(n)
    raw, _ = _native.dense_matmul(isa=isa, x=x, w=w, bias=bias)
    expected = x.astype(np.float64) @ w.astype(np.float64).T + bias
    bound = (k + 2) * UNIT * (np.abs(x).astype(np.float64) @ np.abs(w).T + np.abs(bias))
    assert _within(raw, expected, bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] > 1])
def test_half_precision_weights_are_their_values(isa: str, shape: tuple[int, int, int]) -> None:
    """Bit for bit what the same values give in float32; subnormal halves among them."""
    m, n, k = shape
    half = (_floats(n, k) * 0.5).astype(np.float16)
    half.ravel()[::3] *= np.float16(1e-6)
    x, bias = _floats(m, k), _floats(n)
    got, _ = _native.dense_matmul(isa=isa, x=x, w=half, bias=bias)
    expected, _ = _native.dense_matmul(isa=isa, x=x, w=half.astype(np.float32), bias=bias)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["none", "elu", "gelu"])
@pytest.mark.parametrize("scaled", [False, True])
def test_epilogue(isa: str, activation: str, scaled: bool) -> None:
    m, n, k = 9, 45, 11
    x, w, bias, skip, scale = _floats(m, k), _floats(n, k), _floats(n), _floats(m, n), _floats(n)
    raw, active = _native.dense_matmul(
        isa=isa, x=x, w=w, bias=bias, skip=skip, scale=scale if scaled else None, activation=activation
    )
    factor = scale if scaled else np.ones_like(scale)
    product = x.astype(np.float64) @ w.astype(np.float64).T + bias
    expected = skip + factor * product
    magnitude = np.abs(x).astype(np.float64) @ np.abs(w).T + np.abs(bias)
    bound = (k + 4) * UNIT * (np.abs(factor) * magnitude + np.abs(skip))
    assert _within(raw, expected, bound)
    function = {"none": lambda v: v, "elu": elu, "gelu": gelu}[activation]
    steepest = 1.13  # of GELU; 1 for ELU
    assert _within(active, function(expected), steepest * bound + FUNCTION_ERROR * np.maximum(1, np.abs(expected)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("activation", "function"), [("elu", elu), ("gelu", gelu)])
def test_activations_over_their_range(isa: str, activation: str, function) -> None:  # type: ignore[no-untyped-def]
    """Through a product with the identity, which is exact; far tails and tiny values included."""
    values = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-1, 1, 4001), [1e-30, -1e-30, 0.0, -0.0]])
    x = values.astype(np.float32).reshape(-1, 1)
    w, bias = np.ones((2, 1), np.float32), np.zeros(2, np.float32)
    _, active = _native.dense_matmul(isa=isa, x=x, w=w, bias=bias, activation=activation)
    expected = np.repeat(function(x.astype(np.float64)), 2, 1)
    assert _within(active, expected, FUNCTION_ERROR * np.maximum(1, np.abs(expected)))
    small = np.abs(x[:, 0]) < 0.1
    relative = 1e-6 * np.abs(expected[small])  # no cancellation near zero
    assert _within(active[small], expected[small], relative + 1e-37)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 3, 16, 45, 512])
def test_layer_norm(isa: str, n: int) -> None:
    """Mean and variance of n values near one: n u each; the factor three is the formula's operations."""
    x, gamma, beta = _floats(n) + 2, 1 + 0.1 * _floats(n), _floats(n)
    got = _native.dense_layer_norm(isa=isa, x=x, gamma=gamma, beta=beta, eps=1e-5)
    expected = layer_norm(x.astype(np.float64), gamma, beta, 1e-5)
    spread = math.sqrt(float(x.astype(np.float64).var()) + 1e-5)
    bound = 3 * (n + 8) * UNIT * (1 + np.abs(x) / spread) * np.abs(gamma) + 4 * UNIT * np.abs(beta)
    assert _within(got, expected, bound.astype(np.float64))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("slots", [1, 2, 15, 16, 17, 130, 250])
@pytest.mark.parametrize("dim", [6, 32, 64])
def test_attention(isa: str, slots: int, dim: int) -> None:
    """A score errs by dim u sum |q k|, a weight relatively by twice that and exp's error, as does the mix."""
    q, keys, values = _floats(dim) * 0.5, _floats(slots, dim), _floats(slots, dim)[::-1].copy()
    got = _native.dense_attend(isa=isa, q=q, keys=keys, values=values)
    scores = keys.astype(np.float64) @ q
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    score_error = (dim + 2) * UNIT * float((np.abs(keys) @ np.abs(q)).max())
    relative = 2 * score_error + 2 * FUNCTION_ERROR + (slots + 4) * UNIT
    assert _within(got, weights @ values, relative * (weights @ np.abs(values)).astype(np.float64))


def test_an_instruction_set_that_is_not_there_is_an_error() -> None:
    x = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        _native.dense_matmul(isa="sse9", x=x, w=x, bias=np.ones(1, np.float32))
