"""Opening bundles: what a sound one gives, and what is said about every unsound one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from csm_hybrid.quantize.write import Entry, write_bundle
from gguf import GGUFReader, GGUFWriter

from csm_hybrid.errors import ModelInvalid, ModelNotFound
from csm_hybrid.model import file_schema as schema
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.config import ModelConfig, RopeScaling
from csm_hybrid.model.ggml import GGMLType, parse_gguf, row_bytes

Change = Callable[[dict[str, Entry]], None]
TESTS = Path(__file__).parent


@pytest.fixture
def remade(bundles, tmp_path) -> Callable[..., Path]:
    """A copy of the tiny model with changed tensors, configuration or tokenizer."""
    source = bundles("transformers", "q8_0")

    def make(
        change: Change = lambda entries: None,
        config: Callable[[ModelConfig], ModelConfig] = lambda config: config,
        tokenizer: str | None = None,
    ) -> Path:
        data = np.fromfile(source, np.uint8)
        entries = {
            name: entry(name, t.type, t.shape, data[t.offset : t.offset + t.size])
            for name, t in parse_gguf(data).tensors.items()
        }
        change(entries)
        bundle = Bundle.open(source)
        path = tmp_path / "remade.gguf"
        text = bundle.tokenizer_json if tokenizer is None else tokenizer
        write_bundle(path, config(bundle.config), text, entries.values())
        return path

    return make


def entry(name: str, kind: int, shape: tuple[int, ...], data: np.ndarray) -> Entry:
    return Entry(name, GGMLType(kind), shape, lambda: [data])


def zeros(name: str, *shape: int) -> Entry:
    return entry(name, GGMLType.F32, shape, np.zeros(shape, np.float32))


def refused(path: Path) -> str:
    with pytest.raises(ModelInvalid) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_bundle(bundles):
    with Bundle.open(bundles("transformers", "q8_0")) as bundle:
        config = bundle.config
        assert config.name == "transformers"
        assert (config.codebooks, config.audio_vocab, config.backbone.kv_heads) == (5, 35, 2)
        assert json.loads(bundle.tokenizer_json)["model"]["type"] == "BPE"
        heads = bundle.tensor("heads")
        assert (heads.type, heads.shape) == (GGMLType.Q8_0, (4, 35, 32))
        assert heads.data.size == 4 * 35 * 34  # a block of 32 takes 34 bytes
        codec = bundle.codec_tensors()
        assert codec["dec.conv_out.weight"].shape == (1, 2, 3)  # outer ones are kept
        assert bundle.decoder_tensors()["blk.1.ffn_down.weight"].shape == (32, 64)
        with pytest.raises(ValueError, match="read-only"):
            heads.data[0] = 1
        with pytest.raises(KeyError):
            bundle.tensor("tails")
    assert heads.data[:2].any()  # views outlive the bundle


def test_gguf_py_reads_a_bundle(bundles):
    """gguf-dump and other tools take the file for what it is."""
    reader = GGUFReader(bundles("transformers", "q4_k_m"))
    assert reader.fields["csm.codebook_count"].contents() == 5
    assert reader.fields["general.architecture"].contents() == "csm"
    tensors = {t.name: t for t in reader.tensors}
    with Bundle.open(bundles("transformers", "q4_k_m")) as bundle:
        view = bundle.tensor("heads")
        assert tensors["heads"].data.tobytes() == view.data.tobytes()
        offset, size = bundle.embedded("backbone.gguf")
        assert (tensors["backbone.gguf"].data_offset, tensors["backbone.gguf"].n_bytes) == (offset, size)


def test_a_configuration_comes_back_exactly(remade):
    """Numbers are kept in 64 bits: 1e-5 must not come back as 9.99999974e-06."""

    def other(config: ModelConfig) -> ModelConfig:
        codec = replace(config.codec, norm_eps=1e-5 / 3, context=123, dilation_growth=3)
        return replace(config, name="Ünïcode", sampling=None, prompt_template="<{speaker}> {text}", codec=codec)

    expected = other(Bundle.open(remade()).config)
    assert Bundle.open(remade(config=other)).config == expected


def test_a_tower_without_rope_scaling(remade):
    def unscaled(config: ModelConfig) -> ModelConfig:
        return replace(config, decoder=replace(config.decoder, rope_scaling=None))

    assert Bundle.open(remade(config=unscaled)).config.decoder.rope_scaling is None


def test_rope_scaling_is_kept_in_one_form(remade):
    def halved(config: ModelConfig) -> ModelConfig:
        scaling = RopeScaling(32.0, 0.125, 0.5, 1024)
        return replace(config, backbone=replace(config.backbone, rope_scaling=scaling))

    assert Bundle.open(remade(config=halved)).config.backbone.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192.0)


def test_everything_missing_or_misshapen_is_said_at_once(remade):
    def spoil(entries: dict[str, Entry]) -> None:
        del entries["projection"], entries["mimi.enc.conv_in.bias"]
        entries["heads"] = zeros("heads", 4, 32, 35)  # (in, out)
        entries["mimi.rvq.codebook.5"] = zeros("mimi.rvq.codebook.5", 31, 16)
        entries["text_embd"] = entry("text_embd", GGMLType.I32, (264, 64), np.zeros((264, 64), np.int32))

    message = refused(remade(spoil))
    for part in (
        "tensor projection is missing",
        "tensor mimi.enc.conv_in.bias is missing",
        "tensor heads has shape [4, 32, 35], [4, 35, 32] is needed",
        "mimi.rvq.codebook.5 has shape [31, 16]",
        "tensor text_embd has type i32, one of bf16, f16, f32",
    ):
        assert part in message


def test_a_long_list_of_problems_is_cut(remade):
    def spoil(entries: dict[str, Entry]) -> None:
        for name in [n for n in entries if n.startswith("mimi.")]:
            del entries[name]

    assert len(refused(remade(spoil))) < 2000


def test_towers_that_are_not_there_or_not_readable(remade):
    def spoil(entries: dict[str, Entry]) -> None:
        del entries["backbone.gguf"]
        entries["decoder.gguf"] = entry("decoder.gguf", GGMLType.I8, (100,), np.zeros(100, np.int8))

    message = refused(remade(spoil))
    assert "backbone.gguf is missing" in message
    assert "decoder.gguf is not readable" in message


def rewritten_backbone(
    path: Path,
    folder: Path,
    *,
    architecture: str = "llama",
    q_type: GGMLType | None = None,
    extra: str | None = None,
) -> Entry:
    """The model's backbone with another architecture, its first attn_q in another type, or another key."""
    offset, size = Bundle.open(path).embedded("backbone.gguf")
    inner = np.fromfile(path, np.uint8, size, offset=offset)
    header = parse_gguf(inner)
    target = folder / "tower.gguf"
    writer = GGUFWriter(target, architecture)
    for key, value in header.values.items():
        if key.startswith(("llama.", "tokenizer.")):
            {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    if extra:
        writer.add_uint32(extra, 2)
    for name, info in header.tensors.items():
        kind, data = GGMLType(info.type), inner[info.offset : info.offset + info.size]
        if q_type is not None and name == "blk.0.attn_q.weight":
            kind = q_type
            data = np.zeros(info.shape[0] * row_bytes(q_type, info.shape[1]), np.uint8)
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), data.nbytes, raw_dtype=kind)
        writer.tensors[0][name].tensor = data
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tower = np.fromfile(target, np.int8)
    return entry("backbone.gguf", GGMLType.I8, tower.shape, tower)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture = 'qwen2', the model says 'llama'"),
        ({"q_type": GGMLType.IQ4_NL}, "blk.0.attn_q.weight has type iq4_nl, one of"),
        ({"extra": "llama.expert_count"}, "llama.expert_count, which does not belong there"),
    ],
)
def test_a_tower_of_another_kind(remade, bundles, tmp_path, changes, message):
    tower = rewritten_backbone(bundles("transformers", "q8_0"), tmp_path, **changes)

    def spoil(entries: dict[str, Entry]) -> None:
        entries["backbone.gguf"] = tower

    assert message in refused(remade(spoil))


