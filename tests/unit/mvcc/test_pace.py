"""Commands that change very many keys show that they go on."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import pytest
from support.memory_storage import MemoryStorage, MemoryTxn

from kvpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    TxnRequest,
)
from kvserver.mvcc import pace as module
from kvserver.mvcc.pace import Pace
from kvserver.mvcc.store import Writer
from kvserver.storage.schema import Database

STEP = 10
KEYS = 40 * STEP
ROWS_PER_STEP_MAX = 3 * STEP
"""Of each key the row, its place under a lease, and the change, twice, are touched."""
LEASE = 7
ALL = DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)


class Watched(MemoryTxn):
    """Counts the rows that are touched between two signs of life."""

    def __init__(self, storage: MemoryStorage, pace: Pace) -> None:
        super().__init__(storage._tables)
        self._pace = pace
        self.rows: Counter[int] = Counter()

    def _touch(self, rows: int = 1) -> None:
        self.rows[self._pace.steps] += rows

    def scan(
        self, db: Database, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for row in super().scan(db, lo, hi, reverse=reverse):
            self._touch()
            yield row

    def get_many(self, db: Database, keys: Collection[bytes]) -> dict[bytes, bytes]:
        self._touch(len(keys))
        return super().get_many(db, keys)

    def put_many(self, db: Database, pairs: Iterable[tuple[bytes, bytes]], **hints: Any) -> None:
        rows = list(pairs)
        self._touch(len(rows))
        super().put_many(db, rows, **hints)

    def delete(self, db: Database, key: bytes) -> bool:
        self._touch()
        return super().delete(db, key)


def delete_in_txn(writer: Writer) -> None:
    request = TxnRequest()
    request.success.add().request_delete_range.CopyFrom(ALL)
    writer.txn(request)


@pytest.mark.parametrize(
    "command",
    [
        lambda writer: writer.delete_range(ALL),
        delete_in_txn,
        lambda writer: writer.revoke(LeaseRevokeRequest(ID=LEASE)),
    ],
    ids=["delete", "delete in a transaction", "end of a lease"],
)
def test_there_is_a_sign_of_life_every_so_many_rows(
    command: Callable[[Writer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_KEYS", STEP)
    pace = Pace()
    txn = Watched(MemoryStorage(), pace)
    writer = Writer(txn, 1, pace=pace)
    writer.grant(LeaseGrantRequest(ID=LEASE, TTL=100))
    for number in range(KEYS):
        writer.put(PutRequest(key=b"%05d" % number, lease=LEASE))
    writer.flush()
    txn.rows.clear()
    command(writer)
    writer.flush()
    assert sum(change.kind for change in writer.changes) == KEYS, "all are deleted"
    assert max(txn.rows.values()) <= ROWS_PER_STEP_MAX


def test_nothing_is_left_out() -> None:
    pace = Pace()
    for count in (0, 1, module.STEP_KEYS, 2 * module.STEP_KEYS + 1):
        assert pace.all(iter(range(count))) == list(range(count))
    assert pace.steps == 0 + 1 + 1 + 3
