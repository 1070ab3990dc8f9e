"""The backbone on llama.cpp, which may put it on a GPU: a sequence for each slot, in one context."""

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

    ``slots`` is how many independent streams one context holds. Quantised weights keep keys and values in
    f16; unquantised ones in f32, which halves the error of the hidden states.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        config: ModelConfig,
        *,
        threads: int,
        slots: int = 1,
        gpu_layers: int = -1,
    ) -> None:
        self.width = config.backbone.width
        self.vocab = config.audio_vocab
        self.slots = slots
        self.positions = config.backbone.positions
        self._tower = Tower(
            path,
            offset,
            what="backbone",
            sequences=slots,
            positions=self.positions,
            batch=_BATCH,
            threads=threads,
            gpu_layers=gpu_layers,
        )

    def decode(
        self, embeddings: Float32, positions: Int32, slots: Int32, outputs: NDArray[np.bool_]
    ) -> tuple[Float32, Float32]:
        """See ``base.Backbone``. Raises EngineError when llama.cpp fails; the slots that took part are
        then undefined and must be forgotten.
        """
        hidden, logits = [], []
        for start in range(0, len(embeddings), _BATCH):
            part = slice(start, start + _BATCH)
            self._tower.decode(embeddings[part], positions[part], slots[part], outputs[part])
            wanted = np.flatnonzero(outputs[part])
            hidden.append(self._tower.hidden_states(wanted, self.width))
            logits.append(self._tower.logits(wanted, self.vocab))
        return np.concatenate(hidden), np.concatenate(logits)

    def forget(self, slot: int) -> None:
        """See ``base.Backbone``."""
        self._tower.forget(slot)

    def save(self, slot: int, count: int) -> SavedPrefix | None:
        """See ``base.Backbone``. It copies all that the slot holds; ``restore`` drops what is too much."""
        state = self._tower.state(slot)
        return None if state is None else SavedPrefix(count, state)

    def restore(self, slot: int, saved: SavedPrefix) -> bool:
        """See ``base.Backbone``."""
        return self._tower.set_state(slot, saved.data, saved.count)

    def close(self) -> None:
        """See ``base.Backbone``."""
        self._tower.close()
