"""A checkpoint's configuration files as a :class:`~csm_hybrid.model.config.ModelConfig`.

Two kinds of ``config.json`` are out there, each with either layout of weights: transformers' (sizes
spelled out, ``depth_decoder_config`` and ``codec_config`` inside) and the original's, which names each tower's
sizes (``backbone_flavor``). Without one, the towers' widths must be those of a named tower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.config import MimiConfig, ModelConfig, RopeScaling, Sampling, TowerConfig

from .json_settings import Settings, readable

PROMPT_TEMPLATE = "[{speaker}]{text}"
LLAMA3_SCALING = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192.0)

_CSM_TOWER = TowerConfig(
    layers=16,
    width=2048,
    heads=32,
    kv_heads=8,
    head_dim=64,
    ffn=8192,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=LLAMA3_SCALING,
    positions=2048,
)
NAMED_TOWERS: dict[str, TowerConfig] = {
    "llama-1B": _CSM_TOWER,
    "llama-100M": replace(_CSM_TOWER, layers=4, width=1024, heads=8, kv_heads=2, head_dim=128),
}
"""The towers that the original repository names (SesameAILabs/csm, ``models.py``)."""

MIMI = MimiConfig(
    sample_rate=24000,
    frame_rate=12.5,
    codebooks=32,
    semantic_codebooks=1,
    codebook_size=2048,
    codebook_dim=256,
    width=512,
    filters=64,
    ratios=(8, 6, 5, 4),
    kernel=7,
    residual_kernel=3,
    last_kernel=3,
    residual_layers=1,
    dilation_growth=2,
    compress=2,
    layers=8,
    heads=8,
    kv_heads=8,
    head_dim=64,
    ffn=2048,
    context=250,
    rope_theta=10000.0,
    norm_eps=1e-5,
    upsample_groups=512,
)
"""Kyutai's Mimi (moshi ``models/loaders.py``; transformers' MimiConfig has the same defaults)."""


@dataclass(frozen=True)
class TableSizes:
    """What the weights' shapes tell whatever the configuration says."""

    text_vocab: int
    audio_rows: int  # codebooks * audio vocabulary
    audio_vocab: int  # rows of codebook 0's head
    backbone_width: int
    decoder_width: int
    backbone_layers: int
    decoder_layers: int


