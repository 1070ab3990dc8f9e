"""A fast, small speech engine for Sesame's CSM: text in, speech out.

    import csm_hybrid

    with csm_hybrid.load() as model:
        speech = model.speak("Hello from a small voice.")

``load`` and ``Model`` are the way in; errors are in ``csm_hybrid.errors``.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import Segment
    from .speech import Model, Speech, load
    from .speech_stream import SpeechStream

__all__ = ["Model", "Segment", "Speech", "SpeechStream", "__version__", "load"]

# Where the backbone runs on llama.cpp: libgomp's idle threads, left behind after each pass, spin for milliseconds by
# default and take a core from the depth decoder's threads, which run next; a short spin still bridges the gaps
# inside a pass. libgomp reads it once, when it is loaded, so it must be set before anything imports llama_cpp.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

try:
    __version__ = metadata.version("csm-hybrid")
except metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    # Imported at first use: the engine brings llama.cpp with it, which `csm-hybrid --help` does not need.
    if name == "Segment":
        from .options import Segment

        return Segment
    if name in __all__:
        from . import speech

        return getattr(speech, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
