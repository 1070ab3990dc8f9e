"""What the backbone made of contexts before, so that a voice that was heard is not taken in again.

A context of so many positions always leads to the same keys and values. A copy of them, once made, stands for all
those positions of a later prompt that begins alike, and changes no bit of what follows (with llama.cpp as far as its
own results repeat).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..backends.base import Backbone, SavedPrefix
    from ..text.prompt import Frames


class PrefixCache:
    """The contexts that a backbone took in last, as many as fit into ``limit`` bytes; 0 keeps none."""

    def __init__(self, backbone: Backbone, limit: int) -> None:
        self.limit = limit
        self.size = 0  # bytes
        self._too_long: float = float("inf")  # positions of the shortest context that was too large
        self._backbone = backbone
        self._kept: OrderedDict[bytes, SavedPrefix] = OrderedDict()  # by the context's frames; used last comes last

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forgets them all."""
        self._kept.clear()
        self.size = 0

    def recall(self, slot: int, context: Frames) -> int:
        """Puts a context that is known into an empty slot; how many positions it now holds: all, or none."""
        key = context.tobytes()
        saved = self._kept.get(key)
        if saved is None or not self._backbone.restore(slot, saved):
            return 0
        self._kept.move_to_end(key)
        return saved.count

    def keep(self, slot: int, context: Frames) -> None:
        """Copies a context that a slot begins with, in the place of those that have not been used for longest."""
        key = context.tobytes()
        if self.limit == 0 or key in self._kept or len(context) >= self._too_long:
            return
        try:
            saved = self._backbone.save(slot, len(context))
        except MemoryError:
            return
        if saved is None:
            return
        size = _size(key, saved)
        if size > self.limit:
            self._too_long = len(context)
            return
        while self.size + size > self.limit:
            self.size -= _size(*self._kept.popitem(last=False))
        self._kept[key] = saved
        self.size += size


def _size(key: bytes, saved: SavedPrefix) -> int:
    return len(key) + saved.data.nbytes
