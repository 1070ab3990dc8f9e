"""The rules for sizes, which the model file's checks ask for: all that are broken are listed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mimi_models import GROUPED, REAL, TINY
from reference.random_decoder import random_config

from csm_hybrid import _native


def test_sound_sizes_break_no_rule() -> None:
    for codec in (TINY, GROUPED, REAL):
        assert _native.codec_problems(codec) == []
    assert _native.tower_problems(random_config().decoder) == []


def test_every_broken_rule_is_listed() -> None:
    codec = replace(TINY, kernel=300, heads=0, norm_eps=float("nan"), compress=3, ratios=(64,) * 4)
    assert _native.codec_problems(codec) == [
        "the product of ratios must be at most 1048576",
        "kernel is 300, must be 1 to 255",
        "filters must be a multiple of compress",
        "heads is 0, must be 1 to 1024",
        "kv_heads is 2, must be 1 to 1",
        "norm_eps is nan, must be above 0 and at most 1",
    ]
    tower = replace(random_config().decoder, heads=7, head_dim=5, positions=1 << 18)
    assert _native.tower_problems(tower) == [
        "heads (7) must be a multiple of kv_heads (2)",
        "head_dim must be even, not 5",
        "positions is 262144, must be 1 to 131072",
    ]


def test_what_fits_no_integer_is_refused() -> None:
    with pytest.raises(ValueError, match="configuration: width has the wrong type"):
        _native.codec_problems(replace(TINY, width=1 << 40))
