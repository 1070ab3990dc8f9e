"""What each stage must read and compute at least, from the model's sizes and the types in its file.

Left out because they are small: activations, the depth decoder's key-value cache (some 4 MB a frame of
CSM-1B against 3.6 GB of weights) and the rows looked up in embedding tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.codec_schema import decoder_shapes

if TYPE_CHECKING:
    from ..model.bundle import Bundle

_KV_BYTES = 4  # of a cached key or value: f32
_BYTES_OF_FLOAT = 4


@dataclass(frozen=True)
class Cost:
    """A stage's work for one step of S streams: weights are read once for all, the rest for each.

    The weights are a working set of ``weights`` bytes, of which ``reads`` bytes are read in all (the codebook
    decoder's layers once a codebook); ``per_stream`` bytes (the key-value cache) and ``operations`` (a product
    and its addition count as two) are those of one stream.
    """

    weights: int
    reads: int
    per_stream: int
    operations: int
    arithmetic: str

    def bytes(self, streams: float) -> float:
        """Bytes read in a step of so many streams, on average."""
        return self.reads + streams * self.per_stream


def backbone_cost(bundle: Bundle, position: int) -> Cost:
    """A frame of the backbone that looks back at ``position`` positions."""
    tower = bundle.config.backbone
    weights, parameters = _backbone_weights(bundle)
    kept = tower.layers * tower.kv_heads * tower.head_dim * 2 * position
    attention = tower.layers * tower.heads * tower.head_dim * 2 * position  # products with keys and with values
    return Cost(weights, weights, kept * _KV_BYTES, 2 * (parameters + attention), _arithmetic(bundle))


def prompt_cost(bundle: Bundle, positions: int, streams: int, chunk: int, batch: int) -> Cost:
    """Each stream's prompt of that many positions; a read of the weights serves at most ``batch`` positions,
    ``chunk`` of them of one stream."""
    tower = bundle.config.backbone
    weights, parameters = _backbone_weights(bundle)
    attention = tower.layers * tower.heads * tower.head_dim * positions  # on average half of them, twice
    operations = 2 * positions * (parameters + attention)
    passes = max(math.ceil(positions / chunk), math.ceil(positions * streams / batch))
    return Cost(weights, passes * weights, 0, operations, _arithmetic(bundle))


def decoder_cost(bundle: Bundle) -> Cost:
    """A frame of the depth decoder: its layers and the projection K - 1 times, each head once."""
    config = bundle.config
    layers = [t for name, t in bundle.decoder_tensors().items() if not name.startswith("token_embd")]
    towers = sum(t.data.nbytes for t in layers)
    projection, heads = bundle.tensor("projection"), bundle.tensor("heads")
    steps = config.codebooks - 1
    repeated = towers + projection.data.nbytes
    parameters = sum(math.prod(t.shape) for t in layers) + math.prod(projection.shape)
    # The first of the steps holds two positions: the hidden state and the first code.
    operations = 2 * (parameters * config.codebooks + math.prod(heads.shape))
    weights = repeated + heads.data.nbytes
    return Cost(weights, steps * repeated + heads.data.nbytes, 0, operations, _arithmetic(bundle))


def codec_cost(bundle: Bundle) -> Cost:
    """A frame through the codec's decoder; of the codebooks, one row each."""
    config = bundle.config.codec
    tensors = bundle.codec_tensors()
    steps = config.resample_stride
    weights, operations, length = 0, 0, steps
    for name, shape in decoder_shapes(config).items():
        if name.startswith("rvq.codebook"):
            continue
        weights += tensors[name].data.nbytes
        if len(shape) < 2:
            continue
        if name.startswith(("rvq", "upsample")):
            operations += 2 * math.prod(shape)
        else:
            operations += 2 * math.prod(shape) * length
        if ".up." in name:  # a transposed convolution: every input meets every weight, then there are more
            length *= config.ratios[int(name.split(".")[2])]
    # The keys and values that the transformer looks back at.
    kept = config.layers * config.kv_heads * config.head_dim * 2 * config.context
    return Cost(weights, weights, kept * _BYTES_OF_FLOAT, operations + 2 * kept * steps, "f32")


def _backbone_weights(bundle: Bundle) -> tuple[int, int]:
    """Bytes and number of the weights that a pass of the backbone reads."""
    read = [t for name, t in bundle.backbone_tensors().items() if not name.startswith("token_embd")]
    return sum(t.data.nbytes for t in read), sum(math.prod(t.shape) for t in read)


def _arithmetic(bundle: Bundle) -> str:
    """What the towers compute in: bytes for quantised weights, float32 for the rest (F32, F16, BF16)."""
    floats = {0, 1, 30}
    layers = [t for n, t in bundle.decoder_tensors().items() if n.startswith("blk.") and len(t.shape) == 2]
    return "f32" if all(t.type in floats for t in layers) else "int8"
