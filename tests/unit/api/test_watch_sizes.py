"""A response of a watch is bounded by all that it carries, not by some of it."""

from types import SimpleNamespace
from typing import cast

import pytest

from kvpb.rpc_pb2 import ResponseHeader, WatchResponse
from kvserver.api.door import Door
from kvserver.api.watch import (
    FRAGMENT_BYTES,
    RESPONSE_BYTES,
    RESPONSE_HEAD_BYTES,
    WatchStream,
)
from kvserver.mvcc.history import DELETE, PUT, Change
from kvserver.mvcc.keyvalue import Row, encode_row
from kvserver.pipeline.watching import News, Watcher

HUGE = (1 << 63) - 1
MIB = 1 << 20


class Client:
    """One watcher on a stream, and what it was sent."""

    def __init__(self, *, prev_kv: bool = False, fragment: bool = False) -> None:
        door = SimpleNamespace(
            fill=self._fill, watch_progress_s=600.0,
            clock=SimpleNamespace(monotonic=lambda: 0.0),
        )  # fmt: skip
        self.stream = WatchStream(cast("Door", door))
        self.watcher = Watcher(
            HUGE, (b"", None), self.stream, next_revision=1, prev_kv=prev_kv, fragment=fragment
        )

    def _fill(self, header: ResponseHeader, revision: int | None) -> None:
        header.cluster_id = header.member_id = header.raft_term = (1 << 64) - 1
        header.revision = HUGE

    def send(self, changes: list[Change]) -> int | None:
        return self.stream.send(self.watcher, changes, News(HUGE, None))

    def responses(self) -> list[bytes]:
        found = [b"".join(parts) for parts, _ in self.stream._queue]
        self.stream._queue.clear()
        return found

    def all(self, changes: list[Change]) -> list[WatchResponse]:
        """Send until all is taken; what came."""
        left_from: int | None = 0
        while left_from is not None:
            left_from = self.send([c for c in changes if c.revision >= left_from])
        return [WatchResponse.FromString(each) for each in self.responses()]


def deletion(revision: int, before: int, key: bytes = b"k", sub: int = 0) -> Change:
    """Of a value of this size."""
    previous = encode_row(Row(1, 1, 1, 0, bytes(before)))
    return Change(revision, sub, DELETE, key, b"", previous)


def put(revision: int, size: int, key: bytes = b"k", sub: int = 0) -> Change:
    return Change(revision, sub, PUT, key, encode_row(Row(1, revision, 2, HUGE, bytes(size))))


@pytest.mark.parametrize("fragment", [False, True])
def test_the_rows_before_changes_count(fragment: bool) -> None:
    """Else a thousand deletions would be a response with a thousand large values."""
    changes = [deletion(revision, MIB // 2) for revision in range(2, 42)]
    client = Client(prev_kv=True, fragment=fragment)
    assert client.send(changes) == 6, "what is left comes later, when there is room"
    sizes = [len(each) for each in client.responses()]
    assert max(sizes) <= RESPONSE_BYTES + MIB
    found = Client(prev_kv=True, fragment=fragment).all(changes)
    assert [e.kv.mod_revision for each in found for e in each.events] == list(range(2, 42))
    assert Client(fragment=fragment).send(changes) is None, "who does not want them gets all"


def test_keys_count() -> None:
    changes = [put(revision, 0, key=b"k" * 480) for revision in range(2, 10_002)]
    found = Client().all(changes)
    assert len(found) == -(-sum(480 + 40 for _ in changes) // RESPONSE_BYTES)
    assert max(each.ByteSize() for each in found) <= RESPONSE_BYTES + 1000


def test_a_revision_is_never_spread_over_responses() -> None:
    of_one = [put(2, MIB, sub=sub) for sub in range(5)]
    client = Client()
    assert client.send([*of_one, put(3, 1)]) == 3
    (response,) = client.responses()
    assert len(WatchResponse.FromString(response).events) == 5


def test_a_response_is_made_once_for_all_who_get_the_same() -> None:
    changes = [put(revision, MIB) for revision in range(2, 7)]
    news = News(HUGE, None)
    one, other = Client(), Client()
    for each in (one, other):
        assert each.stream.send(each.watcher, changes, news) == 4
    assert one.stream._queue[0][0][1] is other.stream._queue[0][0][1]


@pytest.mark.parametrize("beyond", range(-60, 100, 10))
def test_no_fragment_is_larger_than_it_may_be(beyond: int) -> None:
    """Key, value, the row before, header and frames together, to the byte."""
    first = put(2, FRAGMENT_BYTES // 2)
    client = Client(prev_kv=True, fragment=True)
    client.send([first])
    (alone,) = client.responses()
    rest = FRAGMENT_BYTES - len(alone) + beyond
    second = put(2, rest - 60, key=b"l", sub=1)
    client.send([first, second])
    fragments = [len(each) for each in client.responses()]
    assert max(fragments) <= FRAGMENT_BYTES
    assert len(fragments) == 2 or fragments[0] > FRAGMENT_BYTES - 2 * RESPONSE_HEAD_BYTES


def test_a_large_event_is_a_fragment_by_itself() -> None:
    found = Client(fragment=True).all([put(2, 1), put(2, 3 * MIB, sub=1), put(2, 1, sub=2)])
    assert [(len(each.events), each.fragment) for each in found] == [
        (1, True), (1, True), (1, False)
    ]  # fmt: skip


def test_the_head_of_a_response_is_no_larger_than_reckoned() -> None:
    client = Client(fragment=True)
    changes = [put(2, 10, sub=0), put(2, FRAGMENT_BYTES, sub=1)]
    client.send(changes)
    first, _ = client.responses()
    parsed = WatchResponse.FromString(first)
    parsed.ClearField("events")
    assert parsed.fragment
    assert parsed.ByteSize() <= RESPONSE_HEAD_BYTES
