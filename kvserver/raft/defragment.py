"""Defragmenting a node's state while it serves: a compact copy catches up, then takes its place.

The file of the state never shrinks by itself; only a copy is as small as what it holds. It is made
by a thread at the disk's speed. What was applied meanwhile is applied to it as well, from the log,
some entries in each turn. Once it has all, at the boundary of a turn, it takes the place of the old
file: nothing that was applied is missing, nothing is seen twice, readers of the old one finish.

Invariant: what takes the place holds exactly the effects of the entries applied here. It is the
state machine itself that applies them, to rows that were its own.

A disk that fails the copy, a full one for example, ends only this: the node's own state is sound.
"""

from collections.abc import Callable
from typing import Final

from kvpb.raft_pb2 import Identity
from kvserver.errors import DefragmentFailedError, DiskError
from kvserver.raft.entry import REGULAR
from kvserver.raft.identity import store_identity
from kvserver.raft.journal import (
    DurableJournal,
    SafetyError,
    load_configuration,
    store_configuration,
)
from kvserver.raft.membership import configuration_of, is_membership
from kvserver.raft.ports import Shadow
from kvserver.storage.contract import Copies, Storage

SLICE_ENTRIES: Final = 8
SLICE_BYTES: Final = 256 << 10
"""Applied to the copy in one turn, and then committed to it; but two entries at least: since a turn
of a busy active adds one, the copy comes nearer with each."""


Done = Callable[[bool], None]
"""Told how it ended: False if everything is as before."""


class Defragmenter:
    """At most one copy at a time; whoever asks meanwhile waits for the same."""

    def __init__(
        self,
        copies: Copies,
        shadow: Callable[[Storage], Shadow],
        on_event: Callable[..., None],
    ) -> None:
        """Do nothing before `begin`.

        Args:
            copies: makes the copy.
            shadow: a state machine for it.
            on_event: log.
        """
        self._copies = copies
        self._shadow_of = shadow
        self._event = on_event
        self._waiting: list[Done] = []
        self._fresh: Storage | None = None
        self._shadow: Shadow | None = None
        self._unwanted = False
        """A copy is being made that nobody waits for any more."""
        self.hold_index: int | None = None
        """Entries after this one are needed; None while nothing is done."""

    @property
    def busy(self) -> bool:
        """True while a copy is made or catches up."""
        return self.hold_index is not None

    @property
    def catching_up(self) -> bool:
        """True while every turn brings the copy nearer."""
        return self._shadow is not None

    def begin(self, done: Done, visible_index: int) -> None:
        """Make a copy of the newest commit, which holds at least what is visible."""
        self._waiting.append(done)
        if not self.busy:
            self.hold_index = visible_index
            if not self._unwanted:
                self._copies.begin_compacting()

    def step(self, journal: DurableJournal, applied_index: int, identity: Identity) -> bool:
        """Go on a little; called at the boundary of every turn.

        Args:
            journal: of the node; the copy is brought forward by its entries.
            applied_index: newest entry whose effects the node's own state holds.
            identity: of the node; the copy gets it with the last effects.

        Returns:
            True when the copy holds exactly that: it may take the place now.
        """
        if self._shadow is None and not self._look():
            return False
        try:
            return self._go_on(journal, applied_index, identity)
        except DiskError as error:
            self.give_up(str(error))
            return False

    def _go_on(self, journal: DurableJournal, applied_index: int, identity: Identity) -> bool:
        assert self._shadow is not None
        assert self._fresh is not None
        self._catch_up(self._fresh, self._shadow, journal, applied_index)
        if self._shadow.applied_index < applied_index:
            self._fresh.commit()
            return False
        if load_configuration(self._fresh.writer()) != journal.possible_configurations[0]:
            raise SafetyError("a defragmented state would forget who the members are")
        store_identity(self._fresh, identity)
        return True

    def take_place(self) -> bool:
        """Let the copy be the node's storage; False if everything is as before.

        So it is when it was given up since `step`: the commit in between may find the log too long.

        Raises:
            DiskError: it is not known which of the two is durable.
        """
        if self._fresh is None:
            return False
        try:
            self._copies.replace(self._fresh)
        except DefragmentFailedError as error:
            self.give_up(str(error))
            return False
        return True

    def _look(self) -> bool:
        """Whether the copy is there now."""
        if not (self.busy or self._unwanted):
            return False
        fresh = self._copies.compacted()
        if self._unwanted:
            self._forget(fresh)
            return False
        if fresh is not None:
            self._fresh, self._shadow = fresh, self._shadow_of(fresh)
            return True
        if not self._copies.compacting:
            self._end(done=False)
        return False

    def _forget(self, fresh: Storage | None) -> None:
        if fresh is not None:
            self._copies.reject(fresh)
        if fresh is not None or not self._copies.compacting:
            self._unwanted = False
            if self.busy:  # somebody has asked again
                self._copies.begin_compacting()

    def _catch_up(
        self, fresh: Storage, shadow: Shadow, journal: DurableJournal, applied_index: int
    ) -> None:
        first, size = shadow.applied_index + 1, 0
        assert first >= journal.first_index, "what the copy needs was dropped"
        for index in range(first, min(applied_index, first + SLICE_ENTRIES - 1) + 1):
            entry = journal.entry(index)
            regular = entry.payload[:1] == REGULAR
            shadow.apply(index, entry.term, entry.payload[1:] if regular else None)
            if is_membership(entry):
                store_configuration(fresh.writer(), configuration_of(index, entry.payload))
            size += len(entry.payload)
            if size > SLICE_BYTES and index > first:
                break
        shadow.stage()

    def replaced(self) -> None:
        """The copy has taken the place."""
        self._end(done=True)

    def give_up(self, reason: str) -> None:
        """Everything stays as it is."""
        if self.busy:
            self._event("defragment.failed", reason=reason)
            if self._fresh is not None:
                self._copies.reject(self._fresh)
            else:
                self._unwanted = True
            self._end(done=False)

    def _end(self, *, done: bool) -> None:
        self._fresh = self._shadow = self.hold_index = None
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            told(done)
