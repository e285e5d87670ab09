"""A key-value store as plain dicts: what a node that was damaged must still answer, or else end.

Each method changes the truth and returns the command that makes the same change in a store.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.mvcc.keyvalue import Row
from kvserver.mvcc.leases import LeaseRow, promised_ms

LARGE_PART: Final = 0.01
"""Of values that LMDB keeps on pages of their own."""


class Event(NamedTuple):
    """One key changed in one revision; without a row it was deleted."""

    revision: int
    sub: int
    key: bytes
    row: Row | None


class Answered(NamedTuple):
    """A numbered write, and the revision that its client was told."""

    command: Command
    revision: int


@dataclass
class Truth:
    """What is true after all commands that were asked for."""

    rng: Random
    rows: dict[bytes, Row] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    """Keys that were there once and are not now."""
    events: list[Event] = field(default_factory=list)
    moments: dict[int, dict[bytes, Row]] = field(default_factory=dict)
    """All rows as of some revisions that can still be read."""
    leases: dict[int, LeaseRow] = field(default_factory=dict)
    answered: dict[int, dict[int, Answered]] = field(default_factory=dict)
    """Of each session, by number."""
    revision: int = 1
    compacted: int = -1
    log_time_ms: int = 0

    def value(self) -> bytes:
        large = self.rng.random() < LARGE_PART
        return self.rng.randbytes(
            self.rng.randint(3000, 9000) if large else self.rng.randint(0, 60)
        )

    def put(self, key: bytes, lease: int = 0) -> Command:
        self.revision += 1
        value = self.value()
        self._put(key, value, lease, 0)
        return Command(put=PutRequest(key=key, value=value, lease=lease))

    def _put(self, key: bytes, value: bytes, lease: int, sub: int) -> None:
        old = self.rows.get(key)
        create, version = (self.revision, 1) if old is None else (old[0], old[2] + 1)
        row = self.rows[key] = Row(create, self.revision, version, lease, value)
        self.gone.discard(key)
        self.events.append(Event(self.revision, sub, key, row))

    def delete(self, *keys: bytes) -> Command:
        """Delete a run of neighbours, all of which are there."""
        self.revision += 1
        end = keys[-1] + b"\0" if len(keys) > 1 else b""
        for sub, key in enumerate(keys):
            del self.rows[key]
            self.gone.add(key)
            self.events.append(Event(self.revision, sub, key, None))
        return Command(delete_range=DeleteRangeRequest(key=keys[0], range_end=end))

    def txn(self, *keys: bytes) -> Command:
        """Put several keys in one revision."""
        self.revision += 1
        ops = []
        for sub, key in enumerate(keys):
            value = self.value()
            self._put(key, value, 0, sub)
            ops.append(RequestOp(request_put=PutRequest(key=key, value=value)))
        return Command(txn=TxnRequest(success=ops))

    def grant(self, lease: int, ttl_s: int, *, session: bool = False) -> Command:
        self.leases[lease] = LeaseRow(ttl_s, promised_ms(ttl_s, self.log_time_ms))
        request = LeaseGrantRequest(ID=lease, TTL=ttl_s)
        if not session:
            return Command(lease_grant=request)
        self.answered[lease] = {}
        return Command(open_session=request)

    def numbered(self, session: int, key: bytes) -> Command:
        """Put a key with the next number of a session."""
        command = self.put(key)
        answered = self.answered[session]
        command.session, command.sequence = session, len(answered) + 1
        answered[command.sequence] = Answered(command, self.revision)
        return command

    def compact(self, revision: int) -> Command:
        self.compacted = revision
        self.moments = {at: rows for at, rows in self.moments.items() if at >= revision}
        return Command(compact=CompactionRequest(revision=revision))

    def remember(self) -> None:
        """Keep all rows of this moment, to ask for them later."""
        self.moments[self.revision] = dict(self.rows)

    def keys_of(self, lease: int) -> list[bytes]:
        return sorted(key for key, row in self.rows.items() if row.lease == lease)

    def any_key(self) -> bytes:
        return self.rng.choice(self._sorted())

    def neighbours(self, count: int) -> list[bytes]:
        """Some keys that follow one another."""
        keys = self._sorted()
        at = self.rng.randrange(len(keys) - count)
        return keys[at : at + count]

    def _sorted(self) -> list[bytes]:
        return sorted(self.rows)
