"""The hash of the state at a revision: whatever has happened since, but not what is wrong now."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_store import CHANGES, KEYS, Changes, Store

from kvserver.errors import CompactedError
from kvserver.mvcc.keyvalue import decode_row, encode_row
from kvserver.mvcc.statehash import BYTES_MAX, StateHash


@settings(max_examples=200, deadline=None)
@given(CHANGES, CHANGES, st.booleans(), st.integers(1, 7))
def test_it_is_the_hash_of_that_moment(
    before: Changes, after: Changes, compacted: bool, rows_max: int
) -> None:
    store = Store()
    store.change(before)
    then, revision = store.whole(), store.revision
    assert store.at(revision, rows_max) == then
    store.change(after)
    if compacted and revision > 1:
        store.compact(revision)
    assert store.at(revision, rows_max) == then
    assert store.at(store.revision, rows_max) == store.whole()


@settings(max_examples=100, deadline=None)
@given(CHANGES, st.lists(CHANGES, min_size=1, max_size=6), st.integers(1, 3))
def test_changes_between_the_slices_do_not_matter(
    before: Changes, between: list[Changes], rows_max: int
) -> None:
    store = Store()
    store.change(before)
    then, state = store.whole(), StateHash(store.storage, store.revision)
    for changes in between:
        if state.step(rows_max):
            break
        store.change(changes)
    else:
        while not state.step(rows_max):
            pass
    assert state.value == then


FOUR = [(key, b"1") for key in KEYS[:4]]


@pytest.mark.parametrize("later", [[], [(b"d", b"1")], [(b"a", b"2"), (b"a", None)]])
def test_what_is_wrong_in_what_is_served_is_seen(later: Changes) -> None:
    right = Store()
    right.change(FOUR)
    right.change(later)
    revision = 5
    row = decode_row(right.row(b"b"))
    for wrong in (
        encode_row(row._replace(value=b"2")),
        encode_row(row._replace(version=2)),
        encode_row(row._replace(mod_revision=1 << 60)),
        None,
    ):
        other = Store()
        other.change(FOUR)
        other.put_row(b"b", wrong)
        other.change(later)
        assert other.at(revision) != right.at(revision), wrong
    for mod_revision in (row.mod_revision, 1 << 60):
        extra = Store()
        extra.change(FOUR)
        extra.put_row(b"bb", encode_row(row._replace(mod_revision=mod_revision)))
        extra.change(later)
        assert extra.at(revision) != right.at(revision), mod_revision


def test_a_revision_that_is_not_kept() -> None:
    store = Store()
    store.change(FOUR)
    state = StateHash(store.storage, 3)
    assert not state.step(1)
    store.compact(4)
    with pytest.raises(CompactedError):
        state.step(1)


def test_a_slice_is_bounded_in_bytes() -> None:
    store = Store()
    store.change([(b"%d" % i, bytes(BYTES_MAX // 2)) for i in range(6)])
    state = StateHash(store.storage, store.revision)
    assert not state.step(100)
    assert not state.step(100)
    while not state.step(100):
        pass
    assert state.value == store.whole()
