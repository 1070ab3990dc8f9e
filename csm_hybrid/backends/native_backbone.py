"""The backbone in C++ (csrc/backbone.h), for CPUs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import EngineError, ModelInvalid
from ..model.bundle import Bundle, TensorView
from ..model.config import ModelConfig
from .base import Float32, Int32, SavedPrefix
from .towers import release_pages, rope_divisors, tower_sizes


class NativeBackbone:
    """The backbone on packed weights, keys and values in float32; see :class:`.base.Backbone`."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, TensorView], pool: _native.ThreadPool, *, slots: int = 1
    ) -> None:
        """Pack the weights: the tower's and ``output.weight``, by llama.cpp's names. They may be dropped afterwards.

        Raises ModelInvalid that lists everything missing or misshapen, EngineError where memory does not suffice.
        """
        self.width = config.backbone.width
        self.vocab = config.audio_vocab
        self.slots = slots
        self.positions = config.backbone.positions
        named = {"rope_freqs.weight": rope_divisors(config.backbone)} | dict(tensors)
        try:
            self._backbone: _native.Backbone | None = _native.Backbone(
                config=tower_sizes(config.backbone), vocab=self.vocab, slots=slots, tensors=named, pool=pool
            )
        except ValueError as error:
            raise ModelInvalid(f"{config.name}: {error}") from error
        except MemoryError as error:
            raise EngineError(
                f"not enough memory for the backbone with {slots} streams of {self.positions} positions;"
                " use fewer slots or a smaller type of weights"
            ) from error

    @classmethod
    def from_bundle(cls, bundle: Bundle, pool: _native.ThreadPool, *, slots: int = 1) -> NativeBackbone:
        """Pack a model file's backbone, then let go of the pages of the file that were read for it."""
        tensors = bundle.backbone_tensors()
        backbone = cls(bundle.config, tensors, pool, slots=slots)
        release_pages(tensor.data for tensor in tensors.values())
        return backbone

    @property
    def _open(self) -> _native.Backbone:
        if self._backbone is None:
            raise EngineError("the backbone is closed")
        return self._backbone

    def measure(self, *, on: bool) -> None:
        """Measure the parts of ``decode`` from now on, anew, or stop; only of passes whose results are all wanted,
        which speak a frame each: those that take in prompts do not count.
        """
        self._open.measure(on=on)

    def parts(self) -> dict[str, float]:
        """Seconds spent in attention, feed_forward and head since ``measure``, and in ``barriers``: a thread's mean
        wait for the last one."""
        return self._open.parts()

    def decode(
        self, embeddings: Float32, positions: Int32, slots: Int32, outputs: NDArray[np.bool_]
    ) -> tuple[Float32, Float32]:
        """See :class:`.base.Backbone`. A result does not depend, in any bit, on what else is in the pass, on how a
        slot is cut into passes, or on the number of threads; after an error nothing has changed.
        """
        try:
            return self._open.decode(
                embeddings=np.ascontiguousarray(embeddings, dtype=np.float32),
                positions=np.ascontiguousarray(positions, dtype=np.int32),
                slots=np.ascontiguousarray(slots, dtype=np.int32),
                outputs=np.ascontiguousarray(outputs, dtype=np.bool_),
            )
        except ValueError as error:
            raise EngineError(f"the backbone: {error}") from error

    def forget(self, slot: int) -> None:
        """See :class:`.base.Backbone`."""
        if self._backbone is not None:  # a stream may be closed after its model
            self._backbone.forget(slot)

    def save(self, slot: int, count: int) -> SavedPrefix:
        """See :class:`.base.Backbone`. Raises EngineError for positions that the slot does not hold."""
        try:
            return SavedPrefix(count, self._open.save(slot=slot, count=count))
        except ValueError as error:
            raise EngineError(f"the backbone: {error}") from error

    def restore(self, slot: int, saved: SavedPrefix) -> bool:
        """See :class:`.base.Backbone`. What follows is the same in every bit as if the positions had been fed.

        Raises EngineError for a slot that is not empty, and for a copy of a backbone of other sizes.
        """
        try:
            self._open.restore(slot=slot, count=saved.count, saved=saved.data)
        except ValueError as error:
            raise EngineError(f"the backbone: {error}") from error
        return True

    def close(self) -> None:
        """See :class:`.base.Backbone`."""
        self._backbone = None
