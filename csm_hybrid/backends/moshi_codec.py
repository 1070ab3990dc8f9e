"""The reference codec: kyutai's moshi on torch, from the same model file (the extra ``csm-hybrid[moshi]``).

It serves to compare with, and to run the codec on a CUDA device. Imported only when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelInvalid
from ..model.config import MimiConfig
from .base import whole_frames

os.environ.setdefault("NO_TORCH_COMPILE", "1")  # read when moshi is imported; compiling takes a minute, gains nothing

try:
    import torch
    from moshi.models.compression import MimiModel
    from moshi.modules import SEANetDecoder, SEANetEncoder
    from moshi.modules.transformer import ProjectedTransformer, RingKVCache, StreamingMultiheadAttention
    from moshi.quantization import SplitResidualVectorQuantizer
    from moshi.utils.compile import no_cuda_graph
except ImportError as error:
    raise InputError(
        f"the moshi codec needs torch and moshi ({error}); install them with: pip install 'csm-hybrid[moshi]'"
    ) from error

Floats = NDArray[np.float32]


class MoshiCodec:
    """moshi's MimiModel behind :class:`csm_hybrid.backends.base.Codec`; streams of a call run one after the other."""

    def __init__(
        self,
        config: MimiConfig,
        tensors: Mapping[str, NDArray[np.floating]],
        *,
        codebooks: int | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        """``device`` is torch's (CUDA where there is one, else the CPU, when None). Raises ModelInvalid."""
        self.config = config
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._codebooks = config.codebooks if codebooks is None else codebooks
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = build_model(config)
        floats = {name: np.array(value, dtype=np.float32) for name, value in tensors.items()}
        state = {name: torch.from_numpy(value) for name, value in moshi_state(config, floats).items()}
        self.model.load_state_dict(state)
        self.model.to(self.device).eval()

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def frame_samples(self) -> int:
        """Samples per frame of codes."""
        return self.config.frame_samples

    def new_state(self) -> dict[str, Any]:
        """A stream that begins, to decode or to encode."""
        model = self.model
        with torch.inference_mode():
            model.streaming_forever(1)
            for module in model.modules():
                if isinstance(module, StreamingMultiheadAttention):
                    self._widen_ring(module)
            state = model.get_streaming_state()
            model._stop_streaming()
        return dict(state)

    new_encode_state = new_state

    def _widen_ring(self, attention: Any) -> None:
        """Room for the steps of one frame beyond the context.

        moshi writes all steps of a call into a ring of ``context`` slots before any of them attends, so that
        the first step of a frame misses the oldest key that one-shot decoding gives it.
        """
        steps = self.config.resample_stride
        attention._streaming_state.kv_cache = RingKVCache(
            1,
            self.config.kv_heads,
            self.config.head_dim,
            self.config.context + steps - 1,
            device=torch.device(self.device),
            dtype=torch.float32,
        )

    def decode(self, states: list[dict[str, Any]], codes: NDArray[np.int32]) -> Floats:
        """See :meth:`csm_hybrid.backends.base.Codec.decode`."""
        count, frames, _ = codes.shape
        if len(states) != count:
            raise ValueError(f"codes hold {count} streams, {len(states)} states are given")
        used = np.clip(codes[:, :, : self._codebooks], 0, self.config.codebook_size - 1).astype(np.int64)
        out = np.zeros((count, frames * self.frame_samples), np.float32)
        for stream, state in enumerate(states):
            for frame in range(frames):
                given = torch.from_numpy(used[stream, frame]).to(self.device)[None, :, None]
                samples = self._streaming(state, self.model.decode, given)[0, 0]
                begin = frame * self.frame_samples
                out[stream, begin : begin + self.frame_samples] = samples.cpu().numpy()
        return out

    def encode(self, samples: Floats) -> NDArray[np.int32]:
        """See :meth:`csm_hybrid.backends.base.Codec.encode`."""
        return self.encode_frames(self.new_encode_state(), whole_frames(samples, self.frame_samples))

    def encode_frames(self, state: dict[str, Any], samples: Floats) -> NDArray[np.int32]:
        """See :meth:`csm_hybrid.backends.base.Codec.encode_frames`."""
        if len(samples) % self.frame_samples:
            raise ValueError(f"samples must be a multiple of {self.frame_samples}, not {len(samples)}")
        codes = np.zeros((len(samples) // self.frame_samples, self.config.codebooks), np.int32)
        for frame in range(len(codes)):
            begin = frame * self.frame_samples
            part = np.array(samples[begin : begin + self.frame_samples], np.float32)
            given = torch.from_numpy(part).to(self.device)[None, None]
            codes[frame] = self._streaming(state, self.model.encode, given)[0, :, 0].cpu().numpy()
        return codes

    def _streaming(self, state: dict[str, Any], step: Any, given: Any) -> Any:
        """Runs one step of the model on a stream's state, which the model changes in place."""
        with torch.inference_mode(), no_cuda_graph():
            self.model.set_streaming_state(state)
            try:
                return step(given)
            finally:
                self.model._stop_streaming()


def build_model(config: MimiConfig) -> Any:
    """An uninitialised MimiModel of these sizes, as moshi's ``loaders.get_mimi`` builds Mimi.

    Raises ModelInvalid for sizes that moshi's modules cannot have.
    """
    if config.head_dim * config.heads != config.width:
        raise ModelInvalid(
            f"moshi's heads fill the width, and {config.heads} x {config.head_dim} is not {config.width}:"
            " take the native codec"
        )
    if config.norm_eps != 1e-5 or config.upsample_groups not in (1, config.width):
        raise ModelInvalid(
            "moshi's codec has norm_eps 1e-5 and upsamples in one group or in one per channel: take the native one"
        )
    seanet, transformer = _seanet_settings(config), _transformer_settings(config)
    quantizer = SplitResidualVectorQuantizer(
        dimension=config.codebook_dim,
        n_q=config.codebooks,
        n_q_semantic=config.semantic_codebooks,
        bins=config.codebook_size,
        input_dimension=config.width,
        output_dimension=config.width,
    )
    return MimiModel(
        SEANetEncoder(**seanet),
        SEANetDecoder(**seanet),
        quantizer,
        channels=1,
        sample_rate=config.sample_rate,
        frame_rate=config.frame_rate,
        encoder_frame_rate=config.sample_rate / config.hop,
        causal=True,
        resample_method="conv",
        encoder_transformer=ProjectedTransformer(**transformer),
        decoder_transformer=ProjectedTransformer(**transformer),
        upsample_channel_wise_bug=config.upsample_groups == config.width,
    ).eval()


def _seanet_settings(config: MimiConfig) -> dict[str, Any]:
    return {
        "channels": 1,
        "dimension": config.width,
        "causal": True,
        "n_filters": config.filters,
        "n_residual_layers": config.residual_layers,
        "activation": "ELU",
        "compress": config.compress,
        "dilation_base": config.dilation_growth,
        "kernel_size": config.kernel,
        "residual_kernel_size": config.residual_kernel,
        "last_kernel_size": config.last_kernel,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": list(config.ratios),
        "true_skip": True,
    }


def _transformer_settings(config: MimiConfig) -> dict[str, Any]:
    return {
        "d_model": config.width,
        "num_heads": config.heads,
        "kv_repeat": config.heads // config.kv_heads,
        "num_layers": config.layers,
        "causal": True,
        "layer_scale": 0.01,
        "context": config.context,
        "conv_layout": True,
        "max_period": config.rope_theta,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": config.ffn,
        "input_dimension": config.width,
        "output_dimensions": [config.width],
    }


def moshi_state(config: MimiConfig, tensors: Mapping[str, Floats]) -> dict[str, Floats]:
    """The codec's canonical tensors under moshi's names (a MimiModel's ``state_dict``)."""
    out: dict[str, Floats] = {}
    for side, ours in (("encoder", "enc"), ("decoder", "dec")):
        for layer in range(config.layers):
            _layer(out, tensors, f"{ours}.tfm.{layer}.", f"{side}_transformer.transformer.layers.{layer}.")
    for name, module in _seanet_modules(config).items():
        for part in ("weight", "bias"):
            out[f"{module}.{part}"] = tensors[f"{name}.{part}"]
    out["downsample.conv.conv.conv.weight"] = tensors["downsample.weight"]
    out["upsample.convtr.convtr.convtr.weight"] = tensors["upsample.weight"]
    for ours, group in (("semantic", "rvq_first"), ("acoustic", "rvq_rest")):
        for short, long in (("in_proj", "input_proj"), ("out_proj", "output_proj")):
            out[f"quantizer.{group}.{long}.weight"] = tensors[f"rvq.{ours}.{short}.weight"][:, :, None]
    for k in range(config.codebooks):
        semantic = k < config.semantic_codebooks
        group, index = ("rvq_first", k) if semantic else ("rvq_rest", k - config.semantic_codebooks)
        at = f"quantizer.{group}.vq.layers.{index}._codebook."
        out[at + "embedding_sum"] = tensors[f"rvq.codebook.{k}"]
        out[at + "cluster_usage"] = np.ones(config.codebook_size, np.float32)
        out[at + "_initialized"] = np.ones(1, np.float32)
    return out


def _layer(out: dict[str, Floats], tensors: Mapping[str, Floats], ours: str, theirs: str) -> None:
    out[theirs + "self_attn.in_projs.0.weight"] = np.concatenate(
        [tensors[f"{ours}attn_{part}.weight"] for part in "qkv"]
    )
    for their_name, our_name in (
        ("self_attn.out_projs.0.weight", "attn_out.weight"),
        ("layer_scale_1.scale", "attn_scale"),
        ("layer_scale_2.scale", "ffn_scale"),
        ("linear1.weight", "ffn_up.weight"),
        ("linear2.weight", "ffn_down.weight"),
        ("norm1.weight", "attn_norm.weight"),
        ("norm1.bias", "attn_norm.bias"),
        ("norm2.weight", "ffn_norm.weight"),
        ("norm2.bias", "ffn_norm.bias"),
    ):
        out[theirs + their_name] = tensors[ours + our_name]


def _seanet_modules(config: MimiConfig) -> dict[str, str]:
    """Canonical convolution to moshi's module, walking its flat sequence of modules in order."""
    modules: dict[str, str] = {}
    residuals, ratios = range(config.residual_layers), range(len(config.ratios))

    def place(number: int, side: str, name: str, wrap: str) -> None:
        ours = f"{side[:3]}.{name}"
        if ".res." in name:
            for conv, inner in (("conv1", 1), ("conv2", 3)):
                modules[f"{ours}.{conv}"] = f"{side}.model.{number}.block.{inner}.conv.conv"
        else:
            modules[ours] = f"{side}.model.{number}.{wrap}.{wrap}"

    for side, resample, wrap in (("encoder", "down", "conv"), ("decoder", "up", "convtr")):
        order: list[str | None] = ["conv_in"]  # None: an activation
        for i in ratios:
            blocks = [f"block.{i}.res.{j}" for j in residuals]
            resampling = [None, f"block.{i}.{resample}"]
            order += [*blocks, *resampling] if side == "encoder" else [*resampling, *blocks]
        order += [None, "conv_out"]
        for number, name in enumerate(order):
            if name is not None:
                place(number, side, name, wrap if name.endswith(resample) else "conv")
    return modules
