"""csm.rs's model flags: what they find, what is converted, and what is said when nothing is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from csm_hybrid.checkpoints import resolve as module
from csm_hybrid.checkpoints.conversions import CACHE_VARIABLE, cache_directory
from csm_hybrid.checkpoints.resolve import ModelFlags, embedded_model, resolve
from csm_hybrid.errors import InputError, ModelInvalid, ModelNotFound, OutputError
from csm_hybrid.model.bundle import Bundle


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_nothing_named_is_the_embedded_voice(monkeypatch, tmp_path, bundles):
    folder = tmp_path / "package" / "voice"
    folder.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package" / "checkpoints" / "resolve.py"))
    with pytest.raises(ModelNotFound, match="--model-id sesame/csm-1b"):
        resolve(ModelFlags())
    shutil.copy(bundles("transformers", "q8_0"), folder / "voice.gguf")
    found = resolve(ModelFlags())
    assert found.embedded
    assert found.path == folder / "voice.gguf" == embedded_model()


def test_a_bundle_by_path(bundles):
    path = bundles("transformers", "q8_0")
    assert resolve(ModelFlags(weights_path=path)).path == path
    assert not resolve(ModelFlags(weights_path=path)).embedded
    folder = ModelFlags(model_path=path.parent)
    assert resolve(folder).path == path
    assert resolve(ModelFlags(model_path=path.parent, model_file=path.name)).path == path


def test_the_file_comes_before_the_directory_and_the_hub(bundles, checkpoints):
    path = bundles("transformers", "q8_0")
    flags = ModelFlags(weights_path=path, model_path=checkpoints("voice"), model_id="some/model")
    assert resolve(flags).path == path


def test_a_checkpoint_is_converted_once(checkpoints, cache, tmp_path):
    folder = Path(shutil.copytree(checkpoints("original"), tmp_path / "my-model"))
    flags = ModelFlags(model_path=folder)
    first = resolve(flags).path
    assert first.parent == cache
    assert first.name.startswith("my-model-q8_0-")
    assert Bundle.open(first).config.name == "my-model"
    made = first.stat().st_mtime_ns
    assert resolve(flags).path == first
    assert resolve(ModelFlags(weights_path=folder / "model.safetensors")).path == first
    assert first.stat().st_mtime_ns == made
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    second = resolve(flags).path
    assert second != first
    assert Bundle.open(second).config.sampling.temperature == 0.5


def test_a_damaged_conversion_is_made_again(checkpoints):
    flags = ModelFlags(model_path=checkpoints("original"))
    path = resolve(flags).path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert resolve(flags).path == path
    assert path.read_bytes() == whole


def test_a_tokenizer_from_elsewhere(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints("original"), tmp_path / "bare"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match="--tokenizer"):
        resolve(ModelFlags(model_path=folder))
    flags = ModelFlags(model_path=folder, tokenizer_id=str(checkpoints("transformers")))
    Bundle.open(resolve(flags).path).close()


def test_a_cache_that_cannot_be_written(checkpoints, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match=CACHE_VARIABLE):
        resolve(ModelFlags(model_path=checkpoints("original")))


def test_the_cache_s_usual_place(monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/csm-hybrid")


def test_the_cache_may_be_in_the_home_directory(monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "~/models")
    monkeypatch.setenv("HOME", "/home/anna")
    assert cache_directory() == Path("/home/anna/models")


@pytest.mark.parametrize("name", ["my-model", "VOICE.GGUF", "voice.bin"])
def test_a_bundle_is_known_by_its_content(bundles, tmp_path, name):
    """Guards ``quantize -o my-model``, which wrote a file that no command took."""
    path = Path(shutil.copy(bundles("transformers", "q8_0"), tmp_path / name))
    assert resolve(ModelFlags(weights_path=path)).path == path
    assert resolve(ModelFlags(model_path=tmp_path)).path == path
    assert resolve(ModelFlags(model_path=tmp_path, model_file=name)).path == path


def test_a_checkpoint_in_another_type(checkpoints):
    flags = ModelFlags(model_path=checkpoints("original"), weight_type="f16")
    assert resolve(flags).path.name.startswith("original-f16-")


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        (
            {"weights_path": Path("/nowhere.gguf")},
            ModelNotFound,
            "/nowhere.gguf: no such file",
        ),
        ({"model_path": Path("/nowhere")}, ModelNotFound, "no such directory"),
        ({"model_file": "q8.gguf"}, InputError, "give one of them"),
        ({"index_file": "x.index.json"}, InputError, "give one of them"),
        ({"model_path": Path("/"), "model_file": "/etc/passwd"}, InputError, "absolute"),
        ({"model_path": Path("/"), "model_file": "a", "index_file": "b"}, InputError, "exclude"),
        ({"tokenizer_id": "some/tokenizer"}, InputError, "its own tokenizer"),
        ({"weight_type": "q4_0"}, InputError, "--type is for checkpoints"),
        ({"revision": "v1", "model_path": Path("/")}, InputError, "name it with --model-id"),
    ],
)
def test_flags_that_lead_nowhere(flags, kind, message):
    with pytest.raises(kind) as caught:
        resolve(ModelFlags(**flags))
    assert message in str(caught.value)


def test_directories_that_leave_a_choice(bundles, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(bundles("transformers", "q8_0"), tmp_path / name)
    with pytest.raises(ModelInvalid, match="--model-file"):
        resolve(ModelFlags(model_path=tmp_path))
    with pytest.raises(ModelNotFound, match=r"no file c\.gguf"):
        resolve(ModelFlags(model_path=tmp_path, model_file="c.gguf"))
    with pytest.raises(InputError, match="leave the option out"):
        resolve(ModelFlags(model_path=tmp_path, model_file="a.gguf", tokenizer_id="x/y"))


def test_names_that_are_too_long(tmp_path):
    long = Path("x" * 300)
    for flags in (
        ModelFlags(weights_path=long),
        ModelFlags(model_path=long),
        ModelFlags(model_path=tmp_path, model_file=str(long)),
    ):
        with pytest.raises(ModelNotFound, match="cannot be read: File name too long"):
            resolve(flags)
