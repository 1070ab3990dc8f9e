"""The depth decoder in slow float64 NumPy, from the equations of SesameAILabs/csm (models.py), apart from
the code it judges."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from csm_hybrid.model.bundle import TensorView
from csm_hybrid.model.config import ModelConfig

from .tower import ReferenceTower


class ReferenceDecoder:
    """Logits of one frame; ``round_activations`` as for the tower."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, TensorView], *, round_activations: bool = False
    ) -> None:
        self.config = config
        self.tower = ReferenceTower(config.decoder, tensors, round_activations=round_activations)

    def logits(self, hidden: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Teacher-forced: hidden (d_b,), codes (K,); returns (K - 1, V) float64."""
        tower = self.tower
        tower.forget()
        tower.step(tower.product("projection", hidden.astype(np.float64)))
        out = []
        for codebook in range(self.config.codebooks - 1):
            row = codes[codebook] + codebook * self.config.audio_vocab
            last = tower.step(tower.product("projection", tower.t["audio_embd"][row]))
            out.append(tower.apply(tower.t["heads"][codebook], "heads", last))
        return np.array(out)
