"""Copies of the state, for peers that need more than the log still holds: sender and receiver.

A copy is one consistent view of the leader's environment, made and read in the background. It goes
out in parts on the ordinary peer connection, a few at a time and at a bounded rate; the receiver
says what it has, so a broken connection resumes there. The receiver opens the finished copy in the
background too, and adopts it at the boundary of a turn.

Invariant: whoever adopts foreign state keeps its own identity, term and vote.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from kvpb.raft_pb2 import PeerMessage, SnapshotChunk, SnapshotReply
from kvserver.clock import Clock
from kvserver.errors import SnapshotFailedError
from kvserver.raft.entry import NO_OP, Entry, MemberId
from kvserver.storage.contract import Copies, ReadTxn, StateCopy, Storage

CHUNK_BYTES: Final = 256 << 10
WINDOW_BYTES: Final = 1 << 20
"""Sent to one peer and not confirmed."""

RATE_BYTES_PER_S: Final = 32 << 20
"""To all peers together: the active has other work."""

SILENT_S: Final = 2.0
"""A part that is not confirmed for so long is sent again."""

COPY_KEPT_S: Final = 30.0
"""How long a copy that nobody takes is kept for one whose connection broke."""


@dataclass
class _Sending:
    """A copy on its way to one peer."""

    copy: int
    confirmed: int = 0
    sent: int = 0
    heard: float = 0.0


class SnapshotSender:
    """The leader's side."""

    def __init__(
        self,
        copies: Copies,
        clock: Clock,
        send: Callable[[MemberId, PeerMessage], None],
        on_event: Callable[..., None],
    ) -> None:
        self._copies = copies
        self._clock = clock
        self._send = send
        self._event = on_event
        self._sending: dict[MemberId, _Sending] = {}
        self._budget = 0.0
        self._looked = clock.monotonic()
        self._wanted_at = self._looked
        self._serving = False
        self.hold_index: int | None = None
        """Entries after this one are needed by whoever gets the copy; None without a copy."""

    @property
    def busy(self) -> bool:
        """True while somebody waits for a copy."""
        return self._serving

    def tick(
        self,
        term: int,
        behind: AbstractSet[MemberId],
        connected: AbstractSet[MemberId],
        *,
        visible_index: int,
    ) -> None:
        """Serve the peers that are behind the log; called in every turn of a leader.

        Args:
            term: of the leader.
            behind: peers that need a copy.
            connected: peers that can be sent one now; the others resume later.
            visible_index: newest entry whose effects a copy begun now is sure to hold.
        """
        now = self._clock.monotonic()
        elapsed, self._looked = now - self._looked, now
        self._budget = min(self._budget + elapsed * RATE_BYTES_PER_S, WINDOW_BYTES)
        for member in self._sending.keys() - behind:
            del self._sending[member]
        waiting = sorted(behind & connected)
        if not waiting:
            self._serving = False
            self._idle(now)
            return
        self._wanted_at = now
        self._serving = self._copies.begin_copy()
        if not self._serving:
            self.hold_index = None  # the log would grow for a copy that nobody can make
            return
        if self.hold_index is None:
            self.hold_index = visible_index  # a copy begun now holds at least this
        copy = self._copies.copy()
        if copy is None:
            return
        try:
            self._serve(waiting, copy, term, now)
        except SnapshotFailedError:
            self._copies.fail_copy()
            self.hold_index = None

    def _serve(self, members: list[MemberId], copy: StateCopy, term: int, now: float) -> None:
        for member in members:
            state = self._sending.get(member)
            if state is None or state.copy != copy.number:
                state = self._sending[member] = _Sending(copy.number, heard=now)
                self._event("snapshot.send", member=f"{member:x}", bytes=copy.total)
            if now - state.heard > SILENT_S:
                state.sent, state.heard = state.confirmed, now
                if state.confirmed == copy.total:
                    self._send_part(member, state, copy, term, b"")  # have you still got it?
            self._pump(member, state, copy, term)

    def _idle(self, now: float) -> None:
        if self.hold_index is not None and now - self._wanted_at > COPY_KEPT_S:
            self._event("snapshot.dropped", reason="nobody took it")
            self.stop()

    def stop(self) -> None:
        """Not leading any more, or nobody needs the copy."""
        self._sending.clear()
        self._serving = False
        if self.hold_index is not None:
            self.hold_index = None
            self._copies.end_copy()

    def _pump(self, member: MemberId, state: _Sending, copy: StateCopy, term: int) -> None:
        while (
            self._budget > 0
            and state.sent < copy.total
            and state.sent - state.confirmed < WINDOW_BYTES
        ):
            data = copy.read(state.sent, CHUNK_BYTES)
            self._send_part(member, state, copy, term, data)
            state.sent += len(data)
            self._budget -= len(data)

    def _send_part(
        self, member: MemberId, state: _Sending, copy: StateCopy, term: int, data: bytes
    ) -> None:
        chunk = SnapshotChunk(
            term=term, copy=copy.number, offset=state.sent, total=copy.total, data=data,
            digest=copy.digest,
        )  # fmt: skip
        self._send(member, PeerMessage(snapshot_chunk=chunk))

    def on_reply(self, member: MemberId, reply: SnapshotReply) -> None:
        """A peer says what it has."""
        state = self._sending.get(member)
        if state is None or state.copy != reply.copy:
            return
        state.heard = self._clock.monotonic()
        if reply.offset < state.confirmed:
            state.confirmed = state.sent = reply.offset  # it started over
        else:
            state.confirmed = min(reply.offset, state.sent)

    def connection_lost(self, member: MemberId) -> None:
        """What was on its way is lost."""
        state = self._sending.get(member)
        if state is not None:
            state.sent = state.confirmed


class SnapshotReceiver:
    """The side of a member that is behind."""

    def __init__(
        self,
        copies: Copies,
        applied_of: Callable[[ReadTxn], tuple[int, int]],
        on_event: Callable[..., None],
    ) -> None:
        """Receive.

        Args:
            copies: where parts are kept.
            applied_of: index and term of the newest entry whose effects a state holds.
            on_event: log.
        """
        self._copies = copies
        self._applied_of = applied_of
        self._event = on_event
        self._complete: int | None = None
        """Copy that was received as a whole and is being opened."""

    def on_chunk(self, chunk: SnapshotChunk) -> int:
        """Keep a part.

        Returns:
            The offset to go on from.
        """
        if self._copies.opening:  # its file is in the place where another one would arrive
            return int(chunk.total) if self._complete == chunk.copy else 0
        self._complete = None
        wanted = self._copies.receive(chunk.copy, chunk.offset, chunk.total, chunk.data)
        if chunk.offset == 0 and wanted:
            self._event("snapshot.receive", bytes=chunk.total)
        if wanted == chunk.total:
            self._complete = chunk.copy
            self._copies.begin_opening(chunk.digest)
        return wanted

    def take(self) -> tuple[Storage, Entry] | None:
        """A copy that is ready to be adopted, and index and term of its newest applied entry."""
        fresh = self._copies.opened() if self._complete is not None else None
        if fresh is None:
            return None
        self._complete = None
        with fresh.read() as txn:
            index, term = self._applied_of(txn)
        return fresh, Entry(NO_OP, index, term)

    def tick(self) -> None:
        """Called in every turn."""
        self._copies.forget_silent()

    @property
    def busy(self) -> bool:
        """True while a received copy is being opened."""
        return self._copies.opening
