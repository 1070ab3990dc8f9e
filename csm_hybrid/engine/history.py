"""What a chunk of a speech continues from: as much of what was said before as the model has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..text.prompt import NO_ENTRY

if TYPE_CHECKING:
    from ..text.prompt import Frames
    from .request import Request
    from .sequence import Sequence


@dataclass(frozen=True)
class Continuation:
    """A prompt (T, K + 1) whose rows from ``text_start`` on are the request's own text.

    ``unbroken``: it begins with all that the sequence before was fed and has said, row for row.
    """

    prompt: Frames
    text_start: int
    unbroken: bool = False


def spoken_frames(sequence: Sequence, end_code: int) -> Frames:
    """All of a sequence as context for what follows: its prompt, its codes, and the frame that ends them."""
    width = sequence.prompt.shape[1]
    codes = np.array(sequence.codes, dtype=np.int32).reshape(-1, width - 1)
    spoken = np.full((len(codes) + 1, width), NO_ENTRY, dtype=np.int32)
    spoken[:-1, :-1] = codes
    spoken[-1, :-1] = end_code
    return np.concatenate([sequence.prompt, spoken])


def continuation(request: Request, previous: Sequence | None, *, positions: int, end_code: int) -> Continuation:
    """The prompt of a request that continues ``previous``, for a model of so many positions.

    In front of its text comes all that was said before, as far as ``request.history`` and the positions reach, else
    the voice's context and the last chunk alone, else the context.
    """
    context, text = request.prompt[: request.context], request.prompt[request.context :]
    if previous is None:
        return Continuation(request.prompt, request.context)
    room = min(positions - request.max_frames - len(text), request.context + request.history)
    if previous.frames:
        everything = spoken_frames(previous, end_code)
        last_chunk = np.concatenate([context, everything[previous.text_start :]])
    else:  # it said nothing: what it went on from is what was said last
        everything = last_chunk = previous.prompt[: previous.text_start]
    history = next((h for h in (everything, last_chunk) if len(h) <= room), context)
    unbroken = previous.frames > 0 and len(everything) <= room
    return Continuation(np.concatenate([history, text]), len(history), unbroken)
