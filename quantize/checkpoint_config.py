"""A checkpoint's configuration files as a :class:`~csm_hybrid.model.config.ModelConfig`.

Two kinds of ``config.json`` are out there, each with either layout of weights: transformers' (sizes
spelled out, ``depth_decoder_config`` and ``codec_config`` inside) and the original's, which names each tower's
sizes (``backbone_flavor``). Without one, the towers' widths must be those of a named tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.config import MimiConfig, ModelConfig, RopeScaling, Sampling, TowerConfig

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


@contextmanager
def readable(file: str) -> Iterator[None]:
    """Whatever a foreign file's values make Python stumble over, as a ModelInvalid that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelInvalid(f"{file} holds settings that cannot be used: {error!r}") from error


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

    Raises ModelInvalid for settings that this engine does not know.
    """
    settings = config or {}
    if "depth_decoder_config" in settings:
        backbone = tower(settings, "the backbone")
        decoder = tower(settings["depth_decoder_config"], "the depth decoder")
    else:
        backbone = _named_tower(settings, "backbone", sizes.backbone_width, sizes.backbone_layers)
        decoder = _named_tower(settings, "decoder", sizes.decoder_width, sizes.decoder_layers)
    codebooks = int(settings.get("audio_num_codebooks") or settings.get("num_codebooks") or 0)
    codebooks = codebooks or sizes.audio_rows // sizes.audio_vocab
    end_code = settings.get("codebook_eos_token_id", 0)
    audio_vocab = int(settings.get("audio_vocab_size") or settings.get("vocab_size") or sizes.audio_vocab)
    return ModelConfig(
        name="",
        backbone=backbone,
        # A frame restarts the decoder's positions, so it never sees more than these; the layouts' own
        # figures (33 and 2048) say nothing else.
        decoder=replace(decoder, positions=codebooks + 1),
        codebooks=codebooks,
        audio_vocab=audio_vocab,
        text_vocab=int(settings.get("text_vocab_size") or sizes.text_vocab),
        bos_id=special_ids[0],
        eos_id=special_ids[1],
        end_code=0 if end_code is None else int(_first(end_code)),
        prompt_template=str(settings.get("prompt_template") or PROMPT_TEMPLATE),
        sampling=_sampling(generation or {}, audio_vocab),
        codec=codec,
    )


@readable("config.json")
def tower(settings: Mapping[str, Any], label: str) -> TowerConfig:
    """A tower from transformers' keys (``CsmConfig``, ``CsmDepthDecoderConfig``)."""
    for name in ("attention_bias", "mlp_bias"):
        if settings.get(name):
            raise ModelInvalid(f"{label} has {name} = true: towers with biases are not supported")
    if settings.get("hidden_act", "silu") != "silu":
        raise ModelInvalid(f"{label} has hidden_act = {settings['hidden_act']!r}: only 'silu' is supported")
    width, heads = int(settings["hidden_size"]), int(settings["num_attention_heads"])
    theta, scaling = _rope(settings, label)
    return TowerConfig(
        layers=int(settings["num_hidden_layers"]),
        width=width,
        heads=heads,
        kv_heads=int(settings.get("num_key_value_heads") or heads),
        head_dim=int(settings.get("head_dim") or width // heads),
        ffn=int(settings["intermediate_size"]),
        norm_eps=float(settings.get("rms_norm_eps", 1e-5)),
        rope_theta=theta,
        rope_scaling=scaling,
        positions=int(settings.get("max_position_embeddings", 2048)),
    )


def _rope(settings: Mapping[str, Any], label: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or settings.get("rope_theta") or 500_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelInvalid(f"{label} has rotary scaling of type {kind!r}: 'default' and 'llama3' are supported")
    scaling = RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_context=float(rope["original_max_position_embeddings"]),
    )
    return theta, scaling.normalised()


def _named_tower(settings: Mapping[str, Any], which: str, width: int, layers: int) -> TowerConfig:
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
    top_k = int(given.get(f"{prefix}top_k", default[1])) or vocab
    if given.get(f"{prefix}do_sample") is False:
        return 0.0, top_k
    return float(given.get(f"{prefix}temperature", default[0])), top_k


@readable("config.json, codec_config,")
def mimi_config(settings: Mapping[str, Any] | None) -> MimiConfig:
    """The codec's sizes from transformers' ``codec_config``; Mimi's own where it says nothing."""
    get = dict(settings or {}).get
    ratios = tuple(int(r) for r in get("upsampling_ratios") or MIMI.ratios)
    sample_rate = int(get("sampling_rate") or MIMI.sample_rate)
    hop = 1
    for ratio in ratios:
        hop *= ratio
    width = int(get("hidden_size") or MIMI.width)
    heads = int(get("num_attention_heads") or MIMI.heads)
    rope = get("rope_parameters") or get("rope_scaling") or {}
    if get("use_conv_shortcut") or get("use_causal_conv") is False or get("pad_mode", "constant") != "constant":
        raise ModelInvalid(
            "the codec's convolutions differ from Mimi's: use_conv_shortcut, use_causal_conv = false and "
            "pad_mode other than 'constant' are not supported"
        )
    return MimiConfig(
        sample_rate=sample_rate,
        frame_rate=float(get("frame_rate") or get("_frame_rate") or sample_rate / (2 * hop)),
        codebooks=int(get("num_quantizers") or MIMI.codebooks),
        semantic_codebooks=int(get("num_semantic_quantizers") or MIMI.semantic_codebooks),
        codebook_size=int(get("codebook_size") or MIMI.codebook_size),
        codebook_dim=int(get("codebook_dim") or MIMI.codebook_dim),
        width=width,
        filters=int(get("num_filters") or MIMI.filters),
        ratios=ratios,
        kernel=int(get("kernel_size") or MIMI.kernel),
        residual_kernel=int(get("residual_kernel_size") or MIMI.residual_kernel),
        last_kernel=int(get("last_kernel_size") or MIMI.last_kernel),
        residual_layers=int(get("num_residual_layers") or MIMI.residual_layers),
        dilation_growth=int(get("dilation_growth_rate") or MIMI.dilation_growth),
        compress=int(get("compress") or MIMI.compress),
        layers=int(get("num_hidden_layers") or MIMI.layers),
        heads=heads,
        kv_heads=int(get("num_key_value_heads") or heads),
        head_dim=int(get("head_dim") or width // heads),
        ffn=int(get("intermediate_size") or MIMI.ffn),
        context=int(get("sliding_window") or MIMI.context),
        rope_theta=float(rope.get("rope_theta") or get("rope_theta") or MIMI.rope_theta),
        norm_eps=float(get("norm_eps") or MIMI.norm_eps),
        upsample_groups=int(get("upsample_groups") or width),
    )


@readable("tokenizer.json or tokenizer_config.json")
def special_ids(tokenizer: Mapping[str, Any], names: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    """The ids that begin and end a text segment.

    ``tokenizer`` is ``tokenizer.json``, ``names`` is ``tokenizer_config.json``. Llama 3's own texts come
    first (an instruction-tuned tokenizer's ``eos_token`` is another), then what ``tokenizer_config.json``
    names, then ``config.json``'s ids.
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
        known = [c for c in candidates if isinstance(c, int)]
        if not known:
            raise ModelInvalid(
                f"the tokenizer has no {text!r}, and neither tokenizer_config.json's {key} nor config.json's "
                f"{key}_id gives another: the text segments' ends are unknown"
            )
        found.append(known[0])
    return found[0], found[1]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value
