"""Old revisions: readable until compacted, then removed piece by piece without anybody noticing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.memory_storage import MemoryStorage
from support.reading import read_range

from kvpb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.errors import CompactedError, FutureRevisionError
from kvserver.mvcc.hashing import HashBuilder, StoredHashBuilder
from kvserver.mvcc.history import DELETE, PUT, Compactor, changes_since, previous_row, row_at
from kvserver.mvcc.statehash import StateHash
from kvserver.mvcc.store import Writer
from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import HISTORY, KEY_HISTORY, KV

KEYS = (b"a", b"a\0", b"ab", b"b", b"\xff" * 480)
ALL = RangeRequest(key=b"\0", range_end=b"\0")

keys = st.sampled_from(KEYS)
steps = st.one_of(
    st.builds(PutRequest, key=keys, value=st.sampled_from([b"", b"x", b"y" * 600])),
    st.builds(DeleteRangeRequest, key=keys, range_end=st.sampled_from([b"", b"", b"b", b"\0"])),
    st.builds(
        lambda put, gone, again: TxnRequest(
            success=[
                RequestOp(request_put=PutRequest(key=put, value=b"t")),
                RequestOp(request_delete_range=DeleteRangeRequest(key=gone)),
                RequestOp(request_put=PutRequest(key=again, value=b"u")),
            ]
        ),
        *[st.sampled_from([key]) for key in KEYS[:3]],
    ),
)
sequences = st.lists(steps, min_size=1, max_size=25)


@contextmanager
def storage_of(kind: str) -> Iterator[Storage]:
    if kind == "memory":
        yield MemoryStorage()
        return
    with TemporaryDirectory() as folder:
        storage = LmdbStorage(Path(folder))
        yield storage
        storage.close()


def apply(storage: Storage, sequence: Sequence[object]) -> tuple[Writer, dict[int, list[object]]]:
    """Do them all; also what could be read at each revision when it was the newest."""
    writer = Writer(storage.writer(), 1)
    seen: dict[int, list[object]] = {1: []}
    for step in sequence:
        if isinstance(step, PutRequest):
            writer.put(step)
        elif isinstance(step, DeleteRangeRequest):
            writer.delete_range(step)
        else:
            assert isinstance(step, TxnRequest)
            writer.txn(step)
        writer.flush()
        seen[writer.revision] = rows(storage.writer(), 0, writer.revision)
    return writer, seen


def rows(txn: ReadTxn, at: int, current: int) -> list[object]:
    request = RangeRequest(key=ALL.key, range_end=ALL.range_end, revision=at)
    return list(read_range(txn, request, current).kvs)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sequences, st.integers(0, 25), st.integers(1, 7))
def test_each_revision_reads_as_it_was_until_it_is_compacted(
    kind: str, sequence: list[object], compact_at: int, slice_size: int
) -> None:
    with storage_of(kind) as storage:
        writer, seen = apply(storage, sequence)
        txn, current = storage.writer(), writer.revision
        for revision, then in seen.items():
            assert rows(txn, revision, current) == then
        compacted = min(compact_at, current)
        writer.compact(CompactionRequest(revision=compacted))
        compactor = Compactor(compacted)
        done = False
        while not done:
            done = compactor.step(txn, slice_size)
            for revision, then in seen.items():
                if revision >= compacted:
                    assert rows(txn, revision, current) == then, "half-way through"
                elif revision < current:
                    with pytest.raises(CompactedError):
                        rows(txn, revision, current)
        assert_nothing_is_left_over(txn, compacted)
        told = [change[:5] for change in writer.changes if change.revision >= compacted]
        assert [change[:5] for change in changes_since(txn, compacted)] == told
        storage.commit()


def assert_nothing_is_left_over(txn: ReadTxn, compacted: int) -> None:
    changes = list(changes_since(txn, 0))
    listed = [
        (key, value) for key in txn.keys(KEY_HISTORY) for value in txn.values(KEY_HISTORY, key)
    ]
    assert len(listed) == len(changes)
    old = [change for change in changes if change.revision < compacted]
    assert len({change.key for change in old}) == len(old), "one for each key at most"
    assert all(change.kind == PUT for change in old), "and none that says it is gone"
    replaced = {change.key for change in changes if change.revision == compacted}
    assert not replaced & {change.key for change in old}


def test_reads_of_a_future_revision_are_refused() -> None:
    storage = MemoryStorage()
    apply(storage, [PutRequest(key=b"a")])
    with pytest.raises(FutureRevisionError):
        rows(storage.writer(), 3, 2)


def test_only_newer_compactions_are_taken() -> None:
    storage = MemoryStorage()
    writer, _ = apply(storage, [PutRequest(key=b"a")] * 5)
    writer.compact(CompactionRequest(revision=0))  # once, as etcd
    writer.compact(CompactionRequest(revision=3))
    for revision in (3, 2, 0, -1):
        with pytest.raises(CompactedError):
            writer.compact(CompactionRequest(revision=revision))
    with pytest.raises(FutureRevisionError):
        writer.compact(CompactionRequest(revision=7))
    assert writer.compact(CompactionRequest(revision=6)).header.revision == 6
    assert len(rows(storage.writer(), 6, 6)) == 1, "the compacted revision itself stays readable"


def test_changes_come_in_the_order_in_which_they_were_made() -> None:
    storage = MemoryStorage()
    txn = TxnRequest(
        success=[
            RequestOp(request_delete_range=DeleteRangeRequest(key=b"a")),
            RequestOp(request_put=PutRequest(key=b"a", value=b"2")),
            RequestOp(request_put=PutRequest(key=b"b", value=b"3")),
        ]
    )
    writer, _ = apply(storage, [PutRequest(key=b"a", value=b"1"), txn])
    told = [(c.revision, c.sub, c.kind, c.key) for c in changes_since(storage.writer(), 0)]
    assert told == [
        (2, 0, PUT, b"a"), (3, 0, DELETE, b"a"), (3, 1, PUT, b"a"), (3, 2, PUT, b"b"),
    ]  # fmt: skip
    assert [change[:4] for change in writer.changes] == told
    row = row_at(storage.writer(), b"a", 3)
    assert row is not None
    assert (row.create_revision, row.version, row.value) == (3, 1, b"2")
    assert row_at(storage.writer(), b"b", 2) is None
    assert [c.revision for c in changes_since(storage.writer(), 3)] == [3, 3, 3]


def test_what_was_before_is_told_or_not_however_far_the_removal_is() -> None:
    storage = MemoryStorage()
    writer, _ = apply(storage, [PutRequest(key=b"a", value=b"%d" % n) for n in range(4)])
    changes = list(changes_since(writer._txn, 2))
    before = {each.revision: previous_row(writer._txn, each) for each in changes}
    assert [row and row.value for row in before.values()] == [None, b"0", b"1", b"2"]
    writer.compact(CompactionRequest(revision=4))
    for _ in range(2):
        before = {each.revision: previous_row(writer._txn, each) for each in changes}
        assert [row and row.value for row in before.values()] == [None, None, None, b"2"]
        assert Compactor(4).step(writer._txn, 1_000)


@pytest.mark.parametrize("slice_size", [1, 2, 100])
def test_a_deletion_in_the_compacted_revision_is_there_to_be_watched(slice_size: int) -> None:
    storage = MemoryStorage()
    replaced = TxnRequest(
        success=[
            RequestOp(request_delete_range=DeleteRangeRequest(key=b"a")),
            RequestOp(request_put=PutRequest(key=b"a", value=b"2")),
        ]
    )
    gone = DeleteRangeRequest(key=b"a")
    apply(storage, [PutRequest(key=b"a"), replaced, gone])
    txn = storage.writer()

    def left_after(compacted: int) -> list[tuple[int, int]]:
        compactor = Compactor(compacted)
        while not compactor.step(txn, slice_size):
            pass
        return [(change.revision, change.kind) for change in changes_since(txn, 0)]

    assert left_after(3) == [(3, DELETE), (3, PUT), (4, DELETE)]
    assert left_after(4) == [(4, DELETE)]
    assert left_after(5) == []


def test_a_key_with_very_many_changes_is_compacted_in_slices_too() -> None:
    storage = MemoryStorage()
    writer, _ = apply(storage, [PutRequest(key=b"a"), PutRequest(key=b"b")])
    for _ in range(100):
        writer.put(PutRequest(key=b"b"))
    writer.flush()
    compactor, steps_taken = Compactor(writer.revision), 0
    txn = storage.writer()
    while not compactor.step(txn, 10):
        steps_taken += 1
    assert steps_taken >= 10
    assert [(c.key, c.revision) for c in changes_since(txn, 0)] == [(b"a", 2), (b"b", 103)]


@given(sequences)
@settings(max_examples=40, deadline=None)
def test_the_hash_of_a_past_revision_is_what_it_was_then(sequence: list[object]) -> None:
    storage = MemoryStorage()
    apply(storage, sequence)
    earlier = MemoryStorage()
    cut = len(sequence) // 2
    before, _ = apply(earlier, sequence[:cut])
    storage.commit()
    newest, past = HashBuilder(earlier.writer()), StateHash(storage, before.revision)
    while not newest.step(2):
        pass
    while not past.step(3):
        pass
    assert newest.value == past.value


def test_the_hash_of_all_that_is_stored_sees_what_the_other_does_not() -> None:
    def hashes(storage: MemoryStorage) -> tuple[int, int]:
        stored, newest = StoredHashBuilder(storage.writer()), HashBuilder(storage.writer())
        while not stored.step(2):
            pass
        while not newest.step(2):
            pass
        return stored.value, newest.value

    first, second = MemoryStorage(), MemoryStorage()
    for storage in (first, second):
        for db in (KV, HISTORY):
            storage.writer().put(db, b"key", b"row")
    assert hashes(first) == hashes(second)
    second.writer().put(HISTORY, b"older", b"row")
    assert hashes(first)[0] != hashes(second)[0]
    assert hashes(first)[1] == hashes(second)[1]
