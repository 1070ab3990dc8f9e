"""csm.rs's model flags: what they find, what is converted, and what is said when nothing is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import errors

from csm_hybrid.errors import InputError, ModelInvalid, ModelNotFound, OutputError
from csm_hybrid.model import hub
from csm_hybrid.model import resolve as module
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.resolve import CACHE_VARIABLE, ModelFlags, cache_directory, embedded_voice, resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakeHub:
    """A repository's files in a directory; ``error`` is raised instead where set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.error: Callable[[str], Exception] | None = None

    def download(self, repository: str, name: str, *, local_files_only: bool = False) -> str:
        self.asked.append(name)
        if self.error is not None:
            raise self.error(name)
        if not (self.folder / name).is_file():
            raise errors.EntryNotFoundError(f"no {name} in {repository}")
        return str(self.folder / name)


@pytest.fixture
def fake_hub(tmp_path, checkpoints, monkeypatch) -> FakeHub:
    fake = FakeHub(Path(shutil.copytree(checkpoints("transformers"), tmp_path / "repository")))
    monkeypatch.setattr(hub, "hf_hub_download", fake.download)
    return fake


def test_nothing_named_is_the_embedded_voice(monkeypatch, tmp_path, bundles):
    folder = tmp_path / "package" / "voice"
    folder.mkdir(parents=True)
    monkeypatch.setattr(module, "files", lambda package: tmp_path / "package")
    with pytest.raises(ModelNotFound, match="--model-id sesame/csm-1b"):
        resolve(ModelFlags())
    shutil.copy(bundles("transformers", "q8_0"), folder / "voice.gguf")
    found = resolve(ModelFlags())
    assert found.embedded
    assert found.path == folder / "voice.gguf" == embedded_voice()


def test_a_bundle_by_path(bundles):
    path = bundles("transformers", "q8_0")
    assert resolve(ModelFlags(weights_path=path)).path == path
    assert not resolve(ModelFlags(weights_path=path)).embedded
    folder = ModelFlags(model_path=path.parent)
    assert resolve(folder).path == path
    assert resolve(ModelFlags(model_path=path.parent, model_file=path.name)).path == path


def test_the_file_comes_before_the_directory_and_the_hub(bundles, fake_hub, checkpoints):
    path = bundles("transformers", "q8_0")
    flags = ModelFlags(weights_path=path, model_path=checkpoints("voice"), model_id="some/model")
    assert resolve(flags).path == path
    assert not fake_hub.asked


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
    with pytest.raises(InputError, match="Leave the flag out"):
        resolve(ModelFlags(model_path=tmp_path, model_file="a.gguf", tokenizer_id="x/y"))


def test_a_hub_model_fetches_its_shards_and_companions_only(fake_hub):
    (fake_hub.folder / "model.safetensors").write_bytes(b"the other flavour: six gigabytes")
    path = resolve(ModelFlags(model_id="some/csm")).path
    assert Bundle.open(path).config.name == "csm"
    assert "model.safetensors" not in fake_hub.asked
    assert "model-00002-of-00002.safetensors" in fake_hub.asked
    assert "tokenizer.json" in fake_hub.asked


def test_a_hub_bundle_by_file(fake_hub, bundles):
    inside = fake_hub.folder / "gguf"
    inside.mkdir()
    shutil.copy(bundles("transformers", "q8_0"), inside / "q8.gguf")
    assert resolve(ModelFlags(model_id="some/csm", model_file="gguf/q8.gguf")).path == inside / "q8.gguf"
    assert fake_hub.asked == ["gguf/q8.gguf"]


def answered(kind: type[Exception]) -> Callable[[str], Exception]:
    """An error that carries the hub's answer, whichever HTTP client its library uses."""

    def raised(name: str) -> Exception:
        error = kind.__new__(kind)
        Exception.__init__(error, f"403: {name}")
        return error

    return raised


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda name: errors.LocalEntryNotFoundError(f"{name} is not cached"), "the hub cannot be reached"),
        (lambda name: errors.EntryNotFoundError(f"no {name}"), "holds none of transformers.safetensors"),
        (lambda name: errors.HFValidationError("bad name"), "no name of a repository"),
        (lambda name: ConnectionError("reset by peer"), "could not be downloaded"),
        (answered(errors.GatedRepoError), "accept its terms at https://huggingface.co/some/csm"),
        (answered(errors.RepositoryNotFoundError), "hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_explained(fake_hub, error, message):
    fake_hub.error = error
    with pytest.raises(ModelNotFound, match=message):
        resolve(ModelFlags(model_id="some/csm"))
