"""A fast, small speech engine for Sesame's CSM: text in, speech out.

    import csm_hybrid

    with csm_hybrid.load() as model:
        speech = model.speak("Hello from a small voice.")

``load`` and ``Model`` are the way in; errors are in ``csm_hybrid.errors``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import ModelOptions, Segment, SpeechOptions
    from .speech import Model, Speech, load
    from .speech_stream import SpeechStream

__all__ = [
    "Model",
    "ModelOptions",
    "Segment",
    "Speech",
    "SpeechOptions",
    "SpeechStream",
    "__version__",
    "load",
]

_HOMES = {
    "Segment": "options",
    "SpeechOptions": "options",
    "ModelOptions": "options",
    "SpeechStream": "speech_stream",
}

# Where the backbone runs on llama.cpp: libgomp's idle threads, left behind after each pass, spin for milliseconds by
# default and take a core from the depth decoder's threads, which run next; a short spin still bridges the gaps
# inside a pass. libgomp reads it once, when it is loaded, so it must be set before anything imports llama_cpp.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

try:
    __version__ = metadata.version("csm-hybrid")
except metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"


def _use_installed() -> None:
    """In the root of a clone, where Python finds these sources first, takes all modules from the installed package:
    the sources lack the C++ module and the converter's place."""
    here = Path(__file__).parent
    try:
        installed = Path(str(metadata.distribution("csm-hybrid").locate_file(__name__)))
    except metadata.PackageNotFoundError:
        installed = here
    if installed == here or not any(installed.glob("_native.*")):
        raise ImportError(f"{here} holds csm_hybrid's sources, which are not built: run pip install . beside them")
    __path__[:] = [str(installed)]


if importlib.util.find_spec(f"{__name__}._native") is None:
    _use_installed()


def __getattr__(name: str) -> Any:
    # Imported at first use: the engine brings llama.cpp with it, which `csm-hybrid --help` does not need.
    if name in __all__:
        return getattr(importlib.import_module(f".{_HOMES.get(name, 'speech')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