@readable("config.json")
def model_config(
    config: Mapping[str, Any] | None,
    generation: Mapping[str, Any] | None,
    sizes: TableSizes,
    special_ids: tuple[int, int],
    codec: MimiConfig,
) -> ModelConfig:
    """The whole configuration.

    ``config`` is ``config.json`` (None: the towers are known by their widths), ``generation`` is
    ``generation_config.json``; ``special_ids`` begin and end a text segment.

    Its numbers may still be beyond the limits, which :func:`csm_hybrid.model.values.faults` tells.
    Raises ModelInvalid for settings that this engine does not know, and for what is no number.
    """
    settings = Settings(config or {}, "config.json")
    if "depth_decoder_config" in settings:
        backbone = tower(config or {}, "the backbone")
        decoder = tower(settings.get("depth_decoder_config"), "the depth decoder")
    else:
        backbone = _named_tower(settings, "backbone", sizes.backbone_width, sizes.backbone_layers)
        decoder = _named_tower(settings, "decoder", sizes.decoder_width, sizes.decoder_layers)
    codebooks = settings.integer("num_codebooks", sizes.audio_rows // sizes.audio_vocab)
    codebooks = settings.integer("audio_num_codebooks", codebooks)
    audio_vocab = settings.integer("audio_vocab_size", settings.integer("vocab_size", sizes.audio_vocab))
    return ModelConfig(
        name="",
        backbone=backbone,
        # A frame restarts the decoder's positions, so it never sees more than these; the layouts' own
        # figures (33 and 2048) say nothing else.
        decoder=replace(decoder, positions=codebooks + 1),
        codebooks=codebooks,
        audio_vocab=audio_vocab,
        text_vocab=settings.integer("text_vocab_size", sizes.text_vocab),
        bos_id=special_ids[0],
        eos_id=special_ids[1],
        end_code=settings.integers("codebook_eos_token_id", (0,))[0],
        prompt_template=str(settings.get("prompt_template") or PROMPT_TEMPLATE),
        sampling=_sampling(generation or {}, audio_vocab),
        codec=codec,
    )


@readable("config.json")
def tower(values: Mapping[str, Any], label: str) -> TowerConfig:
    """A tower from transformers' keys (``CsmConfig``, ``CsmDepthDecoderConfig``); ``label`` names it in messages.

    Raises ModelInvalid for what is missing or no number, and for what this engine has not: biases, other
    activations, other scalings of the rotary positions.
    """
    settings = Settings(values, f"config.json, of {label},")
    for name in ("attention_bias", "mlp_bias"):
        if settings.get(name):
            raise ModelInvalid(f"{label} has {name} = true: towers with biases are not supported")
    if settings.get("hidden_act", "silu") != "silu":
        raise ModelInvalid(f"{label} has hidden_act = {settings.get('hidden_act')!r}: only 'silu' is supported")
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    theta, scaling = _rope(settings, label)
    return TowerConfig(
        layers=settings.integer("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_dim=settings.integer("head_dim", width // max(1, heads)),
        ffn=settings.integer("intermediate_size"),
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        rope_theta=theta,
        rope_scaling=scaling,
        positions=settings.integer("max_position_embeddings", 2048),
    )


def _rope(settings: Settings, label: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``."""
    rope = Settings(settings.get("rope_parameters") or settings.get("rope_scaling", {}), f"config.json, of {label},")
    theta = rope.number("rope_theta", settings.number("rope_theta", 500_000.0))
    kind = rope.get("rope_type") or rope.get("type", "default")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelInvalid(f"{label} has rotary scaling of type {kind!r}: 'default' and 'llama3' are supported")
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context=rope.number("original_max_position_embeddings"),
    )
    return theta, scaling.normalised()


def _named_tower(settings: Settings, which: str, width: int, layers: int) -> TowerConfig:
    name = settings.get(f"{which}_flavor")
    if name is not None and name not in NAMED_TOWERS:
        raise ModelInvalid(f"config.json names {which}_flavor {name!r}; known are {', '.join(NAMED_TOWERS)}")
    for known, sizes in NAMED_TOWERS.items():
        if known == name or (name is None and (sizes.width, sizes.layers) == (width, layers)):
            return sizes
    raise ModelInvalid(
        f"the {which} has width {width} and {layers} layers, which is no known tower ({', '.join(NAMED_TOWERS)}): "
        "its config.json is needed beside the weights"
    )


_SAMPLING_NAMES = ("do_sample", "temperature", "top_k")


@readable("generation_config.json")
def _sampling(generation: Mapping[str, Any], vocab: int) -> Sampling | None:
    """The defaults of ``generation_config.json``; the depth decoder's are named ``depth_decoder_*`` there.

    transformers leaves out what has its default, so that any one of the names says that the others have theirs.
    """
    given = {key: value for key, value in generation.items() if value is not None}
    if not any(prefix + name in given for prefix in ("", "depth_decoder_") for name in _SAMPLING_NAMES):
        return None
    first = _choice(given, "", (1.0, 50), vocab)
    depth = _choice(given, "depth_decoder_", first, vocab)
    return Sampling(*first, *depth)


def _choice(given: Mapping[str, Any], prefix: str, default: tuple[float, int], vocab: int) -> tuple[float, int]:
    """Temperature (0 where sampling is off) and top-k (0 in the file: of all codes)."""
    settings = Settings(given, "generation_config.json")
    top_k = settings.integer(f"{prefix}top_k", default[1]) or vocab
    if settings.get(f"{prefix}do_sample") is False:
        return 0.0, top_k
    return settings.number(f"{prefix}temperature", default[0]), top_k


@readable("config.json, codec_config,")
def mimi_config(values: Mapping[str, Any] | None) -> MimiConfig:
    """The codec's sizes from transformers' ``codec_config`` (``MimiConfig``); Mimi's own where it says nothing.

    Raises ModelInvalid for what is no number and for convolutions unlike Mimi's.
    """
    settings = Settings(values or {}, "config.json, codec_config,")
    convolutions = settings.get("use_causal_conv", True), settings.get("pad_mode", "constant")
    if settings.get("use_conv_shortcut") or convolutions != (True, "constant"):
        raise ModelInvalid(
            "the codec's convolutions differ from Mimi's: use_conv_shortcut, use_causal_conv = false and "
            "pad_mode other than 'constant' are not supported"
        )
    integer = settings.integer
    ratios = settings.integers("upsampling_ratios", MIMI.ratios)
    sample_rate = integer("sampling_rate", MIMI.sample_rate)
    width, heads = integer("hidden_size", MIMI.width), integer("num_attention_heads", MIMI.heads)
    rope = Settings(settings.get("rope_parameters") or settings.get("rope_scaling", {}), "config.json, codec_config,")
    frame_rate = settings.number("_frame_rate", sample_rate / max(1, 2 * math.prod(ratios)))
    return MimiConfig(
        sample_rate=sample_rate,
        frame_rate=settings.number("frame_rate", frame_rate),
        codebooks=integer("num_quantizers", MIMI.codebooks),
        semantic_codebooks=integer("num_semantic_quantizers", MIMI.semantic_codebooks),
        codebook_size=integer("codebook_size", MIMI.codebook_size),
        codebook_dim=integer("codebook_dim", MIMI.codebook_dim),
        width=width,
        filters=integer("num_filters", MIMI.filters),
        ratios=ratios,
        kernel=integer("kernel_size", MIMI.kernel),
        residual_kernel=integer("residual_kernel_size", MIMI.residual_kernel),
        last_kernel=integer("last_kernel_size", MIMI.last_kernel),
        residual_layers=integer("num_residual_layers", MIMI.residual_layers),
        dilation_growth=integer("dilation_growth_rate", MIMI.dilation_growth),
        compress=integer("compress", MIMI.compress),
        layers=integer("num_hidden_layers", MIMI.layers),
        heads=heads,
        kv_heads=integer("num_key_value_heads", heads),
        head_dim=integer("head_dim", width // max(1, heads)),
        ffn=integer("intermediate_size", MIMI.ffn),
        context=integer("sliding_window", MIMI.context),
        rope_theta=rope.number("rope_theta", settings.number("rope_theta", MIMI.rope_theta)),
        norm_eps=settings.number("norm_eps", MIMI.norm_eps),
        upsample_groups=integer("upsample_groups", width),
    )


@readable("tokenizer.json or tokenizer_config.json")
def special_ids(tokenizer: Mapping[str, Any], names: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    """The ids that begin and end a text segment.

    ``tokenizer`` is ``tokenizer.json``, ``names`` is ``tokenizer_config.json``. Llama 3's own texts come
    first (an instruction-tuned tokenizer's ``eos_token`` is another), then what ``tokenizer_config.json``
    names, then ``config.json``'s ids. Raises ModelInvalid where none of them gives an id.
    """
    added = {t.get("content"): t.get("id") for t in tokenizer.get("added_tokens") or () if isinstance(t, dict)}
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    found: list[int] = []
    for text, key in (("<|begin_of_text|>", "bos_token"), ("<|end_of_text|>", "eos_token")):
        named = names.get(key)
        named = named.get("content") if isinstance(named, dict) else named
        candidates = [added.get(text), added.get(named)]
        candidates += [
            vocabulary.get(named) if isinstance(vocabulary, dict) else None,
            config.get(f"{key}_id"),
        ]
        known = [c for c in candidates if isinstance(c, int) and not isinstance(c, bool)]
        if not known:
            raise ModelInvalid(
                f"the tokenizer has no {text!r}, and neither tokenizer_config.json's {key} nor config.json's "
                f"{key}_id gives another: the text segments' ends are unknown"
            )
        found.append(known[0])
    return found[0], found[1]
