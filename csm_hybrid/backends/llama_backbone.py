"""The backbone on llama.cpp, which may put it on a GPU: several sequences in one context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .base import Float32, Int32, SavedPrefix
from .llama_tower import Tower

if TYPE_CHECKING:
    from ..model.config import ModelConfig

_BATCH = 512  # the most positions of one pass; longer inputs are split


class LlamaBackbone:
    """The Llama tower that looks at all positions, run by llama.cpp; see ``base.Backbone``.

    ``sequences`` is how many independent streams one context holds. Quantised weights keep keys and values in
    f16; unquantised ones in f32, which halves the error of the hidden states.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        config: ModelConfig,
        *,
        threads: int,
        sequences: int = 1,
        gpu_layers: int = -1,
    ) -> None:
        self.width = config.backbone.width
        self.vocab = config.audio_vocab
        self.sequences = sequences
        self.positions = config.backbone.positions
        self._tower = Tower(
            path,
            offset,
            what="backbone",
            sequences=sequences,
            positions=self.positions,
            batch=_BATCH,
            threads=threads,
            gpu_layers=gpu_layers,
        )

    def decode(
        self, embeddings: Float32, positions: Int32, sequences: Int32, outputs: NDArray[np.bool_]
    ) -> tuple[Float32, Float32]:
        """See ``base.Backbone``. Raises EngineError when llama.cpp fails; the sequences that took part are
        then undefined and must be forgotten.
        """
        hidden, logits = [], []
        for start in range(0, len(embeddings), _BATCH):
            part = slice(start, start + _BATCH)
            self._tower.decode(embeddings[part], positions[part], sequences[part], outputs[part])
            wanted = np.flatnonzero(outputs[part])
            hidden.append(self._tower.hidden_states(wanted, self.width))
            logits.append(self._tower.logits(wanted, self.vocab))
        return np.concatenate(hidden), np.concatenate(logits)

    def forget(self, sequence: int) -> None:
        """See ``base.Backbone``."""
        self._tower.forget(sequence)

    def save(self, sequence: int, count: int) -> SavedPrefix | None:
        """See ``base.Backbone``. It copies all that the sequence holds; ``restore`` drops what is too much."""
        state = self._tower.state(sequence)
        return None if state is None else SavedPrefix(count, state)

    def restore(self, sequence: int, saved: SavedPrefix) -> bool:
        """See ``base.Backbone``."""
        return self._tower.set_state(sequence, saved.data, saved.count)

    def close(self) -> None:
        """See ``base.Backbone``."""
        self._tower.close()
