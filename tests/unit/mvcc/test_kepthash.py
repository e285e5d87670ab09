"""The hash of all that is kept: old revisions and deletions too, found as clients find them."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_storage import MemoryTxn
from support.small_store import CHANGES, KEYS, Changes, Store

from kvserver.errors import CompactedError, DataDirError
from kvserver.mvcc.kepthash import KeptHash
from kvserver.mvcc.statehash import BYTES_MAX
from kvserver.storage.contract import WriteTxn
from kvserver.storage.schema import HISTORY, KEY_HISTORY, KV, Database

FOUR: Changes = [(key, b"1") for key in KEYS[:4]]
PAST: Changes = [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None), (b"c", b"1"), (b"a", b"3")]
"""Revisions 2 to 7."""


def kept(store: Store, revision: int, rows_max: int = 100) -> tuple[int, int]:
    """The hash at a revision, and the compacted revision that it goes with."""
    found = KeptHash(store.storage, revision)
    while not found.step(rows_max):
        pass
    return found.value, found.compacted


def store_of(*parts: Changes) -> Store:
    store = Store()
    for changes in parts:
        store.change(changes)
    return store


@settings(max_examples=200, deadline=None)
@given(CHANGES, CHANGES, st.integers(0, 30), st.integers(0, 12), st.integers(1, 7))
def test_it_depends_on_what_was_written_and_on_the_two_revisions_only(
    before: Changes, after: Changes, compact_at: int, steps: int, rows_max: int
) -> None:
    """Not on later writes, on the slices, or on how far what is compacted is removed."""
    one, other = store_of(before), store_of(before)
    revision = one.revision
    if 0 < compact_at <= revision:
        one.compact(compact_at)
        other.compact(compact_at, steps)
    wanted = kept(one, revision)
    other.change(after)
    assert kept(other, revision, rows_max) == wanted
    one.change(after)
    assert kept(one, one.revision) == kept(other, other.revision, rows_max)


def test_an_empty_store_has_a_hash_and_one_that_was_emptied_another() -> None:
    empty = kept(Store(), 1)[0]
    emptied = kept(store_of([(b"a", b"1"), (b"a", None)]), 3)[0]
    assert 0 not in (empty, emptied)
    assert empty != emptied


@pytest.mark.parametrize(
    "other",
    [
        [(b"a", b"x"), *PAST[1:]],  # an old value
        [*PAST[:3], (b"c", None), *PAST[4:]],  # there is nothing to delete
        [(b"c", b"1"), *PAST[1:]],  # an old key
        [*PAST[:2], (b"b", b"0"), *PAST[3:]],  # what was deleted later
    ],
)
def test_what_was_is_hashed_too(other: Changes) -> None:
    """The newest state of the two may be the same, as with the first."""
    assert kept(store_of(PAST), 7) != kept(store_of(other), 7)


def test_a_deletion_and_a_new_put_are_not_what_a_put_is() -> None:
    """As of the compacted revision nothing tells the two apart: with etcd neither."""
    one = store_of([(b"a", b"1"), (b"b", b"1"), (b"b", None)], [(b"c", b"1")])
    other = store_of([(b"a", b"1"), (b"b", b"2"), (b"b", None)], [(b"c", b"1")])
    assert kept(one, 5) != kept(other, 5)
    for store in (one, other):
        store.compact(5)
    assert kept(one, 5) == kept(other, 5)


@settings(max_examples=100, deadline=None)
@given(CHANGES, st.lists(CHANGES, min_size=1, max_size=8), st.integers(1, 3))
def test_changes_between_the_slices_do_not_matter(
    before: Changes, between: list[Changes], rows_max: int
) -> None:
    store = store_of(before)
    wanted, found = kept(store, store.revision)[0], KeptHash(store.storage, store.revision)
    for changes in between:
        if found.step(rows_max):
            break
        store.change(changes)
    else:
        while not found.step(rows_max):
            pass
    assert found.value == wanted


@pytest.mark.parametrize("slices", range(1, 12))
def test_a_compaction_between_the_slices_lets_it_begin_anew(slices: int) -> None:
    store = store_of(PAST)
    found = KeptHash(store.storage, 7)
    for _ in range(slices):
        assert not found.step(1)
    store.compact(5)
    while not found.step(1):
        pass
    assert (found.value, found.compacted) == kept(store, 7)
    assert found.compacted == 5
    again = KeptHash(store.storage, 7)
    again.step(1)
    store.change(FOUR)
    store.compact(8)
    with pytest.raises(CompactedError):
        again.step(1)


def row_of(txn: WriteTxn, key: bytes, place: int = -1) -> bytes:
    """One of the entries of a key in the index."""
    return list(txn.values(KEY_HISTORY, key))[place]


def lose_served(txn: WriteTxn) -> None:
    txn.delete(KV, b"a")


def invent_served(txn: WriteTxn) -> None:
    stored = txn.get(KV, b"a")
    assert stored is not None
    txn.put(KV, b"aa", stored)


def lose_entry(txn: WriteTxn) -> None:
    txn.delete_value(KEY_HISTORY, b"a", row_of(txn, b"a", 1))


def lose_first_entry(txn: WriteTxn) -> None:
    txn.delete_value(KEY_HISTORY, b"a", row_of(txn, b"a", 0))


def lose_deletion(txn: WriteTxn) -> None:
    txn.delete_value(KEY_HISTORY, b"b", row_of(txn, b"b"))


def lose_change(txn: WriteTxn) -> None:
    txn.delete(HISTORY, row_of(txn, b"a", 1)[:-1])


def lose_both(txn: WriteTxn) -> None:
    lose_change(txn)
    lose_entry(txn)


def invent_change(txn: WriteTxn) -> None:
    stored = txn.get(HISTORY, row_of(txn, b"a", 1)[:-1])
    assert stored is not None
    txn.put(HISTORY, row_of(txn, b"a", 1)[:-2] + b"\1", stored)


@pytest.mark.parametrize(
    "spoil",
    [
        lose_served, invent_served, lose_entry, lose_first_entry, lose_deletion, lose_change,
        lose_both, invent_change,
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(spoil: Callable[[WriteTxn], None]) -> None:
    right, wrong = store_of(PAST), store_of(PAST)
    spoil(wrong.storage.writer())
    wrong.storage.commit()
    try:
        found = kept(wrong, 7)
    except DataDirError:
        return
    assert found != kept(right, 7)


@pytest.mark.parametrize(
    ("database", "how"), [(KV, "get"), (HISTORY, "get"), (KEY_HISTORY, "last_value")]
)
def test_a_row_that_only_a_scan_meets_is_seen(
    database: Database, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a tree whose branches lead astray: clients look rows up."""
    store = store_of(PAST)
    wanted = kept(store, 7)
    hidden = row_of(store.storage.writer(), b"a", 1)[:-1] if database is HISTORY else b"a"
    look_up = getattr(MemoryTxn, how)

    def astray(self: MemoryTxn, db: Database, key: bytes, *more: bytes) -> bytes | None:
        found: bytes | None = look_up(self, db, key, *more)
        return None if (db, key) == (database, hidden) else found

    monkeypatch.setattr(MemoryTxn, how, astray)
    try:
        found = kept(store, 7)
    except DataDirError:
        return
    assert found != wanted


def test_a_key_with_very_many_changes_is_hashed_in_slices_too() -> None:
    store = store_of([(b"a", b"%d" % number) for number in range(100)], FOUR)
    found, steps = KeptHash(store.storage, store.revision), 1
    while not found.step(10):
        steps += 1
    assert steps >= 20, "100 changes by key and 100 by revision"
    assert (found.value, found.compacted) == kept(store, store.revision)
    store.compact(101, steps=0)
    found, steps = KeptHash(store.storage, store.revision), 1
    while not found.step(10):
        steps += 1
    assert steps >= 10, "what is not removed yet is met, though not hashed"


def test_a_slice_is_bounded_in_bytes() -> None:
    store = store_of([(b"a", bytes(BYTES_MAX // 2)) for _ in range(6)])
    found, steps = KeptHash(store.storage, store.revision), 1
    while not found.step(100):
        steps += 1
    assert steps >= 5


def test_a_revision_that_is_not_kept() -> None:
    store = store_of(PAST)
    store.compact(5)
    kept(store, 5)
    with pytest.raises(CompactedError):
        KeptHash(store.storage, 4).step()
