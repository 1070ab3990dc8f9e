"""Other programs for the same work, run turn by turn with this one; none is imported unless it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import CsmError, InputError
from ...options import ModelOptions
from ..figures import Figure, figure, interleave, ratio
from ..speech import Speaking

if TYPE_CHECKING:
    from ...speech import Model

# What a peer is, and what may (or, marked with !, must) follow its name and "=".
PEERS = {
    "llama": "backbone and depth decoder on llama.cpp",
    "twin": "the model's sizes with random weights; =TYPE of them",
    "transformers": "Hugging Face's CSM on torch, codes only; =bfloat16 (default) or =float32",
    "moshi": "kyutai's Mimi on torch",
    "rustymimi": "kyutai's Mimi on candle; =FILE of weights, made up where moshi is installed",
    "csm.rs": "csm.rs's benchmark; !=BINARY or =BINARY,WEIGHTS",
    "codec.cpp": "codec.cpp's decoder; !=BINARY,MODEL (its codec-cli and a Mimi GGUF)",
}
_MODULES = {"csm.rs": "programs", "codec.cpp": "programs", "rustymimi": "mimi", "moshi": "mimi"}


class PeerMissing(CsmError):
    """A peer that is not installed, or cannot run here; the message names it and the remedy."""


@dataclass(frozen=True)
class Setting:
    """What both sides do: the model's sizes, the text, the threads, and how many frames a turn makes."""

    model: Model
    options: ModelOptions  # that the model was opened with
    path: Path
    speaking: Speaking
    threads: int
    frames: int


@dataclass(frozen=True)
class Pair:
    """The same work by a peer and by this package; each call does it once and returns how long it took."""

    what: str
    unit: str
    theirs: Callable[[], float]
    ours: Callable[[], float]


def parse(text: str) -> tuple[str, str | None]:
    """``NAME`` or ``NAME=ARGUMENT``. Raises InputError for an unknown one."""
    name, given, argument = text.partition("=")
    if name not in PEERS:
        raise InputError(f"no peer is called {name!r}: choose {', '.join(PEERS)}")
    if PEERS[name].partition("; ")[2].startswith("!") and not argument:
        raise InputError(f"--peer {name} needs the path of its program: --peer {name}=BINARY")
    return name, argument if given else None


@contextmanager
def pairs(name: str, argument: str | None, setting: Setting) -> Iterator[list[Pair]]:
    """What can be compared with the peer ``name``. Raises PeerMissing."""
    module = importlib.import_module(f".{_MODULES.get(name, name)}", __name__)
    with ExitStack() as stack:
        with _failing(name):
            found = getattr(module, name.replace(".", "_"))(setting, argument, stack)
        yield found


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """A peer's own failure, of whatever kind, becomes one line: it must not end the benchmark."""
    try:
        yield
    except CsmError:
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0]  # some bring a whole backtrace
        raise PeerMissing(f"{name} failed: {type(error).__name__}: {first}") from error


def compare(
    name: str,
    argument: str | None,
    setting: Setting,
    *,
    warmup: int,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Figure]:
    """Figures named ``peer/<name>/<what>/`` ``theirs``, ``ours`` and ``ratio`` (ours ÷ theirs, turn by turn)."""
    out: dict[str, Figure] = {}
    with pairs(name, argument, setting) as found:
        for pair in found:
            progress(f"beside {name}: {pair.what}")
            turns = {"theirs": partial(_theirs, name, pair), "ours": partial(_ours, pair)}
            samples = interleave(turns, warmup=warmup, rounds=rounds)
            theirs, ours = (figure(samples[side]["time"], pair.unit) for side in ("theirs", "ours"))
            at = f"peer/{name}/{pair.what}"
            out |= {f"{at}/theirs": theirs, f"{at}/ours": ours, f"{at}/ratio": ratio(ours, theirs)}
    return out


def _theirs(name: str, pair: Pair) -> dict[str, float]:
    with _failing(name):
        return {"time": pair.theirs()}


def _ours(pair: Pair) -> dict[str, float]:
    return {"time": pair.ours()}
