"""Digests say of all rows together what a checksum says of one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_storage import MemoryStorage

from kvserver.errors import DataDirError
from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.digest import (
    DIGESTED,
    DIGESTS_KEY,
    MASK,
    counts,
    decode_digests,
    encode_digests,
    row_digest,
)
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import HISTORY, IDENTITY, KEY_HISTORY, KV, LEASE, META, Database

KEYS = st.binary(min_size=1, max_size=3)
VALUES = st.binary(max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from((KV, LEASE, META)), KEYS, VALUES),
        st.tuples(st.just("many"), st.sampled_from((KV, LEASE)), KEYS, VALUES),
        st.tuples(st.just("mark"), st.just(KEY_HISTORY), KEYS, VALUES),
        st.tuples(st.just("unmark"), st.just(KEY_HISTORY), KEYS, VALUES),
        st.tuples(st.just("delete"), st.sampled_from((KV, LEASE)), KEYS, VALUES),
        st.tuples(st.sampled_from(("clear", "commit", "reopen")), st.just(KV), KEYS, VALUES),
    ),
    max_size=40,
)


def counted(txn: ReadTxn) -> dict[Database, int]:
    sums = {db: [row_digest(*row) for row in txn.scan(db) if counts(db, row[0])] for db in DIGESTED}
    return {db: sum(each) & MASK for db, each in sums.items()}


def do(storage: Storage, step: str, db: Database, key: bytes, value: bytes) -> None:
    writer = storage.writer()
    match step:
        case "put":
            writer.put(db, key, value)
        case "many":
            writer.put_many(db, [(key, value), (key + b"2", value)])
        case "mark" if value not in list(writer.values(db, key)):
            writer.put(db, key, value)
        case "unmark":
            writer.delete_value(db, key, value)
        case "delete":
            writer.delete(db, key)
        case "clear":
            writer.clear(db)
        case _:
            storage.commit()


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_digests_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Database, bytes, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("env")
    storage = LmdbStorage(folder)
    storage.keep_digests()
    fake = MemoryStorage()
    for each in (storage, fake):
        each.writer().put(META, b"first", b"")
        each.commit()
    for step in steps:
        if step[0] == "reopen":
            storage.commit()
            storage.close()
            storage = LmdbStorage(folder)
            continue
        do(storage, *step)
        do(fake, *step)
        assert storage.writer().digests() == fake.writer().digests() == counted(storage.writer())
    storage.commit()
    with storage.read() as txn:
        assert txn.digests() == counted(txn)
    storage.close()


def test_what_a_caller_has_read_need_not_be_read_again(tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    storage.writer().put(KV, b"a", b"1")
    before = {b"a": b"1", b"b": None}
    storage.writer().put_many(KV, [(b"a", b"2"), (b"b", b"3")], before=before)
    assert storage.writer().digests() == counted(storage.writer())


def test_a_row_that_can_not_be_there_is_damage(tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    storage.writer().put_many(HISTORY, [(b"1", b"a")], fresh=True)
    with pytest.raises(DataDirError, match="a row of a time to come"):
        storage.writer().put_many(HISTORY, [(b"2", b"b"), (b"1", b"a")], fresh=True)
    storage.writer().put_many(KEY_HISTORY, [(b"k", b"a"), (b"k", b"b")], fresh=True)
    for fresh in (True, False):
        with pytest.raises(DataDirError, match="a row of a time to come"):
            storage.writer().put_many(KEY_HISTORY, [(b"k", b"b")], fresh=fresh)


def rows_of_an_older_version(folder: Path) -> LmdbStorage:
    """A state that names no digests."""
    storage = LmdbStorage(folder)
    storage.writer().put_many(KV, [(b"a", b"1"), (b"b", b"2")])
    storage.commit()
    storage.close()
    return LmdbStorage(folder)


def transaction_of(storage: LmdbStorage) -> int:
    with storage.read() as txn:
        return int(txn._txn.id())


def test_a_state_of_an_older_version_learns_its_digests(tmp_path: Path) -> None:
    storage = rows_of_an_older_version(tmp_path)
    storage.keep_digests()
    with storage.read() as txn:
        assert txn.digests() is None
        then = counted(txn)
    transaction = transaction_of(storage)
    storage.writer().put(KV, b"c", b"3")
    storage.commit()
    assert storage.writer().digests() is None
    storage.writer().delete(KV, b"a")
    storage.learn_digests(tmp_path, transaction, then)
    assert storage.writer().digests() == counted(storage.writer())
    storage.commit()
    with storage.read() as txn:
        assert txn.digests() == counted(txn)


def test_they_can_be_counted_while_rows_change(tmp_path: Path) -> None:
    storage = rows_of_an_older_version(tmp_path)
    storage.writer().put(KV, b"c", b"3")
    storage.commit()
    with storage.counting():
        transaction = transaction_of(storage)
        with storage.read() as txn:
            then = counted(txn)
        for number in range(10):
            storage.writer().put(KV, b"a", b"%d" % number)
            storage.commit()
    storage.learn_digests(tmp_path, transaction, then)
    assert storage.digests_known
    assert storage.writer().digests() == counted(storage.writer())


def test_nothing_is_remembered_for_nobody(tmp_path: Path) -> None:
    """Unknown digests may stay so for long, and commits are many."""
    storage = rows_of_an_older_version(tmp_path)
    for number in range(10):
        storage.writer().put(KV, b"a", b"%d" % number)
        storage.commit()
    assert not storage.digests_known
    assert len(storage._ledger._changed_by) <= 2


def test_nothing_is_learned_of_another_state(tmp_path: Path) -> None:
    """A copy has taken its place, or it was counted before this process had it."""
    (tmp_path / "env-1").mkdir()
    storage = rows_of_an_older_version(tmp_path / "env-1")
    transaction = transaction_of(storage)
    with storage.read() as txn:
        then = counted(txn)
    storage.learn_digests(tmp_path / "env-2", transaction, then)
    storage.learn_digests(tmp_path / "env-1", transaction - 1, then)
    assert storage.writer().digests() is None
    storage.learn_digests(tmp_path / "env-1", transaction, then)
    assert storage.writer().digests() == then


def test_nothing_is_named_before_all_versions_count(tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    storage.writer().put(KV, b"a", b"1")
    storage.commit()
    with storage.read() as txn:
        assert txn.digests() is None


def test_what_a_node_keeps_for_itself_does_not_count() -> None:
    assert IDENTITY not in DIGESTED
    assert not counts(META, DIGESTS_KEY)
    assert counts(META, b"revision")


def flipped(stored: bytes) -> bytes:
    return stored[:1] + b"x" + stored[2:]


@pytest.mark.parametrize(
    "spoil",
    [lambda row: row[:-1], lambda row: row[:3], flipped],
    ids=["no sum", "no name", "no such name"],
)
def test_a_row_that_makes_no_sense(spoil: Callable[[bytes], bytes]) -> None:
    stored = encode_digests(dict.fromkeys(DIGESTED, 7))
    assert decode_digests(stored) == dict.fromkeys(DIGESTED, 7)
    with pytest.raises(DataDirError, match="digests"):
        decode_digests(spoil(stored))