def test_a_tower_that_disagrees_with_the_model(remade):
    """llama.cpp would run the backbone by its own keys, the engine by the bundle's."""

    def spoil(config: ModelConfig) -> ModelConfig:
        return replace(config, backbone=replace(config.backbone, rope_theta=10000.0, positions=512))

    message = refused(remade(config=spoil))
    assert "llama.rope.freq_base = 500000.0, the model says 10000.0" in message
    assert "llama.context_length = 2048, the model says 512" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end_code": 35}, "end code 35"),
        ({"eos_id": 264}, "token ids 257, 264"),
        ({"prompt_template": "[{speaker}]"}, "has no {text}"),
        ({"codebooks": 7}, "the towers make 7 codebooks, the codec has 6"),
        ({"codebooks": 1}, "csm.codebook_count is 1: it must lie in 2 .. 256"),
    ],
)
def test_numbers_that_cannot_be(remade, change, message):
    assert message in refused(remade(config=lambda config: replace(config, **change)))


def test_no_tokenizer(remade):
    assert "no tokenizer" in refused(remade(tokenizer=""))


def test_files_that_are_no_bundle(tmp_path, bundles):
    with pytest.raises(ModelNotFound, match="no such file"):
        Bundle.open(tmp_path / "nothing.gguf")
    assert "directory" in refused(tmp_path)
    path = tmp_path / "some.gguf"
    path.write_bytes(b"")
    assert "empty" in refused(path)
    path.write_text("not a model")
    assert "not a readable model file" in refused(path)
    whole = bundles("transformers", "q8_0")
    offset, size = Bundle.open(whole).embedded("backbone.gguf")
    path.write_bytes(whole.read_bytes()[offset : offset + size])
    assert "architecture 'llama', not 'csm'" in refused(path)


