"""What the converter takes, and what it says to what it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.safetensors import Tensors
from csm_hybrid.quantize.source import open_checkpoint, weight_files
from golden import generate

from csm_hybrid.errors import ModelInvalid, ModelNotFound


def made(folder: Path, path: Path, type_name: str = "q8_0", **options: object) -> bytes:
    convert(open_checkpoint(folder, **options), path, recipe_named(type_name))
    return path.read_bytes()


@pytest.fixture
def copy(checkpoints, tmp_path):
    def copied(name: str) -> Path:
        return Path(shutil.copytree(checkpoints(name), tmp_path / name))

    return copied


@pytest.mark.parametrize("type_name", ["f32", "q8_0", "q4_k_m"])
def test_both_layouts_of_the_same_weights_give_the_same_bytes(checkpoints, tmp_path, type_name):
    theirs = made(checkpoints("transformers"), tmp_path / "a.gguf", type_name)
    original = made(checkpoints("original"), tmp_path / "b.gguf", type_name)
    assert theirs == original


def mlx_name(name: str) -> str:
    """mlx-audio's renaming on load (its ``sanitize``), which is also how it saves."""
    if "attn" in name:
        name = name.replace("attn", "self_attn").replace("output_proj", "o_proj")
    for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        name = name.replace(f"mlp.{old}", f"mlp.{new}")
    name = name.replace("sa_norm.scale", "input_layernorm.weight")
    name = name.replace("mlp_norm.scale", "post_attention_layernorm.weight")
    return "model." + name.replace("norm.scale", "norm.weight")


def test_mlx_audio_s_names_give_the_same_bytes(copy, checkpoints, tmp_path):
    folder = copy("original")
    renamed = {mlx_name(name): value for name, value in generate.weights(generate.TINY).items()}
    generate.save(folder / "model.safetensors", renamed, "BF16")
    assert made(folder, tmp_path / "a.gguf") == made(checkpoints("original"), tmp_path / "b.gguf")


def test_one_file_gives_the_bytes_of_two_shards(tmp_path):
    one = generate.write_transformers(tmp_path / "one", dtype="F32", shards=1)
    two = generate.write_transformers(tmp_path / "two", dtype="F32", shards=2)
    assert made(one, tmp_path / "1.gguf") == made(two, tmp_path / "2.gguf")


def test_the_hub_s_other_index_name_and_two_layouts_in_one_directory(copy, checkpoints, tmp_path):
    """sesame/csm-1b holds the original as model.safetensors beside transformers' shards under this index;
    a glob would load both."""
    folder = copy("transformers")
    (folder / "model.safetensors.index.json").rename(folder / "transformers.safetensors.index.json")
    shutil.copy(checkpoints("original") / "model.safetensors", folder / "model.safetensors")
    assert [p.name for p in weight_files(folder)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    expected = made(checkpoints("transformers"), tmp_path / "a.gguf")
    assert made(folder, tmp_path / "b.gguf") == expected


def test_codec_weights_and_tokenizer_from_elsewhere(copy, checkpoints, tmp_path):
    folder = copy("original")
    codec = (folder / "tokenizer-tiny-checkpoint1.safetensors").rename(tmp_path / "mimi.safetensors")
    tokenizer = (folder / "tokenizer.json").rename(tmp_path / "other.json")
    remedy = rf"csm-hybrid quantize {folder}/model\.safetensors -o model\.gguf --codec-weights FILE .*--weights-path"
    with pytest.raises(ModelInvalid, match=remedy):
        open_checkpoint(folder, tokenizer=tokenizer)
    with pytest.raises(ModelNotFound, match=r"--tokenizer .*--tokenizer-id"):
        open_checkpoint(folder, codec_weights=codec)
    expected = made(checkpoints("original"), tmp_path / "a.gguf")
    assert made(folder, tmp_path / "b.gguf", codec_weights=codec, tokenizer=tokenizer) == expected


def test_what_is_no_whole_checkpoint_is_called_by_its_name(copy, tmp_path):
    folder = copy("original")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6\n")
    with pytest.raises(ModelInvalid, match="git lfs pull"):
        open_checkpoint(folder)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelInvalid, match="merge it first"):
        open_checkpoint(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_refused_at_once(copy):
    """Guards a conversion whose tokenizer fails only when it speaks."""
    folder = copy("original")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [["never", "heard of"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelInvalid, match=r"tokenizer\.json that can be used"):
        open_checkpoint(folder)


def test_bf16_is_read_exactly(checkpoints):
    """BF16 is the upper half of a float32; NumPy has no such type."""
    tensors = Tensors(weight_files(checkpoints("original")))
    array = tensors["codebook0_head.weight"]
    expected = np.zeros((*array.shape, 2), np.uint16)
    expected[..., 1] = array.values
    np.testing.assert_array_equal(array.float32(), expected.view("<f4")[..., 0])


def test_missing_and_misshapen_tensors_are_reported_together(tmp_path):
    weights = generate.weights(generate.TINY)
    folder = generate.write_original(tmp_path)
    del weights["backbone.layers.1.mlp.w2.weight"], weights["decoder.norm.scale"]
    weights["audio_head"] = weights["audio_head"].transpose(0, 2, 1)
    weights["backbone.layers.0.attn.k_proj.weight"] = np.zeros((64, 64), np.float32)
    generate.save(folder / "model.safetensors", weights, "F32")
    with pytest.raises(ModelInvalid) as caught:
        open_checkpoint(folder)
    for part in ("backbone.layers.1.mlp.w2", "decoder.norm.scale", "audio_head", "layers.0.attn.k_proj"):
        assert part in str(caught.value)


def test_untied_audio_embeddings_are_refused(tmp_path):
    """The file has one table for both towers; another for the decoder would be lost silently."""
    folder = generate.write_transformers(tmp_path, dtype="F32", shards=1)
    towers = generate.transformers_weights(generate.weights(generate.TINY), generate.TINY)
    codec = generate.codec_weights(generate.TINY, "transformers")
    table = towers["backbone_model.embed_tokens.embed_audio_tokens.weight"]
    towers["depth_decoder.model.embed_tokens.weight"] = table
    generate.save(folder / "model.safetensors", towers | codec, "F32")
    open_checkpoint(folder)
    towers["depth_decoder.model.embed_tokens.weight"] = table + 1
    generate.save(folder / "model.safetensors", towers | codec, "F32")
    with pytest.raises(ModelInvalid, match="untied"):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["backbone.layers.1.mlp.w2.weight", "audio_head"])
def test_weights_that_are_no_numbers(tmp_path, dtype, name):
    weights = generate.weights(generate.TINY)
    folder = generate.write_original(tmp_path)
    weights[name].flat[7] = np.nan if dtype == "F32" else np.inf
    generate.save(folder / "model.safetensors", weights, dtype)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ModelInvalid, match=f"{name} holds NaN or infinity"):
        convert(checkpoint, tmp_path / "m.gguf", recipe_named("q8_0"))
    assert not (tmp_path / "m.gguf").exists()


