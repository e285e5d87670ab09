"""Leases: who has been granted how much time, and which keys end with it. Deterministic.

A lease's row promises a deadline in log time: no node may let it expire before. Keeping a lease
alive within the promise needs no entry in the log; only beyond it the promise is renewed first.

Invariants:
- what clients were told of a lease's time never goes beyond its row's deadline;
- a key stands in `lease_key` exactly under the lease that its row in `kv` names.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from kvpb.rpc_pb2 import LeaseGrantRequest
from kvserver.errors import LeaseExistsError, LeaseNotFoundError
from kvserver.mvcc.pace import Pace
from kvserver.storage.contract import ReadTxn, WriteTxn
from kvserver.storage.rows import damaged
from kvserver.storage.schema import LEASE, LEASE_KEY

_ID: Final = struct.Struct(">q")
_ROW: Final = struct.Struct(">QQ")

SLACK_TTLS: Final = 3
SLACK_S_MAX: Final = 300
"""How far the promise goes beyond what the client is told. The longer, the fewer renewals are
logged, and the longer a forgotten lease may live on through failovers that follow one another."""


class LeaseRow(NamedTuple):
    """What is replicated of a lease."""

    ttl_s: int
    """As granted."""
    deadline_ms: int
    """Log time before which it does not expire, if the active that renewed it is lost."""


class LeaseChange(NamedTuple):
    """A lease was granted or renewed, or it ended."""

    lease: int
    row: LeaseRow | None
    """None: it ended."""


def promised_ms(ttl_s: int, log_time_ms: int) -> int:
    """Deadline of a lease that is granted or renewed at this log time."""
    return log_time_ms + 1000 * (ttl_s + _slack_s(ttl_s))


def _slack_s(ttl_s: int) -> int:
    return min(SLACK_TTLS * ttl_s, SLACK_S_MAX)


def find_lease(txn: ReadTxn, lease: int) -> LeaseRow | None:
    """The row of a lease, None if there is none."""
    stored = txn.get(LEASE, _ID.pack(lease))
    return None if stored is None else LeaseRow(*_ROW.unpack(stored))


def leases_after(txn: ReadTxn, last: int | None) -> Iterator[tuple[int, LeaseRow]]:
    """All leases in the order of their rows, those behind `last`."""
    lo = b"" if last is None else _ID.pack(last) + b"\0"
    for key, stored in txn.scan(LEASE, lo):
        yield _ID.unpack(key)[0], LeaseRow(*_ROW.unpack(stored))


def keys_of(txn: ReadTxn, lease: int) -> Iterator[bytes]:
    """Keys attached to a lease, in order."""
    prefix = _ID.pack(lease)
    after = int.from_bytes(prefix, "big") + 1
    hi = after.to_bytes(_ID.size, "big") if after < 1 << 64 else None
    for found in txn.keys(LEASE_KEY, prefix, hi):
        yield found[_ID.size :]


class Leases:
    """The leases as the commands of a batch see and change them."""

    def __init__(self, txn: WriteTxn, log_time_ms: int, pace: Pace) -> None:
        self._txn = txn
        self._pace = pace
        self._log_time_ms = log_time_ms
        self._known: set[int] = set()
        """Seen to exist by this batch: many of its puts may name the same."""
        self.changes: list[LeaseChange] = []
        """All that was changed, in order."""

    def check(self, lease: int) -> None:
        """Raise if a put names a lease that does not exist.

        Raises:
            LeaseNotFoundError: nothing changed.
        """
        if lease and lease not in self._known:
            if find_lease(self._txn, lease) is None:
                raise LeaseNotFoundError
            self._known.add(lease)

    def grant(self, request: LeaseGrantRequest) -> None:
        """Begin a lease; its id and time were settled when it was proposed.

        Raises:
            LeaseExistsError: nothing changed.
        """
        if find_lease(self._txn, request.ID) is not None:
            raise LeaseExistsError
        self._promise(request.ID, request.TTL)

    def renew(self, leases: Iterable[int]) -> None:
        """Promise their full time anew to those that still exist."""
        for lease in leases:
            row = find_lease(self._txn, lease)
            if row is not None:
                self._promise(lease, row.ttl_s)

    def live_on(self, lease: int) -> None:
        """Promise its full time anew to one that was used, once half of the slack is gone."""
        row = find_lease(self._txn, lease)
        if row is None:
            raise damaged(f"the lease of the session {lease:x} is missing")
        if row.deadline_ms < self._log_time_ms + 1000 * row.ttl_s + 500 * _slack_s(row.ttl_s):
            self._promise(lease, row.ttl_s)

    def _promise(self, lease: int, ttl_s: int) -> None:
        row = LeaseRow(ttl_s, promised_ms(ttl_s, self._log_time_ms))
        self._txn.put(LEASE, _ID.pack(lease), _ROW.pack(*row))
        self.changes.append(LeaseChange(lease, row))

    def move(self, key: bytes, before: int, after: int) -> None:
        """A key leaves one lease for another; 0 stands for none."""
        if before:
            self._txn.delete(LEASE_KEY, _ID.pack(before) + key)
        if after:
            self._txn.put(LEASE_KEY, _ID.pack(after) + key, b"")

    def end(self, lease: int) -> list[bytes]:
        """End a lease.

        Returns:
            Its keys in order: they are to be deleted from the store.

        Raises:
            LeaseNotFoundError: nothing changed.
        """
        if not self._txn.delete(LEASE, _ID.pack(lease)):
            raise LeaseNotFoundError
        self._known.discard(lease)
        keys = self._pace.all(keys_of(self._txn, lease))
        for some in self._pace.chunks(keys):
            for key in some:
                self._txn.delete(LEASE_KEY, _ID.pack(lease) + key)
        self.changes.append(LeaseChange(lease, None))
        return keys
