"""GGUF values to and from :class:`~csm_hybrid.model.config.ModelConfig`, by the schema's keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import file_schema as schema
from .config import MimiConfig, ModelConfig, RopeScaling, Sampling, TowerConfig
from .file_schema import Key

Value = str | int | float | tuple[int, ...]


def values_of(config: ModelConfig) -> dict[str, tuple[str, Value]]:
    """Every ``csm.*`` key of ``config`` with its kind ("u32", "f64", "str", "u32[]") and value."""
    out: dict[str, tuple[str, Value]] = {schema.VERSION_KEY: ("u32", schema.VERSION)}
    for prefix, keys, part in _sections(config):
        out |= {prefix + key.name: (key.kind, getattr(part, key.field)) for key in keys}
    return out


def _sections(config: ModelConfig) -> Iterator[tuple[str, Sequence[Key], Any]]:
    yield schema.MODEL_PREFIX, schema.MODEL_KEYS, config
    if config.sampling is not None:
        yield schema.SAMPLING_PREFIX, schema.SAMPLING_KEYS, config.sampling
    for prefix, tower in ((schema.BACKBONE_PREFIX, config.backbone), (schema.DECODER_PREFIX, config.decoder)):
        yield prefix, schema.TOWER_KEYS, tower
        if tower.rope_scaling is not None:
            yield prefix + schema.ROPE_SCALING, schema.ROPE_SCALING_KEYS, tower.rope_scaling.normalised()
    yield schema.MIMI_PREFIX, schema.MIMI_KEYS, config.codec


class _Reader:
    """Reads keys with their limits and collects what is wrong with them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []

    def section(self, prefix: str, keys: Sequence[Key]) -> dict[str, Any] | None:
        """The fields of one section; None if any is missing or out of its limits."""
        found = {key.field: self._value(prefix + key.name, key) for key in keys}
        return None if None in found.values() else found

    def optional_section(self, prefix: str, keys: Sequence[Key]) -> dict[str, Any] | None:
        """As :meth:`section`, but an absent section is no problem."""
        if not any(prefix + key.name in self.values for key in keys):
            return None
        return self.section(prefix, keys)

    def _value(self, name: str, key: Key) -> Any:
        value = self.values.get(name)
        if value is None:
            self.problems.append(f"key {name} is missing")
            return None
        problem = _problem(value, key)
        if problem:
            self.problems.append(f"key {name} is {_shown(value)}: {problem}")
            return None
        return float(value) if key.kind == "f64" else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(value: Any, key: Key) -> str | None:
    if key.kind == "str":
        return None if isinstance(value, str) else "it must be a text"
    items = value if key.kind == "u32[]" else (value,)
    if not isinstance(items, tuple) or not 1 <= len(items) <= schema.MAX_RATIOS:
        return f"it must be an array of 1 to {schema.MAX_RATIOS} integers"
    allowed = (int, float) if key.kind == "f64" else (int,)
    if any(isinstance(item, bool) or not isinstance(item, allowed) for item in items):
        return "it must be a number" if key.kind == "f64" else "it must be an integer"
    if not all(key.low <= item <= key.high for item in items):
        low, high = (f"{key.low:g}", f"{key.high:g}") if key.kind == "f64" else (key.low, key.high)
        return f"it must lie in {low} .. {high}"
    return None


def config_from(values: Mapping[str, Any]) -> tuple[ModelConfig | None, list[str]]:
    """The configuration that a bundle's values give, or None, and every problem found on the way."""
    reader = _Reader(values)
    name = values.get(schema.NAME_KEY, "")
    model = reader.section(schema.MODEL_PREFIX, schema.MODEL_KEYS)
    sampling = reader.optional_section(schema.SAMPLING_PREFIX, schema.SAMPLING_KEYS)
    backbone = _tower(reader, schema.BACKBONE_PREFIX)
    decoder = _tower(reader, schema.DECODER_PREFIX)
    codec = reader.section(schema.MIMI_PREFIX, schema.MIMI_KEYS)
    if model is None or backbone is None or decoder is None or codec is None or reader.problems:
        return None, reader.problems
    config = ModelConfig(
        name=name if isinstance(name, str) else "",
        backbone=backbone,
        decoder=decoder,
        sampling=None if sampling is None else Sampling(**sampling),
        codec=MimiConfig(**codec),
        **model,
    )
    return config, contradictions(config)


def _tower(reader: _Reader, prefix: str) -> TowerConfig | None:
    fields = reader.section(prefix, schema.TOWER_KEYS)
    scaling = reader.optional_section(prefix + schema.ROPE_SCALING, schema.ROPE_SCALING_KEYS)
    if fields is None:
        return None
    return TowerConfig(rope_scaling=None if scaling is None else RopeScaling(**scaling), **fields)


