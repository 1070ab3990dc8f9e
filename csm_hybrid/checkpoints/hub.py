"""The Hugging Face hub: what a repository holds at which commit, and downloads of what was named and no more.

The hub is asked once, for the commit and the names of its files; all else follows from its answer. Where it gives
none, the last answer whose files all came here counts, else what other programs downloaded. Every failure becomes
a ModelNotFound that says how to get the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from huggingface_hub import HfApi, constants, errors, hf_hub_download, try_to_load_from_cache

from csm_hybrid.quantize.source import COMPANIONS, INDEX_NAMES, SINGLE_NAME, shard_names

from ..errors import CsmError, ModelNotFound

ANSWER_SECONDS = 10.0
"""How long the hub may take to say what a repository holds."""


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit: the names of its files, ``revalidated`` if the hub itself has just named them."""

    repository: str
    revision: str
    commit: str
    files: frozenset[str]
    revalidated: bool

    def checkpoint_or_bundle(self, file: str | None, index: str | None) -> str:
        """The file to begin with: ``file`` or ``index``, else an index of shards, a checkpoint, the only bundle."""
        candidates = [name for name in (file, index) if name is not None] or [*INDEX_NAMES, SINGLE_NAME]
        bundles = [name for name in self.files if is_bundle(name) and "/" not in name]
        if file is None and index is None and len(bundles) == 1:
            candidates += bundles
        for name in candidates:
            if name in self.files:
                return name
        others = sorted(name for name in self.files if is_bundle(name) or name.endswith((".safetensors", ".json")))
        raise ModelNotFound(
            f"{self.repository} holds none of {', '.join(candidates)}: pick a file with --model-file or --index-file"
            + (f" (it has {', '.join(others)})" if others else "")
        )

    def download(self, main: str, *, tokenizer: bool) -> Path:
        """The local path of ``main``, with all that belongs to it; of a checkpoint, the small files come first.

        With ``tokenizer``, the checkpoint must hold its own.
        """
        folder = PurePosixPath(main).parent
        with _explained(self.repository):
            if not is_bundle(main):
                wanted = [str(folder / name) for name in COMPANIONS if tokenizer or not name.startswith("tokenizer")]
                if tokenizer and str(folder / "tokenizer.json") not in self.files:
                    raise ModelNotFound(
                        f"{self.repository} has no {folder / 'tokenizer.json'}: give CSM's, which is Llama 3.2's,"
                        " with --tokenizer-id"
                    )
                for name in wanted:
                    if name in self.files:
                        self._fetch(name)
            path = self._fetch(main)
            if main.endswith(".index.json"):
                for name in shard_names(path):
                    self._fetch(str(folder / name))
        return path

    def download_tokenizer(self) -> Path:
        """The local ``tokenizer.json``, beside its ``tokenizer_config.json`` if the repository has one."""
        with _explained(self.repository):
            if "tokenizer_config.json" in self.files:
                self._fetch("tokenizer_config.json")
            return self._fetch("tokenizer.json")

    def _fetch(self, name: str) -> Path:
        found = hf_hub_download(self.repository, name, revision=self.commit, local_files_only=not self.revalidated)
        return Path(found)

    def remember(self, cache: Path) -> None:
        """Keep this answer in ``cache``, for when the hub gives none; call when all files are here."""
        if not self.revalidated:
            return
        kept = json.dumps({"commit": self.commit, "files": sorted(self.files)})
        path = _memory(cache, self.repository, self.revision)
        with suppress(OSError):  # a start without a network is then not to be had, no more
            if not path.is_file() or path.read_text(encoding="utf-8") != kept:
                cache.mkdir(parents=True, exist_ok=True)
                made = path.with_suffix(f".{os.getpid()}")
                made.write_text(kept, encoding="utf-8")
                made.replace(path)


def is_bundle(name: str) -> bool:
    """Whether a file's name is that of a single-file model."""
    return name.lower().endswith(".gguf")


def look_up(repository: str, revision: str | None, cache: Path, named: str | None = None) -> Snapshot:
    """What ``repository`` holds at ``revision`` (its main branch by default), by the hub or as last known.

    ``named`` is the file or index that is wanted, where one is. Raises ModelNotFound.
    """
    revision = revision or constants.DEFAULT_REVISION
    with _explained(repository):
        try:
            info = HfApi().model_info(repository, revision=revision, timeout=ANSWER_SECONDS)
            names = frozenset(sibling.rfilename for sibling in info.siblings or ())
            return Snapshot(repository, revision, str(info.sha), names, revalidated=True)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
            raise
        except Exception as error:  # the HTTP library's own among them, which is not the same in all versions
            known = _remembered(cache, repository, revision) or _by_others(repository, revision, named)
            if known is None:
                raise ModelNotFound(
                    f"{repository} is not on this machine and the hub does not give it ({_first_line(error)}): "
                    "connect and run it again, or copy the files here and name them with --model-path"
                ) from error
            return known


def _memory(cache: Path, repository: str, revision: str) -> Path:
    return cache / f"hub-{quote(f'{repository}@{revision}', safe='@')}.json"


def _remembered(cache: Path, repository: str, revision: str) -> Snapshot | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(_memory(cache, repository, revision).read_text(encoding="utf-8"))
        return Snapshot(repository, revision, str(kept["commit"]), frozenset(kept["files"]), revalidated=False)
    return None


def _by_others(repository: str, revision: str, named: str | None) -> Snapshot | None:
    """What other programs downloaded into the hub's cache. A small file that is neither there nor known to be
    absent counts as one of the repository's: to do without it in silence could give another model."""
    companions = [str(PurePosixPath(named or "").parent / name) for name in COMPANIONS]
    names = [*companions, *([named] if named else [*INDEX_NAMES, SINGLE_NAME])]
    cached = {name: try_to_load_from_cache(repository, name, revision=revision) for name in names}
    here = [(name, Path(path)) for name, path in cached.items() if isinstance(path, str)]
    if not here:
        return None
    folder = here[0][1].parents[len(PurePosixPath(here[0][0]).parts) - 1]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    files |= {name for name in companions if cached[name] is None}
    return Snapshot(repository, revision, folder.name, frozenset(files), revalidated=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """The hub's errors as ModelNotFound, the most telling first."""
    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except CsmError:
        raise
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{repository} is gated: accept its terms at {page}, then run `hf auth login` "
            "(or take an ungated mirror, for CSM-1B: --model-id unsloth/csm-1b)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub shows no repository {repository}: check the name, or `hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{repository} has no such revision ({_first_line(error)}): check --revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{repository} is not whole on this machine and the hub cannot be reached: connect and run it again, "
            "or copy the files here and name them with --model-path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(
            f"{repository} lacks a file ({_first_line(error)}): name one that it has, with --model-file or"
            " --index-file"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repository!r} is no name of a repository: {error}") from error
    except Exception as error:  # broken connections, in as many classes as the hub's client has ways to download
        raise ModelNotFound(
            f"{repository} could not be downloaded from {page} ({type(error).__name__}: {_first_line(error)}):"
            " run it again"
        ) from error
