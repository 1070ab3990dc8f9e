"""Recipes: for each ``--type``, what llama.cpp makes of the towers and which type each table takes.

Towers follow llama.cpp's own rules for the named mix. The tables: embeddings are looked up a row at a time,
so their size costs memory and not time; the audio embeddings feed both towers and the heads make the
choices, so K-mixes keep both at q6_k, as llama.cpp keeps an output head. The projection is small, stands
before every step of the depth decoder and stays at q8_0.
"""

from __future__ import annotations

from dataclasses import dataclass

import llama_cpp

from csm_hybrid.errors import InputError
from csm_hybrid.model.ggml import GGMLType, fits


@dataclass(frozen=True)
class Recipe:
    """How a bundle is quantised."""

    name: str
    towers: int  # llama.cpp's file type (llama_ftype)
    text_embd: GGMLType
    audio_embd: GGMLType
    projection: GGMLType
    heads: GGMLType
    help: str

    def table_type(self, role: str, columns: int) -> GGMLType:
        """The type of the table ``role`` with rows of ``columns`` values."""
        kind: GGMLType = getattr(self, role)
        return fallback(kind, columns)


FALLBACKS = {
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
}
"""For rows that blocks of 256 do not divide; llama.cpp's choices (``llama-quant.cpp``)."""


def fallback(kind: GGMLType, columns: int) -> GGMLType:
    """``kind`` or, where its blocks do not divide the rows, the next type that does."""
    if fits(kind, columns):
        return kind
    kind = FALLBACKS.get(kind, kind)
    return kind if fits(kind, columns) else GGMLType.F16


def _plain(name: str, towers: int, kind: GGMLType, text: str) -> Recipe:
    return Recipe(name, towers, kind, kind, kind, kind, text)


def _mix(name: str, towers: int, text_embd: GGMLType, text: str) -> Recipe:
    return Recipe(name, towers, text_embd, GGMLType.Q6_K, GGMLType.Q8_0, GGMLType.Q6_K, text)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _plain("f32", llama_cpp.LLAMA_FTYPE_ALL_F32, GGMLType.F32, "32 bits, exact: for comparisons"),
        _plain("f16", llama_cpp.LLAMA_FTYPE_MOSTLY_F16, GGMLType.F16, "16 bits"),
        _plain(
            "bf16",
            llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
            GGMLType.BF16,
            "16 bits, exact for bfloat16 checkpoints",
        ),
        _plain("q8_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, GGMLType.Q8_0, "8.5 bits, next to no loss: the default"),
        _mix("q6_k", llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K, GGMLType.Q6_K, "6.6 bits, very small loss"),
        _mix("q5_k_m", llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M, GGMLType.Q5_K, "about 5.7 bits, small loss"),
        _mix("q5_k_s", llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_S, GGMLType.Q5_K, "about 5.5 bits"),
        _mix(
            "q4_k_m",
            llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
            GGMLType.Q4_K,
            "about 4.9 bits, the usual small one",
        ),
        _mix("q4_k_s", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S, GGMLType.Q4_K, "about 4.6 bits"),
        _mix("q4_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, GGMLType.Q4_0, "4.5 bits, the fastest on some CPUs"),
    )
}
ALIASES = {"q5_k": "q5_k_m", "q4_k": "q4_k_m"}
"""As in llama.cpp."""
DEFAULT = "q8_0"


def recipe_named(name: str) -> Recipe:
    """The recipe of a ``--type``. Raises InputError for unknown names."""
    lowered = name.lower()
    recipe = RECIPES.get(ALIASES.get(lowered, lowered))
    if recipe is None:
        raise InputError(f"no weight type is called {name!r}: choose {', '.join([*RECIPES, *ALIASES])}")
    return recipe
