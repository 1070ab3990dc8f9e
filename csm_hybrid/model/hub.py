"""Downloads from the Hugging Face hub, of what was named and no more.

Files that an earlier download left are used without a network. Every failure becomes a ModelNotFound that
says how to get the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import errors, hf_hub_download

from csm_hybrid.errors import ModelNotFound
from quantize.source import INDEX_NAMES, SINGLE_NAME, shard_names

COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""Small files that belong to a checkpoint, where the repository has them."""


def download_model(repository: str, file: str | None, index: str | None) -> Path:
    """The local directory of a repository's checkpoint or bundle.

    ``file`` or ``index`` picks one; else an index of shards is looked for, then a single checkpoint.
    """
    with _explained(repository):
        if file is not None:
            first = _fetch(repository, file)
        else:
            candidates = [index] if index is not None else [*INDEX_NAMES, SINGLE_NAME]
            first = _first_of(repository, candidates)
        if first.name.endswith(".index.json"):
            for name in shard_names(first):
                _fetch(repository, name)
        if first.suffix != ".gguf":
            for name in COMPANIONS:
                with suppress(errors.EntryNotFoundError):
                    _fetch(repository, name)
    return first.parents[len(Path(file).parts) - 1] if file is not None else first.parent


def download_tokenizer(repository: str) -> Path:
    """The local ``tokenizer.json`` of a repository, beside its ``tokenizer_config.json`` if it has one."""
    with _explained(repository):
        path = _fetch(repository, "tokenizer.json")
        with suppress(errors.EntryNotFoundError):
            _fetch(repository, "tokenizer_config.json")
        return path


def _fetch(repository: str, name: str, *, local: bool = False) -> Path:
    return Path(hf_hub_download(repository, name, local_files_only=local))


def _first_of(repository: str, names: list[str]) -> Path:
    """The first of ``names`` that the repository (without a network: this machine) has."""
    unreachable: errors.LocalEntryNotFoundError | None = None
    for name in names:
        try:
            # The client retries for half a minute; once is enough to know that there is no network.
            return _fetch(repository, name, local=unreachable is not None)
        except errors.LocalEntryNotFoundError as error:
            unreachable = error
        except errors.EntryNotFoundError:
            continue
    if unreachable is not None:
        raise unreachable
    raise ModelNotFound(
        f"{repository} holds none of {', '.join(names)}: pick a file with --model-file or --index-file"
    )


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """The hub's errors as ModelNotFound, the most telling first."""
    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{repository} is gated: accept its terms at {page}, then run `hf auth login` "
            "(or take an ungated mirror, for CSM-1B: --model-id unsloth/csm-1b)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub shows no repository {repository}: check the name, or `hf auth login` if it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"{repository} is not on this machine and the hub cannot be reached: connect, "
            "or copy the files here and name them with --model-path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(
            f"{repository} lacks a file ({str(error).splitlines()[0]}): name one that it has, with --model-file or"
            " --index-file"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repository!r} is no name of a repository: {error}") from error
    except OSError as error:
        raise ModelNotFound(f"{repository} could not be downloaded from {page}: {error}") from error
