"""Settings in a checkpoint's JSON files: what is read and what is refused; nothing in them ends in a traceback."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from csm_hybrid.quantize.checkpoint_config import MIMI, NAMED_TOWERS, TableSizes, model_config, special_ids, tower
from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.source import open_checkpoint

from csm_hybrid.errors import ModelInvalid, ModelNotFound
from csm_hybrid.model.bundle import Bundle


@pytest.fixture
def copy(checkpoints, tmp_path):
    def copied(name: str) -> Path:
        return Path(shutil.copytree(checkpoints(name), tmp_path / name))

    return copied


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters__rope_type": "yarn"}, "yarn"),
        ({"depth_decoder_config__num_key_value_heads": 3}, "3 key/value heads"),
        ({"vocab_size": 36}, "embed_audio_tokens"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"codec_config__codebook_dim": 8}, "rvq.codebook"),
        ({"codec_config__pad_mode": "reflect"}, "pad_mode"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"prompt_template": "no place"}, "{text}"),
    ],
)
def test_settings_that_cannot_be_served_are_named(copy, changes, message):
    folder = copy("transformers")
    edit(folder, **changes)
    with pytest.raises(ModelInvalid) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)


SIZES = TableSizes(128256, 32 * 2051, 2051, 2048, 1024, 16, 4)


@pytest.mark.parametrize(
    "config",
    [
        None,
        {
            "backbone_flavor": "llama-1B",
            "decoder_flavor": "llama-100M",
            "text_vocab_size": 128256,
            "audio_vocab_size": 2051,
            "audio_num_codebooks": 32,
        },
    ],
)
def test_csm_1b_without_spelled_out_sizes(config):
    found = model_config(config, None, SIZES, (128000, 128001), MIMI)
    assert found.backbone == NAMED_TOWERS["llama-1B"]
    assert (found.backbone.layers, found.backbone.heads, found.backbone.kv_heads) == (16, 32, 8)
    assert (found.decoder.width, found.decoder.head_dim, found.decoder.positions) == (1024, 128, 33)
    assert (found.codebooks, found.audio_vocab, found.text_vocab) == (32, 2051, 128256)


def test_unknown_towers_need_a_config():
    with pytest.raises(ModelInvalid, match=r"config\.json is needed"):
        model_config(None, None, TableSizes(100, 32 * 51, 51, 1536, 1024, 6, 4), (1, 2), MIMI)
    with pytest.raises(ModelInvalid, match="llama-8B"):
        model_config({"backbone_flavor": "llama-8B"}, None, SIZES, (1, 2), MIMI)


BASE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 8}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 1024,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
        {"rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 500000, "rope_scaling": {"type": "llama3", **LLAMA3}},
    ],
)
def test_every_spelling_of_the_rotary_settings(rope):
    found = tower(BASE | rope, "the tower")
    assert found.rope_theta == 500000
    scaling = found.rope_scaling
    assert scaling is not None
    assert (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_context) == (1, 4, 8192)
    assert tower(BASE | {"rope_theta": 10000.0}, "the tower").rope_scaling is None


def test_special_ids_prefer_llama_3_s_own_ends():
    """An instruction-tuned tokenizer's eos_token ends a turn; CSM's segments end with <|end_of_text|>."""
    llama = {
        "added_tokens": [
            {"id": 128000, "content": "<|begin_of_text|>"},
            {"id": 128001, "content": "<|end_of_text|>"},
            {"id": 128009, "content": "<|eot_id|>"},
        ]
    }
    names = {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>"}}
    assert special_ids(llama, names, {}) == (128000, 128001)
    other = {"added_tokens": [{"id": 7, "content": "</s>"}], "model": {"vocab": {"<s>": 3}}}
    assert special_ids(other, {"bos_token": "<s>", "eos_token": "</s>"}, {}) == (3, 7)
    assert special_ids({}, {}, {"bos_token_id": 1, "eos_token_id": 2}) == (1, 2)
    with pytest.raises(ModelInvalid, match="ends are unknown"):
        special_ids({}, {}, {"bos_token_id": 1})


def test_generation_config_gives_the_sampling_defaults(copy, tmp_path):
    folder = copy("transformers")
    path = tmp_path / "m.gguf"
    convert(open_checkpoint(folder), path, recipe_named("q8_0"))
    sampling = Bundle.open(path).config.sampling
    assert sampling is not None
    assert (sampling.temperature, sampling.top_k) == (0.8, 20)
    (folder / "generation_config.json").unlink()
    convert(open_checkpoint(folder), path, recipe_named("q8_0"))
    assert Bundle.open(path).config.sampling is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_sample": True, "depth_decoder_temperature": 0.9}, (1.0, 50, 0.9, 50)),
        ({"do_sample": True, "top_k": 20}, (1.0, 20, 1.0, 20)),
        ({"do_sample": True, "temperature": 0.7, "top_k": 0}, (0.7, 35, 0.7, 35)),  # of all 35 codes
        ({"temperature": None, "top_k": 30, "depth_decoder_top_k": None}, (1.0, 30, 1.0, 30)),
        ({"do_sample": False}, (0.0, 50, 0.0, 50)),
        ({"do_sample": None, "temperature": None}, None),
        ({"max_new_tokens": 125}, None),
    ],
)
def test_sampling_defaults_that_transformers_leaves_out(copy, settings, expected):
    folder = copy("transformers")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    config = open_checkpoint(folder).config
    found = config.sampling
    assert config.audio_vocab == 35
    assert (found and (found.temperature, found.top_k, found.depth_temperature, found.depth_top_k)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": True}, "num_hidden_layers = True: a whole number is needed"),
        ({"hidden_size": "64"}, "hidden_size = '64': a whole number is needed"),
        ({"depth_decoder_config__head_dim": 16.5}, "the depth decoder, has head_dim = 16.5: a whole number"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5': a number is needed"),
        ({"num_codebooks": [5]}, "num_codebooks = [5]: a whole number is needed"),
        ({"codec_config__num_filters": "2"}, "codec_config, has num_filters = '2': a whole number is needed"),
        ({"codec_config__upsampling_ratios": [8, 6, "5", 4]}, "upsampling_ratios = '5': a whole number is needed"),
        ({"codebook_eos_token_id": False}, "codebook_eos_token_id = False: a whole number is needed"),
        ({"codec_config": [1]}, "no JSON object"),
        ({"hidden_size": None}, "has no hidden_size"),
    ],
)
def test_settings_of_another_type_are_refused(copy, changes, message):
    """Guards ``true`` taken for 1 and ``"16"`` for 16."""
    folder = copy("transformers")
    edit(folder, **changes)
    with pytest.raises(ModelInvalid) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)


def test_sampling_defaults_of_another_type_are_refused(copy):
    folder = copy("transformers")
    (folder / "generation_config.json").write_text('{"temperature": "0.9"}')
    with pytest.raises(ModelInvalid, match=r"generation_config\.json has temperature = '0\.9': a number is needed"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ],
)
def test_json_nested_deeper_than_python_can_follow(copy, name):
    folder = copy("transformers")
    (folder / name).write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ModelInvalid, match=name.replace(".", r"\.")):
        open_checkpoint(folder)


STRANGE = (None, -1, 0, 1, 10**9, 10**30, 1.5, float("inf"), "x", "", [], [1], {}, {"a": 1}, True, False)


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything inside a JSON value; of long lists the first few."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:20] if isinstance(value, list) else ())
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"]
)
def test_strange_settings_end_in_an_error_or_a_checkpoint(copy, name):
    """Other programs write these files: no value in them may end in a traceback, nor in an endless loop."""
    folder = copy("transformers")
    text = (folder / name).read_text()
    rng = random.Random(5)
    for _ in range(150):
        content = json.loads(text)
        *parents, last = rng.choice(list(places(content)))
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = rng.choice(STRANGE)
        (folder / name).write_text(json.dumps(content))
        with contextlib.suppress(ModelInvalid, ModelNotFound):
            open_checkpoint(folder)
