"""Opening the parts of a model file, each on the back end that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..errors import EngineError, InputError
from .base import Backbone, Codec, CodecKind, DepthDecoder
from .native_backbone import NativeBackbone
from .native_codec import NativeCodec, tensors_of
from .native_depth_decoder import NativeDepthDecoder

if TYPE_CHECKING:
    from .. import _native
    from ..model.bundle import Bundle

ENGINES = ("auto", "native", "llama")


def resolve_engine(engine: str, gpu_layers: int) -> Literal["native", "llama"]:
    """What ``auto`` stands for: ``llama`` where llama.cpp may offload layers to a GPU and can, else ``native``.

    Raises EngineError for an engine that is not one of ``ENGINES``.
    """
    if engine == "native":
        return "native"
    if engine == "llama":
        return "llama"
    if engine != "auto":
        raise EngineError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if gpu_layers == 0:
        return "native"
    from .llama_tower import offloads_to_gpu

    return "llama" if offloads_to_gpu() else "native"


def open_backbone(
    bundle: Bundle,
    pool: _native.ThreadPool,
    *,
    engine: str = "auto",
    slots: int = 1,
    gpu_layers: int = -1,
) -> Backbone:
    """Open a model file's backbone for ``slots`` streams at once.

    engine: ``native``, ``llama`` or ``auto`` (``llama`` where llama.cpp offloads to a GPU, else ``native``);
    gpu_layers: how many layers llama.cpp may put on a GPU, -1 for all.
    Raises ModelInvalid for unusable weights, EngineError for an unknown engine or too little memory.
    """
    if resolve_engine(engine, gpu_layers) == "native":
        return NativeBackbone.from_bundle(bundle, pool, slots=slots)
    from .llama_backbone import LlamaBackbone

    offset, _ = bundle.embedded("backbone.gguf")
    return LlamaBackbone(bundle.path, offset, bundle.config, threads=pool.threads, slots=slots, gpu_layers=gpu_layers)


def open_depth_decoder(
    bundle: Bundle, pool: _native.ThreadPool, *, engine: str = "auto", slots: int = 1, gpu_layers: int = -1
) -> DepthDecoder:
    """Open a model file's depth decoder for up to ``slots`` streams at once.

    engine: ``native``, ``llama`` or ``auto`` (``llama`` where llama.cpp offloads to a GPU, else ``native``);
    gpu_layers: how many layers llama.cpp may put on a GPU, -1 for all.
    Raises ModelInvalid for unusable weights, EngineError for an unknown engine.
    """
    if resolve_engine(engine, gpu_layers) == "llama":
        from .llama_depth_decoder import LlamaDepthDecoder

        return LlamaDepthDecoder(bundle, pool, slots=slots, gpu_layers=gpu_layers)
    return NativeDepthDecoder.from_bundle(bundle, pool)


def open_codec(
    bundle: Bundle,
    pool: _native.ThreadPool,
    *,
    kind: CodecKind = "native",
    codebooks: int | None = None,
    device: str | None = None,
) -> Codec:
    """The codec of a model file.

    ``kind`` "moshi" is the reference implementation on torch, for comparison and for CUDA; ``device`` is
    torch's then (None: CUDA where there is one). ``codebooks`` decodes only the first so many (all, when
    None): less detail, hardly less work. Raises InputError for a number that the codec does not have, an
    unknown kind or one that is not installed, ModelInvalid for tensors that do not fit.
    """
    config = bundle.config.codec
    # A model may give fewer codes than its codec has books.
    most = min(config.codebooks, bundle.config.codebooks)
    codebooks = most if codebooks is None else codebooks
    if not config.semantic_codebooks <= codebooks <= most:
        raise InputError(
            f"cannot decode {codebooks} codebooks: this model takes {config.semantic_codebooks} to {most}"
        )
    if kind == "native":
        return NativeCodec(config, tensors_of(bundle), pool, codebooks=codebooks)
    if kind == "moshi":
        from .moshi_codec import MoshiCodec  # torch only where asked for

        return MoshiCodec(config, tensors_of(bundle), codebooks=codebooks, device=device, threads=pool.threads)
    raise InputError(f"no codec is called {kind!r}; choose native or moshi")
