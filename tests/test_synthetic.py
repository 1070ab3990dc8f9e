"""Synthetic models: valid bundles of the right sizes and types, made quickly, whose towers load."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from csm_hybrid.quantize.recipe import recipe_named
from test_quantize_types import loads_in_place, numbers

from csm_hybrid.bench.synthetic import CSM_1B, MODELS, make_synthetic, synthetic_model
from csm_hybrid.bench.synthetic_spec import model_of
from csm_hybrid.checkpoints.conversions import CACHE_VARIABLE
from csm_hybrid.errors import InputError, ModelInvalid
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.ggml import GGMLType, parse_gguf

SMALL = replace(
    CSM_1B,
    backbone=replace(CSM_1B.backbone, width=512, heads=8, kv_heads=2, ffn=768),
    decoder=replace(CSM_1B.decoder, width=256, heads=2, kv_heads=1, ffn=512, positions=5),
    codebooks=4,
    audio_vocab=259,
    text_vocab=300,
    codec=replace(
        CSM_1B.codec, filters=8, width=64, heads=2, kv_heads=2, head_dim=32, ffn=64, upsample_groups=64,
        codebooks=4, codebook_size=256, codebook_dim=32, layers=2,
    ),
)  # fmt: skip


def types_of(bundle: Bundle, gguf: str) -> dict[str, int]:
    offset, size = bundle.embedded(gguf)
    header = parse_gguf(np.fromfile(bundle.path, np.uint8, size, offset=offset))
    return {name: info.type for name, info in header.tensors.items()}


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"])
def test_a_synthetic_model_of_every_type(tmp_path, type_name):
    path = tmp_path / "small.gguf"
    make_synthetic(SMALL, recipe_named(type_name), path)
    with Bundle.open(path) as bundle:
        assert bundle.config == SMALL
        for gguf in ("backbone.gguf", "decoder.gguf"):
            assert loads_in_place(path, bundle.embedded(gguf)[0]) is None
        view = bundle.decoder_tensors()["blk.3.ffn_down.weight"]
        spread = numbers(view.data, view.type, view.shape).std()
        assert spread == pytest.approx(1 / math.sqrt(512), rel=0.05)
        codebook = bundle.codec_tensors()["rvq.codebook.3"]
        assert codebook.type == GGMLType.F32
    assert [p.name for p in tmp_path.iterdir()] == ["small.gguf"]


@pytest.mark.parametrize("type_name", ["q4_k_m", "q5_k_m", "q4_0"])
def test_types_are_what_llama_cpp_would_choose(tmp_path, type_name, bundles):
    """The embedded model goes through llama.cpp's quantiser at its full size: the same mix must come out."""
    real = Bundle.open(bundles("voice", type_name))
    config = replace(real.config, name="synthetic")
    make_synthetic(config, recipe_named(type_name), tmp_path / "copy.gguf")
    made = Bundle.open(tmp_path / "copy.gguf")
    for gguf in ("backbone.gguf", "decoder.gguf"):
        assert types_of(made, gguf) == types_of(real, gguf)
    for name in ("text_embd", "audio_embd", "projection", "heads"):
        assert made.tensor(name).type == real.tensor(name).type


def test_models_by_name_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(MODELS, "small", SMALL)
    path = synthetic_model("small:q4_k")
    assert path.name.startswith("synthetic-small-q4_k_m-")
    made = path.stat().st_mtime_ns
    assert synthetic_model("small:q4_k_m") == path
    assert path.stat().st_mtime_ns == made
    assert synthetic_model("small") != path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert synthetic_model("small:q4_k") == path
    assert path.read_bytes() == whole
    with pytest.raises(InputError, match="csm-1b, marvis-250m"):
        synthetic_model("csm-8b")
    with pytest.raises(InputError, match="q9"):
        synthetic_model("small:q9")


def test_the_named_sizes():
    csm = MODELS["csm-1b"]
    assert (csm.backbone.layers, csm.backbone.width, csm.decoder.layers, csm.decoder.width) == (
        16,
        2048,
        4,
        1024,
    )
    marvis = MODELS["marvis-250m"]
    assert (marvis.backbone.layers, marvis.backbone.width, marvis.decoder.ffn) == (6, 1536, 4096)


def test_sizes_beyond_the_limits_are_refused_at_once(tmp_path):
    golden = Path(__file__).parent / "golden" / "transformers" / "config.json"
    values = json.loads(golden.read_text())
    path = tmp_path / "config.json"
    for changes, message in (
        ({"num_hidden_layers": 513}, "csm.backbone.block_count is 513: it must lie in 1 .. 512"),
        ({"codec_config": {"kernel_size": 256}}, "csm.mimi.kernel is 256"),
    ):
        path.write_text(json.dumps(values | changes))
        with pytest.raises(InputError, match=message):
            model_of(str(path), None)
    path.write_text(json.dumps(values | {"vocab_size": "35"}))
    with pytest.raises(ModelInvalid, match="vocab_size = '35': a whole number is needed"):
        model_of(str(path), None)
