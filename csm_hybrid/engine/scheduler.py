"""Who gets a slot, and whose prompt is taken in.

A free slot goes to whoever would miss it most: first to a speech that goes on and whose listener is about to run
dry, then to those that have not begun, in order of arrival, then to a speech that is well ahead of its listener.
Between two chunks of a speech its slot is kept by the same rule, so a long speech never breaks off for a new one,
nor does it hold a slot that it can do without. While others speak, a step takes in PREFILL_CHUNK positions of
prompts at most: that is the longest that those who join can hold up a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .sequence import Sequence

# Prompt positions of one sequence that a step takes in, and of all sequences together while others are speaking: few
# enough that the step stays near its usual length, many enough that weights read once serve a good number of
# positions. It also stays below the 64 rows from which on llama.cpp's flash attention adds up in another order, so
# that with it, too, a prompt gives the same bits however company cuts it.
PREFILL_CHUNK = 32

# Prompt positions of one step, of all sequences together, while nobody is speaking: bounds how long a step takes,
# and with it how soon a new request or a cancellation is seen.
PREFILL_ALONE = 256

# Seconds of sound that a listener still has to hear when the next chunk of the speech should get a slot: time enough
# for a slot to become free and for the context to be taken in again.
LEAD_SECONDS = 5.0


@dataclass(frozen=True)
class PromptPart:
    """Positions ``begin`` to ``end`` of a sequence's prompt, to be taken in by the next pass."""

    sequence: Sequence
    begin: int
    end: int


class Scheduler:
    """The sequences that hold one of ``slots`` slots, those that wait for one, and the order among them."""

    def __init__(self, slots: int, clock: Callable[[], float]) -> None:
        self.slots = slots
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._clock = clock

    @property
    def free_slots(self) -> list[int]:
        """The free slots; counted anew, so that an interruption at any place loses none."""
        held = {sequence.slot for sequence in self.running}
        return [slot for slot in range(self.slots) if slot not in held]

    def admit(self) -> Iterator[tuple[Sequence, int]]:
        """Those whose turn for a free slot it is, and the slot, which ``seat`` gives to them."""
        while self.waiting and (free := self.free_slots):
            sequence = min(self.waiting, key=self.urgency)
            self.waiting.remove(sequence)
            yield sequence, free[0]

    def seat(self, sequence: Sequence, slot: int) -> None:
        """Gives a sequence a slot."""
        sequence.slot = slot
        self.running.append(sequence)

    def remove(self, sequence: Sequence) -> int | None:
        """Takes a sequence out; returns the slot that it held, if any."""
        slot, sequence.slot = sequence.slot, None
        if slot is not None:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        return slot

    def outranked(self, sequence: Sequence) -> bool:
        """Whether one that waits would miss a slot more."""
        urgency = self.urgency(sequence)
        return any(self.urgency(other) < urgency for other in self.waiting)

    def urgency(self, sequence: Sequence) -> tuple[int, float]:
        """The order in which sequences get slots, lowest first; see the top of the module."""
        if sequence.dry_at is None:
            return 1, sequence.arrival
        ahead = sequence.dry_at - self._clock()
        return (0 if ahead < LEAD_SECONDS else 2), sequence.dry_at

    def prompt_parts(self) -> list[PromptPart]:
        """What of the prompts the next pass takes in.

        Speeches that go on come first; then the shortest prompt, so that a long context does not keep others from
        beginning. Its turn comes, since those that pass it soon speak and need no more of the budget.
        """
        taking_in = [s for s in self.running if s.next_input is None]
        taking_in.sort(key=lambda s: (s.dry_at is None, len(s.prompt) - s.position))
        budget = PREFILL_ALONE if len(taking_in) == len(self.running) else PREFILL_CHUNK
        parts = []
        for sequence in taking_in:
            if budget == 0:
                break
            end = min(len(sequence.prompt), sequence.position + min(budget, PREFILL_CHUNK))
            if sequence.position < sequence.request.context < end:
                end = sequence.request.context  # what follows is cut alike where the context was kept
            budget -= end - sequence.position
            parts.append(PromptPart(sequence, sequence.position, end))
        return parts
