"""Every ``--type``: llama.cpp loads both towers in place, and the weights stay near the checkpoint's."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from csm_hybrid.quantize.recipe import RECIPES, fallback, recipe_named
from gguf.quants import dequantize

from csm_hybrid.errors import InputError
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.file_schema import BACKBONE, DECODER
from csm_hybrid.model.ggml import GGMLType, parse_gguf
from csm_hybrid.model.llama_log import capture_log

ERROR = {
    # Relative RMS error of normally distributed weights, a little above theory: a uniform quantiser of step s
    # errs s / sqrt(12), and 32 normal values span about +-2.1 standard deviations: s = 2.1 / 127 for q8_0,
    # 2.1 / 8 for q4_0; K-quants refine their scales in groups of 16 (q6_k) or 32.
    "f32": 0.0,
    "f16": 3e-4,  # 2^-11 at most, over sqrt(3)
    "bf16": 3e-3,
    "q8_0": 6e-3,
    "q6_k": 0.025,
    "q5_k_m": 0.05,
    "q5_k_s": 0.05,
    "q4_k_m": 0.1,
    "q4_k_s": 0.1,
    "q4_0": 0.11,
}
TOWER_TYPES = {
    # What llama.cpp makes of attn_q under each file type.
    "f32": GGMLType.F32,
    "f16": GGMLType.F16,
    "bf16": GGMLType.BF16,
    "q8_0": GGMLType.Q8_0,
    "q6_k": GGMLType.Q6_K,
    "q5_k_m": GGMLType.Q5_K,
    "q5_k_s": GGMLType.Q5_K,
    "q4_k_m": GGMLType.Q4_K,
    "q4_k_s": GGMLType.Q4_K,
    "q4_0": GGMLType.Q4_0,
}


def tensors(bundle: Bundle) -> dict[str, tuple[int, np.ndarray]]:
    """Type and numbers of every matrix of the towers and tables."""
    found: dict[str, tuple[int, np.ndarray]] = {}
    data = np.fromfile(bundle.path, np.uint8)
    for gguf in (BACKBONE, DECODER):
        offset, size = bundle.embedded(gguf)
        inner = data[offset : offset + size]
        for name, info in parse_gguf(inner).tensors.items():
            if len(info.shape) == 2 and name != "token_embd.weight":
                blob = inner[info.offset : info.offset + info.size]
                found[gguf + name] = (info.type, numbers(blob, info.type, info.shape))
    for name in ("text_embd", "audio_embd", "projection", "heads"):
        view = bundle.tensor(name)
        found[name] = (view.type, numbers(view.data, view.type, view.shape))
    return found


def numbers(data: np.ndarray, kind: int, shape: tuple[int, ...]) -> np.ndarray:
    rows = data.reshape(int(np.prod(shape[:-1])), -1)
    return dequantize(rows, GGMLType(kind)).reshape(shape)


def loads_in_place(path: Path, offset: int) -> str | None:
    """What llama.cpp says when it refuses a model at ``offset``; None when it loads it."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    libc.fseek.argtypes = (ctypes.c_void_p, ctypes.c_long, ctypes.c_int)
    libc.fclose.argtypes = (ctypes.c_void_p,)
    file = libc.fopen(bytes(path), b"rb")
    libc.fseek(file, offset, 0)
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.check_tensors = True
    log: list[str] = []
    with capture_log(log.append):
        model = llama_cpp.llama_model_load_from_file_ptr(file, parameters)
        if model:
            llama_cpp.llama_model_free(model)
    libc.fclose(file)
    return None if model else "\n".join(log)


@pytest.mark.parametrize("type_name", [*RECIPES])
def test_weights_stay_near_the_checkpoint(bundles, type_name):
    exact = tensors(Bundle.open(bundles("blocks", "f32")))
    found = tensors(Bundle.open(bundles("blocks", type_name)))
    assert found.keys() == exact.keys()
    assert found[BACKBONE + "blk.0.attn_q.weight"][0] == TOWER_TYPES[type_name]
    for name, (_, values) in found.items():
        source = exact[name][1]
        error = np.sqrt(np.mean((values - source) ** 2) / np.mean(source**2))
        assert error <= ERROR[type_name], name


@pytest.mark.parametrize("model", ["blocks", "transformers"])
@pytest.mark.parametrize("type_name", [*RECIPES])
def test_llama_cpp_loads_both_towers_in_place(bundles, model, type_name):
    bundle = Bundle.open(bundles(model, type_name))
    for gguf in (BACKBONE, DECODER):
        assert loads_in_place(bundle.path, bundle.embedded(gguf)[0]) is None


def test_widths_that_blocks_of_256_do_not_divide_fall_back_as_llama_cpp_does(bundles):
    bundle = Bundle.open(bundles("transformers", "q4_k_m"))
    assert bundle.decoder_tensors()["blk.0.attn_q.weight"].type == GGMLType.Q5_0
    assert bundle.tensor("text_embd").type == GGMLType.Q5_0
    assert bundle.tensor("heads").type == GGMLType.Q8_0
    assert fallback(GGMLType.Q5_K, 96) == GGMLType.Q5_1
    assert fallback(GGMLType.Q8_0, 40) == GGMLType.F16


def test_names_are_llama_cpp_s(bundles):
    assert recipe_named("Q4_K") is recipe_named("q4_k_m")
    with pytest.raises(InputError, match="no weight type is called"):
        recipe_named("q9")


def test_the_stand_in_vocabulary_is_small(bundles):
    """Nobody reads it: embeddings go in from the tables."""
    bundle = Bundle.open(bundles("blocks", "f32"))
    assert bundle.decoder_tensors()["token_embd.weight"].type == GGMLType.Q4_0


def test_the_embedded_towers_begin_where_llama_cpp_can_map_them(bundles):
    bundle = Bundle.open(bundles("voice", "q8_0"))
    for gguf in (BACKBONE, DECODER):
        assert bundle.embedded(gguf)[0] % 32 == 0
    for view in bundle.codec_tensors().values():
        assert view.data.ctypes.data % 64 == 0
