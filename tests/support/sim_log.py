"""A state machine and a queue for simulated nodes that have no KV service."""

import hashlib
from collections import deque

from kvserver.raft.entry import MemberId
from kvserver.raft.journal import load_configuration
from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.schema import META


class Log:
    """Its state is a digest of everything applied; `applied` is what this life saw."""

    feature_level = 0
    disqualified: frozenset[MemberId] = frozenset()
    tidying = False

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.applied: list[tuple[int, int, bytes | None]] = []
        self.reload()

    def reload(self) -> None:
        with self._storage.read() as txn:
            self.applied_index, self._applied_term = self.applied_of(txn)
            row = txn.get(META, b"history")
        self._staged = self.applied_index
        self.digest = row or b""

    def applied_of(self, txn: ReadTxn) -> tuple[int, int]:
        index, term = txn.get(META, b"applied_index"), txn.get(META, b"applied_term")
        if index is None or term is None:
            return load_configuration(txn).index, 0
        return int.from_bytes(index, "big"), int.from_bytes(term, "big")

    def apply(self, index: int, term: int, batch: bytes | None) -> None:
        assert index == self.applied_index + 1
        self.applied_index, self._applied_term = index, term
        self.applied.append((index, term, batch))
        told = self.digest + b"%d %d " % (index, term) + (batch or b"-")
        self.digest = hashlib.sha256(told).digest()

    def work(self) -> bool:
        return False

    def shadow(self, storage: Storage) -> "Log":
        return Log(storage)

    def moved(self) -> None:
        with self._storage.read() as txn:
            assert self.applied_of(txn) == (self.applied_index, self._applied_term)
            assert (txn.get(META, b"history") or b"") == self.digest

    def stage(self) -> bool:
        if self._staged == self.applied_index:
            return False
        self._staged = self.applied_index
        self._storage.writer().put(META, b"applied_index", self._staged.to_bytes(8, "big"))
        self._storage.writer().put(META, b"applied_term", self._applied_term.to_bytes(8, "big"))
        self._storage.writer().put(META, b"history", self.digest)
        return True


class Queue:
    """Proposals: one batch uncommitted, as in production."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.appends: list[tuple[int, int, bytes]] = []
        self._taken = b""
        self.in_flight: int | None = None

    def take(self) -> bytes | None:
        if self.in_flight is not None or not self.waiting:
            return None
        self._taken = self.waiting.popleft()
        return self._taken

    def appended(self, index: int, term: int) -> None:
        self.appends.append((index, term, self._taken))
        self.in_flight = index
