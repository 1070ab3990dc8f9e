"""The depth decoder's tower on llama.cpp, which may put it on a GPU; its tables and heads in this
project's C++.

It runs the ``decoder.gguf`` that the native decoder reads as well, straight from the model file.
"""

from __future__ import annotations

import numpy as np

from .. import _native
from ..errors import EngineError
from ..model.bundle import Bundle, TensorView
from .base import Float32, Int32
from .llama_tower import Tower

_MAX_SEQUENCES = 256  # of one llama.cpp context (LLAMA_MAX_SEQ)


class LlamaDepthDecoder:
    """A second llama.cpp context, one sequence a stream, emptied at every frame."""

    def __init__(self, bundle: Bundle, pool: _native.ThreadPool, *, slots: int, gpu_layers: int = -1) -> None:
        """Map the tower and pack the tables.

        Raises EngineError for more streams than llama.cpp's sequences, ModelInvalid where llama.cpp refuses
        the tower.
        """
        if slots > _MAX_SEQUENCES:
            raise EngineError(f"llama.cpp runs at most {_MAX_SEQUENCES} streams at once, not {slots}")
        config = bundle.config
        self._codebooks, self._vocab = config.codebooks, config.audio_vocab
        self._width, self._slots = config.decoder.width, slots
        table = bundle.tensor("audio_embd")
        rows, cols = table.shape
        self._embeddings = _native.EmbeddingTable(data=table.data, type=table.type, rows=rows, cols=cols)
        self._projection = _linear(bundle.tensor("projection"), pool)
        self._heads = [_linear(head, pool) for head in _heads(bundle.tensor("heads"))]
        offset, _ = bundle.embedded("decoder.gguf")
        self._tower = Tower(
            bundle.path,
            offset,
            what="depth decoder",
            sequences=slots,
            positions=self._codebooks,
            batch=max(2 * slots, self._codebooks),
            threads=pool.threads,
            gpu_layers=gpu_layers,
            exact_cache=True,  # so few positions cost nothing
        )

    def close(self) -> None:
        """See :class:`.base.DepthDecoder`."""
        self._tower.close()

    def decode_frames(self, *, hidden: Float32, c0_logits: Float32, samplers: list[_native.Sampler]) -> Int32:
        """See :class:`.base.DepthDecoder`; at most ``slots`` streams."""
        streams = len(hidden)
        self._check(streams, samplers)
        codes = np.zeros((streams, self._codebooks), np.int32)
        if streams == 0:
            return codes
        self._tower.forget_all()
        codes[:, 0] = [s.sample(row, codebook=0) for s, row in zip(samplers, c0_logits, strict=True)]
        # The hidden state and code 0 go in together; every later code alone. The last code is never fed.
        inputs = np.stack([self._projection.multiply(hidden), self._embedded(codes, 0)], axis=1)
        position = 0
        for codebook in range(1, self._codebooks):
            states = self._run(inputs, position)[:, -1]
            logits = self._heads[codebook - 1].multiply(np.ascontiguousarray(states))
            codes[:, codebook] = [s.sample(row, codebook=codebook) for s, row in zip(samplers, logits, strict=True)]
            if codebook + 1 < self._codebooks:
                position = codebook + 1
                inputs = self._embedded(codes, codebook)[:, None]
        return codes

    def logits(self, *, hidden: Float32, codes: Int32) -> Float32:
        """See :class:`.base.DepthDecoder`; one stream after the other."""
        if codes.size and not (codes.min() >= 0 and codes.max() < self._vocab):
            raise ValueError(f"codes must be in 0..{self._vocab - 1}")
        out = np.zeros((len(hidden), self._codebooks - 1, self._vocab), np.float32)
        projected = self._projection.multiply(hidden)
        embedded = [self._embedded(codes, k) for k in range(self._codebooks - 1)]
        for b in range(len(hidden)):
            self._tower.forget_all()
            inputs = np.stack([projected[b], *(rows[b] for rows in embedded)])[None]
            states = self._run(inputs, 0)[0]
            for k, head in enumerate(self._heads):
                out[b, k] = head.multiply(states[k + 1 : k + 2])[0]
        return out

    def _check(self, streams: int, samplers: list[_native.Sampler]) -> None:
        if streams > self._slots:
            raise EngineError(f"the decoder was opened for {self._slots} streams at once, not {streams}")
        if len(samplers) != streams:
            raise ValueError(f"samplers must be one for each of the {streams} streams, not {len(samplers)}")

    def _embedded(self, codes: Int32, codebook: int) -> Float32:
        """The projected embeddings (B, width) of one code of each stream."""
        ids = codes[:, codebook].astype(np.int64) + codebook * self._vocab
        return self._projection.multiply(self._embeddings.sum_rows(ids[:, None]))

    def _run(self, inputs: Float32, position: int) -> Float32:
        """The tower on inputs (B, T, width) at ``position`` and after; the states after the final norm, the
        same shape."""
        streams, steps, _ = inputs.shape
        positions = np.tile(np.arange(position, position + steps, dtype=np.int32), streams)
        sequences = np.repeat(np.arange(streams, dtype=np.int32), steps)
        flat = inputs.reshape(streams * steps, self._width)
        self._tower.decode(flat, positions, sequences, np.ones(len(flat), np.bool_))
        return self._tower.hidden_states(np.arange(len(flat)), self._width).reshape(inputs.shape)


def _linear(tensor: TensorView, pool: _native.ThreadPool) -> _native.Linear:
    rows, cols = tensor.shape
    return _native.Linear(data=tensor.data, type=tensor.type, rows=rows, cols=cols, pool=pool)


def _heads(tensor: TensorView) -> list[TensorView]:
    """The matrices (V, width) of a (K - 1, V, width) tensor."""
    count, *shape = tensor.shape
    return [
        TensorView(f"{tensor.name}.{i}", tensor.type, tuple(shape), data)
        for i, data in enumerate(np.split(tensor.data, count))
    ]