def test_another_model_s_tokenizer(copy):
    """Its ids would reach beyond the embeddings."""
    folder = copy("original")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["beyond"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelInvalid, match=r"up to 5000.*--tokenizer"):
        open_checkpoint(folder)


def test_files_that_are_no_checkpoint(tmp_path, checkpoints):
    with pytest.raises(ModelNotFound, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="no safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "ckpt.pt").write_bytes(b"\x80")
    with pytest.raises(ModelInvalid, match="pickled"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelInvalid, match=r"safetensors\.torch"):
        open_checkpoint(tmp_path / "ckpt.pt")
    generate.save(tmp_path / "a.safetensors", {"x": np.zeros(3, np.float32)}, "F32")
    with pytest.raises(ModelInvalid, match="no CSM checkpoint"):
        open_checkpoint(tmp_path)
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(ModelInvalid, match="several"):
        open_checkpoint(tmp_path)
    whole = (checkpoints("original") / "model.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(whole[:1000])
    with pytest.raises(ModelInvalid, match="not a readable safetensors"):
        open_checkpoint(tmp_path / "b.safetensors")


def test_an_index_cannot_lead_outside_its_directory(copy):
    folder = copy("transformers")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["x"] = "../original/model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelInvalid, match="outside"):
        open_checkpoint(folder)


def test_a_safetensors_header_nested_deeper_than_python_can_follow(tmp_path):
    header = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelInvalid, match="not a readable safetensors file"):
        open_checkpoint(path)


def test_names_that_are_too_long(copy, tmp_path):
    long = "x" * 300
    for place in (tmp_path / long, tmp_path / long / "model.safetensors"):
        with pytest.raises(ModelInvalid, match="cannot be read: File name too long"):
            open_checkpoint(place)
    folder = copy("transformers")
    with pytest.raises(ModelInvalid, match="cannot be read: File name too long"):
        open_checkpoint(folder, index_file=long + ".index.json")
    with pytest.raises(ModelInvalid, match="cannot be read: File name too long"):
        open_checkpoint(folder, tokenizer=tmp_path / long)
    with pytest.raises(ModelInvalid, match="cannot be read: File name too long"):
        open_checkpoint(folder, codec_weights=tmp_path / long)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["x"] = long
    index.write_text(json.dumps(content))
    with pytest.raises(ModelInvalid, match="cannot be read: File name too long"):
        open_checkpoint(folder)
