"""Models by ``--model-id``, with the hub's own client against a hub that fails to order."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import LATER, Hub, serving
from huggingface_hub import constants, errors, hf_hub_download

from csm_hybrid.checkpoints import hub as module
from csm_hybrid.checkpoints.conversions import CACHE_VARIABLE
from csm_hybrid.checkpoints.resolve import ModelFlags, resolve
from csm_hybrid.errors import InputError, ModelNotFound
from csm_hybrid.model import file_schema as schema
from csm_hybrid.model.bundle import Bundle

CSM = ModelFlags(model_id="some/csm")
WEIGHTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = Path(shutil.copytree(checkpoints("transformers"), tmp_path / "repository"))
    with serving(folder, tmp_path / "hub", monkeypatch) as found:
        yield found


def test_a_model_is_its_shards_and_small_files_which_come_first(hub: Hub) -> None:
    """Guards against six gigabytes that are downloaded before a missing small file is."""
    (hub.folder / "model.safetensors").write_bytes(b"the other layout: six gigabytes")
    with Bundle.open(resolve(CSM).path) as bundle:
        assert bundle.config.name == "csm"
        assert bundle.config.sampling is not None
    small = ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"]
    assert hub.downloaded() == [*small, *WEIGHTS]


def test_a_repository_without_a_tokenizer_is_refused_before_its_weights(hub: Hub, checkpoints, tmp_path) -> None:
    (hub.folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"some/csm has no tokenizer\.json: .*--tokenizer-id"):
        resolve(CSM)
    assert hub.downloaded() == []
    flags = ModelFlags(model_id="some/csm", tokenizer_id=str(checkpoints("original")))
    Bundle.open(resolve(flags).path).close()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("status", [503, 429])
def test_a_file_that_the_hub_cannot_give_now_is_not_done_without(hub, cache, monkeypatch, name, status) -> None:
    """Guards against a conversion without the model's own sampling that is then kept."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's retries
    hub.statuses[name] = status
    with pytest.raises(ModelNotFound, match="run it again"):
        resolve(CSM)
    assert not list(cache.glob("*.gguf"))
    assert not set(hub.downloaded()) & set(WEIGHTS)
    hub.statuses.clear()
    with Bundle.open(resolve(CSM).path) as bundle:
        assert bundle.config.sampling is not None


def test_a_download_that_breaks_off_is_one_clear_line(hub: Hub, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.dropped.add(WEIGHTS[1])
    with pytest.raises(ModelNotFound, match=r"some/csm could not be downloaded .*: run it again"):
        resolve(CSM)
    hub.dropped.clear()
    Bundle.open(resolve(CSM).path).close()


@pytest.mark.parametrize("error", [RuntimeError("Data processing error: CAS"), OSError("reset"), KeyError("x")])
def test_whatever_the_client_raises_is_explained(hub: Hub, monkeypatch, error: Exception) -> None:
    def fail(*arguments: object, **named: object) -> str:
        raise error

    monkeypatch.setattr(module, "hf_hub_download", fail)
    with pytest.raises(ModelNotFound, match="run it again"):
        resolve(CSM)


def test_a_kept_conversion_needs_neither_files_nor_a_network(hub: Hub, tmp_path: Path, cache: Path) -> None:
    first = resolve(CSM).path
    made = first.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "hub")
    hub.asked.clear()
    assert resolve(CSM).path == first
    assert hub.asked == ["GET api"]
    hub.down = True
    assert resolve(CSM).path == first
    assert first.stat().st_mtime_ns == made
    assert list(cache.glob("*.gguf")) == [first]


def test_without_a_hub_a_start_is_quick(hub: Hub, monkeypatch) -> None:
    """Guards against the client's retries, half a minute for every file that a repository does not have."""
    first = resolve(CSM).path
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begin = time.perf_counter()
    assert resolve(CSM).path == first
    assert time.perf_counter() - begin < 5
    with pytest.raises(
        ModelNotFound, match=r"another/csm is not on this machine and the hub does not give it \(.*\)"
    ):
        resolve(ModelFlags(model_id="another/csm"))


def test_a_new_commit_is_another_model(hub: Hub) -> None:
    first = resolve(CSM).path
    (hub.folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}', encoding="utf-8")
    hub.commit = LATER
    second = resolve(CSM).path
    assert second != first
    with Bundle.open(second) as bundle:
        assert bundle.config.sampling is not None
        assert bundle.config.sampling.temperature == 0.5
    hub.down = True
    assert resolve(CSM).path == second


def test_a_newer_converter_makes_it_again(hub: Hub, monkeypatch) -> None:
    first = resolve(CSM).path
    monkeypatch.setattr(schema, "CONVERSION", schema.CONVERSION + 1)
    assert resolve(CSM).path != first


