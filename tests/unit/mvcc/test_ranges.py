"""Ranges: order, limit, more, count, filters; the same in one step or many."""

from collections.abc import Iterator
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kv_model import Model, RefusedError
from support.kv_requests import absolute, fillings, ranges, wide_ranges
from support.memory_storage import MemoryStorage, MemoryTxn
from support.reading import read_range

from kvpb.rpc_pb2 import PutRequest, RangeRequest
from kvserver.errors import RequestError
from kvserver.mvcc import ranges as ranges_module
from kvserver.mvcc.budget import Budget
from kvserver.mvcc.pace import Pace
from kvserver.mvcc.ranges import RangeBuilder
from kvserver.mvcc.store import Writer
from kvserver.storage.schema import Database

TARGETS = {
    RangeRequest.KEY: attrgetter("key"),
    RangeRequest.VERSION: attrgetter("version"),
    RangeRequest.CREATE: attrgetter("create_revision"),
    RangeRequest.MOD: attrgetter("mod_revision"),
    RangeRequest.VALUE: attrgetter("value"),
}


class NotingTxn(MemoryTxn):
    """Remembers which values were read."""

    def __init__(self, storage: MemoryStorage) -> None:
        super().__init__(storage._tables)
        self.touched: list[bytes] = []

    def get(self, db: Database, key: bytes) -> bytes | None:
        self.touched.append(key)
        return super().get(db, key)

    def scan(
        self, db: Database, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, value in super().scan(db, lo, hi, reverse=reverse):
            self.touched.append(key)
            yield key, value

    def keys(self, db: Database, lo: bytes = b"", hi: bytes | None = None) -> Iterator[bytes]:
        noted = len(self.touched)
        found = list(super().keys(db, lo, hi))
        del self.touched[noted:]  # this one is made of a scan
        return iter(found)


def store(*puts: tuple[bytes, bytes]) -> tuple[NotingTxn, int]:
    storage = MemoryStorage()
    writer = Writer(storage.writer(), 1)
    for key, value in puts:
        writer.put(PutRequest(key=key, value=value))
    writer.flush()
    storage.commit()
    return NotingTxn(storage), writer.revision


PUTS = [
    (b"d", b"3"), (b"b", b"2"), (b"a", b"2"), (b"e", b""), (b"c", b"9"), (b"b", b"10"),
    (b"d", b"3"), (b"d", b"1"), (b"a", b"2"),
]  # fmt: skip
"""Every target orders them in another way; some are equal in version or value."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("order", RangeRequest.SortOrder.values())
@pytest.mark.parametrize("shrink_from", [1, ranges_module.SHRINK_FROM])
def test_every_target_in_every_order(
    target: RangeRequest.SortTarget.ValueType,
    order: RangeRequest.SortOrder.ValueType,
    shrink_from: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges_module, "SHRINK_FROM", shrink_from)
    txn, revision = store(*PUTS)
    request = RangeRequest(key=b"a", range_end=b"z", sort_target=target, sort_order=order)
    found = list(read_range(txn, request, revision).kvs)
    by_key = sorted(found, key=attrgetter("key"))
    down = order == RangeRequest.DESCEND
    assert found == sorted(by_key, key=TARGETS[target], reverse=down)
    assert len(found) == 5
    for limit in range(1, 7):
        request.limit = limit
        limited = read_range(txn, request, revision)
        assert limited.count == 5
        assert limited.more == (limit < 5)
        if order != RangeRequest.NONE or target == RangeRequest.KEY:
            assert list(limited.kvs) == found[:limit]


@pytest.mark.parametrize("filtered", [True, False])
def test_what_a_limit_leaves_out_is_not_held(filtered: bool) -> None:
    """Of many pairs that are sorted or filtered few are answered: no more need room."""
    txn, revision = store(*((b"k/%04d" % (n * 37 % 1000), b"v" * 90) for n in range(1000)))
    request = RangeRequest(key=b"k/", range_end=b"k0", limit=10)
    if filtered:
        request.min_mod_revision = 500
    else:
        request.sort_target, request.sort_order = RangeRequest.CREATE, RangeRequest.DESCEND
    budget = Budget(size=10_000)
    reply = Pace().drive(ranges_module.read_range(txn, request, revision, budget))
    expected = list(read_range(txn, RangeRequest(key=b"k/", range_end=b"k0"), revision).kvs)
    if filtered:
        expected = [kv for kv in expected if kv.mod_revision >= 500]
        assert reply.more
    else:
        expected.sort(key=attrgetter("create_revision"), reverse=True)
    assert list(reply.kvs) == expected[:10]
    with pytest.raises(RequestError):
        Pace().drive(ranges_module.read_range(txn, request, revision, Budget(size=1_000)))


def test_a_target_without_an_order_sorts_one_more_than_the_limit() -> None:
    txn, revision = store((b"a", b"3"), (b"b", b"2"), (b"c", b"1"), (b"d", b"0"))
    request = RangeRequest(
        key=b"a", range_end=b"z", sort_target=RangeRequest.VALUE, limit=2
    )  # fmt: skip
    reply = read_range(txn, request, revision)
    assert [kv.key for kv in reply.kvs] == [b"c", b"b"]
    assert (reply.more, reply.count) == (True, 4)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"min_mod_revision": 8}, b"abd"[:0] + b"ad"),
        ({"max_mod_revision": 7}, b"bce"),
        ({"min_mod_revision": 6, "max_mod_revision": 7}, b"bc"),
        ({"min_create_revision": 4}, b"ace"),
        ({"max_create_revision": 3}, b"bd"),
        ({"min_create_revision": 3, "max_create_revision": 3}, b"b"),
        ({"min_mod_revision": 99}, b""),
        ({"min_mod_revision": 9, "min_create_revision": 3}, b"a"[:0] + b"a"),
    ],
)
def test_filters_are_inclusive_and_do_not_change_the_count(
    filters: dict[str, int], expected: bytes
) -> None:
    txn, revision = store(*PUTS)
    request = RangeRequest(key=b"a", range_end=b"z")
    for name, value in filters.items():
        setattr(request, name, value)
    reply = read_range(txn, request, revision)
    assert b"".join(kv.key for kv in reply.kvs) == expected
    assert (reply.count, reply.more) == (5, False)
    request.limit = 1
    limited = read_range(txn, request, revision)
    assert list(limited.kvs) == list(reply.kvs)[:1]
    assert (limited.count, limited.more) == (5, len(expected) > 1)


def test_values_beyond_the_limit_are_not_touched() -> None:
    txn, revision = store(*[(b"%04d" % number, b"v") for number in range(1000)])
    request = RangeRequest(key=b"\0", range_end=b"\0", limit=3)
    reply = read_range(txn, request, revision)
    assert (reply.count, reply.more, len(reply.kvs)) == (1000, True, 3)
    assert len(txn.touched) == 3


def test_counting_touches_no_value() -> None:
    txn, revision = store(*PUTS)
    reply = read_range(
        txn, RangeRequest(key=b"a", range_end=b"z", count_only=True, limit=2), revision
    )
    assert (reply.count, reply.more, len(reply.kvs)) == (5, False, 0)
    assert txn.touched == []


def test_keys_only_keeps_all_but_the_value() -> None:
    txn, revision = store(*PUTS)
    request = RangeRequest(key=b"b", keys_only=True)
    (kv,) = read_range(txn, request, revision).kvs
    assert (kv.key, kv.create_revision, kv.mod_revision, kv.version) == (b"b", 3, 7, 2)
    assert kv.value == b""


def test_values_that_are_not_sent_still_sort() -> None:
    txn, revision = store((b"a", b"2"), (b"b", b"1"))
    request = RangeRequest(
        key=b"a", range_end=b"z", keys_only=True, sort_target=RangeRequest.VALUE,
        sort_order=RangeRequest.ASCEND,
    )  # fmt: skip
    assert [kv.key for kv in read_range(txn, request, revision).kvs] == [b"b", b"a"]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(fillings, st.one_of(ranges, wide_ranges), st.integers(1, 4))
def test_steps_of_any_size_build_the_models_reply(
    filling: list[PutRequest], request: RangeRequest, keys_max: int
) -> None:
    model = Model()
    for put in filling:
        model.ask(put)
    txn, revision = store(*[(put.key, put.value) for put in filling])
    absolute(request, 1, revision)
    if not request.key:
        return
    try:
        expected = model.ask(request)
    except RefusedError:
        with pytest.raises(RequestError):
            RangeBuilder(txn, request, revision)
        return
    builder = RangeBuilder(txn, request, revision)
    while not builder.step(keys_max):
        pass
    assert builder.response == expected
