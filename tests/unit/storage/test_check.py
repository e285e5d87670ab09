"""A check reads every row in bounded slices, and finds what no row's own checksum shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.memory_storage import MemoryStorage, MemoryTxn

from kvserver.errors import DataDirError
from kvserver.storage.check import BYTES_MAX, ROWS_MAX, Check, check_all
from kvserver.storage.digest import DIGESTED, row_digest
from kvserver.storage.env import LmdbStorage
from kvserver.storage.rows import seal
from kvserver.storage.schema import DATABASES, KEY_HISTORY, KV, LEASE, META, Database

FIXED = len(DATABASES) + 1
"""Rows besides those of KV: one of each database, and the name of the log."""


def filled(rows: int, size: int = 1) -> MemoryStorage:
    storage = MemoryStorage()
    for db in DATABASES:
        storage.writer().put(db, b"row", b"v")
    storage.writer().put_many(KV, [(b"%05d" % i, b"x" * size) for i in range(rows)])
    storage.begin_log(b"", [(b"", 1, 1)])
    storage.commit()
    return storage


def slices(storage: MemoryStorage) -> tuple[Check, list[int]]:
    """A pass, and the rows of each of its slices."""
    found, done = [], False
    with storage.read() as txn:
        check = Check(txn)
        while not done:
            before = check.rows
            done = check.step()
            found.append(check.rows - before)
    return check, found


@pytest.mark.parametrize("rows", [0, 1, ROWS_MAX - 1, ROWS_MAX, 3 * ROWS_MAX + 1])
def test_a_pass_sees_every_row_once_in_short_slices(rows: int) -> None:
    check, found = slices(filled(rows))
    assert max(found) <= ROWS_MAX
    assert check.rows == check.total == FIXED + rows


def test_a_key_with_many_values_is_no_longer_slice() -> None:
    storage = filled(0)
    values = [i.to_bytes(4, "big") for i in range(3 * ROWS_MAX + 7)]
    storage.writer().put_many(KEY_HISTORY, [(b"key", value) for value in values])
    storage.commit()
    check, found = slices(storage)
    assert max(found) <= ROWS_MAX
    assert check.rows == FIXED + len(values)


def test_slices_of_large_rows_are_shorter() -> None:
    check, found = slices(filled(20, BYTES_MAX // 4))
    assert max(found) <= 4
    assert check.rows == FIXED + 20


def test_what_is_counted_are_the_digests() -> None:
    storage = filled(7)
    check, _ = slices(storage)
    with storage.read() as txn:
        assert check.counted == txn.digests()
    assert check.counted[LEASE] == row_digest(b"row", b"v")


# ---------------------------------------------------------------------------- damage


def lost(txn: MemoryTxn, db: Database) -> None:
    """Rows that nobody has deleted."""
    table = txn._tables[db]
    name = table.order.pop()
    del table.rows[name]


@pytest.mark.parametrize("db", DIGESTED, ids=lambda db: db.name.decode())
def test_a_row_that_is_missing_is_noticed(db: Database) -> None:
    storage = filled(3)
    lost(storage.writer(), db)
    with pytest.raises(DataDirError, match=f"missing, or of another time .{db.name.decode()}."):
        slices(storage)


class Blind(MemoryTxn):
    """Its lookups do not find a row that its scans pass."""

    def get_many(self, db: Database, keys: object) -> dict[bytes, bytes]:
        found = super().get_many(db, keys)  # type: ignore[arg-type]
        found.pop(b"00001", None)
        return found

    def finds_value(self, db: Database, key: bytes, value: bytes) -> bool:
        return False


class Miscounting(MemoryTxn):
    def entries(self, db: Database) -> int:
        return super().entries(db) + (db is KV)


class Disordered(MemoryTxn):
    def scan(
        self, db: Database, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = list(super().scan(db, lo, hi, reverse=reverse))
        yield from reversed(rows) if db is KV else rows


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Blind, "but does not find it"), (Miscounting, "counts 5"), (Disordered, "not in order")],
)
def test_what_does_not_agree_is_noticed(
    kind: type[MemoryTxn], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = filled(3)

    @contextmanager
    def read() -> Iterator[MemoryTxn]:
        yield kind(storage._tables)

    monkeypatch.setattr(storage, "read", read)
    with pytest.raises(DataDirError, match=said):
        list(check_all(storage))


def test_many_values_that_are_not_found_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    storage.writer().put(KEY_HISTORY, b"key", b"value")
    storage.commit()
    monkeypatch.setattr(MemoryTxn, "finds_value", Blind.finds_value)
    with pytest.raises(DataDirError, match="'key_history' holds b'key', but does not find it"):
        list(check_all(storage))


# ---------------------------------------------------------------------------- scans of the real one


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LmdbStorage]:
    """With three keys."""
    storage = LmdbStorage(tmp_path)
    storage.keep_digests()
    storage.writer().put_many(KV, [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
    storage.commit()
    yield storage
    storage.close()


def test_a_row_that_was_slipped_in_is_noticed(storage: LmdbStorage) -> None:
    environment = storage._environment
    with environment.lmdb.begin(write=True) as txn:
        txn.put(b"bb", seal(b"bb", b"old"), db=environment.handles[KV])
    with pytest.raises(DataDirError, match=r"of another time \(kv\)"):
        list(check_all(storage))


def test_all_is_well(storage: LmdbStorage) -> None:
    *_, check = check_all(storage)
    with storage.read() as txn:
        assert check.counted == txn.digests()
        assert [key for key, _ in txn.scan(META)] == [b"digests"]