def test_what_another_program_downloaded_is_used_if_it_is_whole(hub: Hub, cache: Path, tmp_path: Path) -> None:
    names = ["config.json", "tokenizer.json", "model.safetensors.index.json", *WEIGHTS]
    for name in names:
        hf_hub_download("some/csm", name)
    hub.down = True
    with pytest.raises(ModelNotFound, match="not whole on this machine"):
        resolve(CSM)  # whether it has a generation_config.json cannot be known
    hub.down = False
    hf_hub_download("some/csm", "generation_config.json")
    with pytest.raises(errors.EntryNotFoundError):
        hf_hub_download("some/csm", "tokenizer_config.json")
    hub.down = True
    with Bundle.open(resolve(CSM).path) as bundle:
        assert bundle.config.sampling is not None


@pytest.mark.parametrize("flag", [{"index_file": "hf/model.safetensors.index.json"}, {}])
def test_a_checkpoint_in_a_folder_of_a_repository(hub: Hub, bundles, flag: dict[str, str]) -> None:
    inside = hub.folder / "hf"
    inside.mkdir()
    for path in [p for p in hub.folder.iterdir() if p.is_file()]:
        path.rename(inside / path.name)
    if not flag:
        with pytest.raises(ModelNotFound, match=r"--index-file \(it has .*hf/model\.safetensors\.index\.json"):
            resolve(CSM)
        return
    with Bundle.open(resolve(ModelFlags(model_id="some/csm", **flag)).path) as bundle:  # type: ignore[arg-type]
        assert bundle.config.sampling is not None
    assert f"hf/{WEIGHTS[1]}" in hub.downloaded()


def test_a_bundle_by_file_or_as_the_only_one(hub: Hub, bundles, checkpoints, tmp_path: Path) -> None:
    (hub.folder / "gguf").mkdir()
    shutil.copy(bundles("transformers", "q8_0"), hub.folder / "gguf" / "q8.gguf")
    flags = ModelFlags(model_id="some/csm", model_file="gguf/q8.gguf")
    path = resolve(flags).path
    assert path.name == "q8.gguf"
    assert hub.downloaded() == ["gguf/q8.gguf"]
    hub.down = True
    assert resolve(flags).path == path
    hub.down = False
    for file in [p for p in hub.folder.iterdir() if p.is_file()]:
        file.unlink()
    shutil.move(hub.folder / "gguf" / "q8.gguf", hub.folder / "only.gguf")
    hub.commit = LATER
    assert resolve(CSM).path.name == "only.gguf"
    with pytest.raises(InputError, match="--type is for checkpoints"):
        resolve(ModelFlags(model_id="some/csm", weight_type="q4_0"))


def test_the_type_and_the_revision(hub: Hub) -> None:
    path = resolve(ModelFlags(model_id="some/csm", weight_type="q4_k", revision="v1")).path
    assert path.name.startswith("csm-q4_k_m-")
    assert resolve(CSM).path != path
    hub.down = True
    assert resolve(ModelFlags(model_id="some/csm", weight_type="q4_k", revision="v1")).path == path
    with pytest.raises(InputError, match="no weight type is called 'q9'"):
        resolve(ModelFlags(model_id="some/csm", weight_type="q9"))


@pytest.mark.parametrize("status", [401, 503])
def test_a_hub_without_an_answer_is_explained(hub: Hub, status: int) -> None:
    hub.statuses["api"] = status
    with pytest.raises(ModelNotFound, match=rf"the hub does not give it \(.*{status}"):
        resolve(CSM)


def test_an_unknown_repository(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="the hub shows no repository some/csm-2"):
        resolve(ModelFlags(model_id="some/csm-2"))


def answered(kind: type[Exception]) -> Exception:
    """An error that carries the hub's answer, whichever HTTP client its library uses."""
    error = kind.__new__(kind)
    Exception.__init__(error, "403")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("it is not cached"), "the hub cannot be reached"),
        (errors.EntryNotFoundError("no such"), "lacks a file"),
        (errors.HFValidationError("bad name"), "no name of a repository"),
        (answered(errors.GatedRepoError), "accept its terms at https://huggingface.co/some/csm"),
        (answered(errors.RepositoryNotFoundError), "hf auth login"),
    ],
)
def test_what_the_client_says_is_explained(hub: Hub, monkeypatch, error: Exception, message: str) -> None:
    def fail(*arguments: object, **named: object) -> str:
        raise error

    monkeypatch.setattr(module, "hf_hub_download", fail)
    with pytest.raises(ModelNotFound, match=message):
        resolve(CSM)


def test_a_damaged_memory_is_none(hub: Hub, cache: Path) -> None:
    resolve(CSM)
    (kept,) = cache.glob("hub-*.json")
    assert json.loads(kept.read_text(encoding="utf-8"))["commit"] == hub.commit
    kept.write_text("{", encoding="utf-8")
    hub.down = True
    with pytest.raises(ModelNotFound, match="the hub does not give it"):
        resolve(CSM)
    hub.down = False
    resolve(CSM)
    assert json.loads(kept.read_text(encoding="utf-8"))["commit"] == hub.commit