def test_another_layout_version(remade):
    path = remade()
    data = bytearray(path.read_bytes())
    key = schema.VERSION_KEY.encode()
    at = data.index(key) + len(key) + 4  # behind the value's type
    assert data[at : at + 4] == schema.VERSION.to_bytes(4, "little")
    data[at] = 2
    path.write_bytes(data)
    assert "layout version 2; this release reads version 1" in refused(path)


def test_a_csm_gguf_of_another_program(tmp_path):
    """csm.rs calls its own, other layout "csm" too."""
    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "csm")
    writer.add_tensor("backbone.layers.0.attn.q_proj.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "csm-hybrid quantize" in refused(path)


def test_hostile_files_end_in_an_error(bundles, tmp_path):
    """Hundreds of mutated and cut headers: never a crash, a hang, a great allocation or another exception."""
    command = [sys.executable, TESTS / "hostile.py", bundles("transformers", "f32"), tmp_path, "400", "3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    outcome = json.loads(run.stdout)
    assert outcome["mutated, refused"] > 300  # the others hit bytes that may hold any value
    assert outcome["truncated, refused"] > 100
    assert outcome.get("truncated, opened", 0) <= 1  # only the padding behind the last tensor may go


OPENERS = """
import sys, threading
from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.bundle import Bundle

sys.setswitchinterval(1e-6)
good, *bad = sys.argv[1:]
wrong = []

def opens(path):
    for _ in range(100):
        Bundle.open(path).close()

def refuses(path):
    for _ in range(100):
        try:
            Bundle.open(path)
        except ModelInvalid as error:
            if path not in str(error) or reasons[path] not in str(error):
                wrong.append(str(error))

def reason(path):
    try:
        Bundle.open(path)
    except ModelInvalid as error:
        return str(error).partition("model file: ")[2]

reasons = {path: reason(path) for path in bad}
assert len(set(reasons.values())) == len(bad), reasons
threads = [threading.Thread(target=opens, args=(good,)) for _ in range(2)]
threads += [threading.Thread(target=refuses, args=(path,)) for path in bad]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(wrong[:1])
"""


def test_models_are_opened_by_several_threads_at_once(bundles, tmp_path):
    """Guards llama.cpp's one log callback, which each opening once took from the others: a crash, or another
    file's reasons."""
    good = bundles("transformers", "q8_0")
    data = good.read_bytes()
    (tmp_path / "magic.gguf").write_bytes(b"GGML" + data[4:])
    (tmp_path / "version.gguf").write_bytes(data[:4] + (99).to_bytes(4, "little") + data[8:])
    paths = [str(p) for p in (good, tmp_path / "magic.gguf", tmp_path / "version.gguf")]
    result = subprocess.run([sys.executable, "-c", OPENERS, *paths], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")
