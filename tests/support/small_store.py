"""A store in memory that is changed key by key, compacted as far as wanted, and spoiled."""

from collections.abc import Sequence

from hypothesis import strategies as st
from support.memory_storage import MemoryStorage

from kvpb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest
from kvserver.mvcc.hashing import HashBuilder
from kvserver.mvcc.history import Compactor
from kvserver.mvcc.statehash import StateHash
from kvserver.mvcc.store import Writer
from kvserver.storage.schema import KV

KEYS = [b"a", b"ab", b"b", b"c", b"d" * 40]
Changes = Sequence[tuple[bytes, bytes | None]]
CHANGES = st.lists(st.tuples(st.sampled_from(KEYS), st.none() | st.sampled_from([b"", b"1", b"2"])))


class Store:
    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.revision = 1

    def change(self, changes: Changes) -> None:
        """Puts, and deletes where there is no value."""
        writer = Writer(self.storage.writer(), self.revision)
        for key, value in changes:
            if value is None:
                writer.delete_range(DeleteRangeRequest(key=key))
            else:
                writer.put(PutRequest(key=key, value=value))
        writer.flush()
        self.revision = writer.revision
        self.storage.commit()

    def compact(self, revision: int, steps: int = 10_000) -> None:
        """At a revision; what is behind it is removed as far as `steps` changes go."""
        Writer(self.storage.writer(), self.revision).compact(CompactionRequest(revision=revision))
        if steps:
            Compactor(revision).step(self.storage.writer(), steps)
        self.storage.commit()

    def put_row(self, key: bytes, row: bytes | None) -> None:
        """Behind the back of the store."""
        txn = self.storage.writer()
        if row is None:
            txn.delete(KV, key)
        else:
            txn.put(KV, key, row)
        self.storage.commit()

    def row(self, key: bytes) -> bytes:
        with self.storage.read() as txn:
            found = txn.get(KV, key)
        assert found is not None
        return found

    def whole(self) -> int:
        """Of the newest state, by reading it all at once."""
        with self.storage.read() as txn:
            builder = HashBuilder(txn)
            while not builder.step(1):
                pass
        return builder.value

    def at(self, revision: int, rows_max: int = 100) -> int:
        state = StateHash(self.storage, revision)
        while not state.step(rows_max):
            pass
        return state.value
