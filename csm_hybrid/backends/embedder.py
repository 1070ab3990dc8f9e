"""The embedding tables: frames to the backbone's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..text.prompt import NO_ENTRY

if TYPE_CHECKING:
    from ..model.bundle import Bundle
    from ..text.prompt import Frames


class FrameEmbedder:
    """The embedding tables: frames (T, K + 1) to the backbone's input (T, d_b) float32."""

    def __init__(self, bundle: Bundle) -> None:
        config = bundle.config
        self._codebooks = config.codebooks
        self._text = _table(bundle, "text_embd")
        self._audio = _table(bundle, "audio_embd")
        self._offsets = np.arange(config.codebooks, dtype=np.int64) * config.audio_vocab
        self._width = config.backbone.width

    def codes(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """The sum over all codebooks of codes (N, K): (N, d_b)."""
        return self._audio.sum_rows(ids=codes.astype(np.int64) + self._offsets)

    def frames(self, frames: Frames) -> NDArray[np.float32]:
        """Text positions get their token's row, audio positions the sum over their codes: (T, d_b)."""
        out = np.empty((len(frames), self._width), dtype=np.float32)
        is_text = frames[:, -1] != NO_ENTRY
        if is_text.any():
            out[is_text] = self._text.sum_rows(ids=frames[is_text, -1:].astype(np.int64))
        if not is_text.all():
            out[~is_text] = self.codes(frames[~is_text, : self._codebooks])
        return out


def _table(bundle: Bundle, name: str) -> _native.EmbeddingTable:
    tensor = bundle.tensor(name)
    rows, cols = tensor.shape
    return _native.EmbeddingTable(data=tensor.data, type=tensor.type, rows=rows, cols=cols)