def faults(config: ModelConfig) -> list[str]:
    """What is wrong with a configuration: numbers beyond their limits, else contradictions.

    Asked before a conversion begins and when a file is opened: an empty list means that the engine takes the sizes.
    """
    return config_from({key: value for key, (_, value) in values_of(config).items()})[1]


def contradictions(config: ModelConfig) -> list[str]:
    """What cannot be true together in a configuration; empty for a sound one."""
    rules = [*_model_rules(config), *_codec_rules(config.codec)]
    rules += [*_tower_rules("backbone", config.backbone), *_tower_rules("decoder", config.decoder)]
    return [problem for holds, problem in rules if not holds]


Rules = Iterator[tuple[bool, str]]  # whether it holds, what to say if not


def _model_rules(config: ModelConfig) -> Rules:
    codebooks, codec = config.codebooks, config.codec
    yield (
        config.decoder.positions >= codebooks,
        f"{codebooks} codebooks do not fit the decoder's {config.decoder.positions} positions",
    )
    yield (
        codebooks <= codec.codebooks,
        f"the towers make {codebooks} codebooks, the codec has {codec.codebooks}",
    )
    yield (
        config.audio_vocab >= codec.codebook_size,
        f"the audio vocabulary of {config.audio_vocab} is below the codec's {codec.codebook_size} codes",
    )
    yield config.end_code < config.audio_vocab, f"end code {config.end_code} is not in the audio vocabulary"
    yield (
        max(config.bos_id, config.eos_id) < config.text_vocab,
        f"token ids {config.bos_id}, {config.eos_id} are beyond the {config.text_vocab} of the text",
    )
    yield "{text}" in config.prompt_template, f"prompt template {config.prompt_template!r} has no {{text}}"


def _tower_rules(label: str, tower: TowerConfig) -> Rules:
    yield (
        tower.heads % tower.kv_heads == 0,
        f"the {label}'s {tower.heads} heads do not divide into its {tower.kv_heads} key/value heads",
    )
    yield tower.head_dim % 2 == 0, f"the {label}'s head width {tower.head_dim} is odd"
    scaling = tower.rope_scaling
    if scaling is not None:
        yield (
            scaling.high_freq_factor > scaling.low_freq_factor,
            f"the {label}'s rotary scaling has high_freq_factor {scaling.high_freq_factor:g}, "
            f"which must exceed low_freq_factor {scaling.low_freq_factor:g}",
        )


def _codec_rules(codec: MimiConfig) -> Rules:
    yield (
        1 <= codec.frame_samples <= schema.CODEC_LONGEST,
        f"a frame of the codec is {codec.frame_samples} samples ({codec.sample_rate} Hz, {codec.frame_rate:g} frames "
        f"a second): it must be 1 .. {schema.CODEC_LONGEST}",
    )
    yield (
        codec.hop <= schema.CODEC_LONGEST,
        f"the codec's ratios multiply to {codec.hop} samples a step: at most {schema.CODEC_LONGEST} are possible",
    )
    yield (
        # Not exactly: no float holds the frame rate of 182 samples at 24000 Hz.
        math.isclose(codec.frame_samples * codec.frame_rate, codec.sample_rate, rel_tol=1e-9)
        and codec.frame_samples % codec.hop == 0,
        f"a frame at {codec.frame_rate:g} Hz is no whole number of steps of {codec.hop} samples "
        f"at {codec.sample_rate} Hz",
    )
    yield (
        codec.heads % codec.kv_heads == 0 and codec.head_dim % 2 == 0,
        f"the codec's attention is impossible: {codec.heads} heads, {codec.kv_heads} key/value heads, "
        f"head width {codec.head_dim}",
    )
    yield (
        codec.semantic_codebooks < codec.codebooks,
        f"all {codec.codebooks} codebooks of the codec are semantic ({codec.semantic_codebooks})",
    )
    yield (
        codec.width % codec.upsample_groups == 0,
        f"the codec's width {codec.width} does not divide into {codec.upsample_groups} upsampling groups",
    )
    yield (
        codec.filters % codec.compress == 0,
        f"the codec's {codec.filters} filters do not divide by its compression {codec.compress}",
    )
    widest = codec.filters << len(codec.ratios)
    yield (
        widest <= schema.CODEC_WIDEST,
        f"the codec's {codec.filters} filters, doubled at each of {len(codec.ratios)} ratios, are {widest} channels: "
        f"at most {schema.CODEC_WIDEST} are possible",
    )
