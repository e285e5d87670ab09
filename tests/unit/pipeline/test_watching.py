"""Watchers: every change of their keys once, in order, whole revisions, whatever happens."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_storage import MemoryStorage

from kvpb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest
from kvserver.mvcc.history import Change
from kvserver.mvcc.interval import bounds, covers
from kvserver.mvcc.store import Writer
from kvserver.pipeline import watching
from kvserver.pipeline.watching import News, Watcher, WatcherIndex, WatchHub, prefix_end

KEYS = (b"a", b"aa", b"ab", b"b", b"\xff", b"\xff\xff", b"\0")
INTERVALS = [
    (b"a", b""), (b"a", b"b"), (b"aa", b"ab"), (b"a", b"\0"), (b"\0", b"\0"), (b"\xff", b"\0"),
    (b"aa", b"b"), (b"zz", b""),
]  # fmt: skip


class Client:
    """A stream that may be full."""

    def __init__(self) -> None:
        self.full = False
        self.takes = 1 << 30
        """Changes at a time, up to the end of a revision."""
        self.got: list[Change] = []
        self.batches: list[list[int]] = []
        self.compacted_at: int | None = None

    def send(self, watcher: Watcher, changes: list[Change], news: News) -> int | None:
        assert changes
        assert not self.full
        assert news.revision >= changes[-1].revision
        left = [c for c in changes[self.takes :] if c.revision != changes[self.takes - 1].revision]
        taken = changes[: len(changes) - len(left)]
        self.got += taken
        self.batches.append([change.revision for change in taken])
        return left[0].revision if left else None

    def compacted(self, watcher: Watcher, revision: int) -> None:
        self.compacted_at = revision


class Bench:
    """A store whose changes are published, and become visible later."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.writer = Writer(self.storage.writer(), 1)
        self.index = 1
        self.visible = 1
        self.failures: list[BaseException] = []
        self.hub = WatchHub(self.storage, lambda: self.visible, self.failures.append)
        self.all: list[Change] = []

    def apply(self, *requests: PutRequest | DeleteRangeRequest | TxnRequest) -> None:
        before = len(self.writer.changes)
        for request in requests:
            if isinstance(request, PutRequest):
                self.writer.put(request)
            elif isinstance(request, DeleteRangeRequest):
                self.writer.delete_range(request)
            else:
                self.writer.txn(request)
        self.writer.flush()
        self.index += 1
        changes = self.writer.changes[before:]
        self.all += changes
        if changes:
            self.hub.publish(self.index, changes)

    def commit(self) -> None:
        self.storage.commit()
        self.visible = self.index
        self.writer = Writer(self.storage.writer(), self.writer.revision)

    def watch(self, key: bytes, range_end: bytes, start: int = 0) -> tuple[Watcher, Client]:
        client, newest = Client(), self.writer.revision
        watcher = Watcher(1, bounds(key, range_end), client, next_revision=start or newest + 1)
        self.hub.add(watcher, newest)
        return watcher, client

    def expected(self, watcher: Watcher, start: int) -> list[tuple[int, int]]:
        return [
            (change.revision, change.sub)
            for change in self.all
            if change.revision >= start and covers(watcher.interval, change.key)
        ]


def seen(client: Client) -> list[tuple[int, int]]:
    return [(change.revision, change.sub) for change in client.got]


async def settle(bench: Bench) -> None:
    bench.commit()
    for _ in range(200):
        await asyncio.sleep(0)
    await asyncio.sleep(watching.FULL_RETRY_S * 2)
    assert bench.failures == []


keys = st.sampled_from(KEYS)
writes = st.one_of(
    st.builds(PutRequest, key=keys, value=st.just(b"v")),
    st.builds(DeleteRangeRequest, key=keys, range_end=st.sampled_from([b"", b"\0"])),
    st.builds(
        lambda one, two: TxnRequest(
            success=[
                RequestOp(request_put=PutRequest(key=one)),
                RequestOp(request_put=PutRequest(key=two)),
            ]
        ),
        st.sampled_from(KEYS[:3]),
        st.sampled_from(KEYS[3:]),
    ),
)
steps = st.one_of(
    st.lists(writes, min_size=1, max_size=3),
    st.sampled_from(["commit", "full", "room", "breathe", "watch", "little", "much"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25), st.sampled_from(INTERVALS), st.integers(0, 12))
def test_no_gap_no_duplicate_whole_revisions(
    script: list[object], interval: tuple[bytes, bytes], start: int
) -> None:
    async def run() -> None:
        bench = Bench()
        watched: list[tuple[Watcher, Client, int]] = []
        for step in ["watch", *script, "watch"]:
            if isinstance(step, list):
                bench.apply(*step)
            elif step == "watch":
                first = min(start, bench.writer.revision) or bench.writer.revision + 1
                watched.append((*bench.watch(*interval, start=first), first))
            elif step == "commit":
                bench.commit()
            elif step == "breathe":
                await asyncio.sleep(0)
            elif step in ("little", "much"):
                for _, client, _ in watched:
                    client.takes = 1 if step == "little" else 1 << 30
            else:
                for _, client, _ in watched:
                    client.full = step == "full"
        for _, client, _ in watched:
            client.full = False
        await settle(bench)
        bench.apply(PutRequest(key=b"a"), PutRequest(key=b"\xff"))
        await settle(bench)
        for watcher, client, first in watched:
            assert seen(client) == bench.expected(watcher, first)
            assert watcher.live
            last = [batch[-1] for batch in client.batches]
            assert last == sorted(set(last)), "a revision is never spread over two responses"
        bench.hub.close()

    asyncio.run(run())


async def test_a_long_history_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SLICE_CHANGES", 3)
    bench = Bench()
    for _ in range(20):
        bench.apply(PutRequest(key=b"a"), PutRequest(key=b"b"))
    bench.commit()
    watcher, client = bench.watch(b"a", b"", start=2)
    assert not watcher.live
    await settle(bench)
    assert watcher.live
    assert len(client.batches) > 5
    assert seen(client) == bench.expected(watcher, 2)
    bench.hub.close()


async def test_large_values_are_read_some_at_a_time() -> None:
    """However many changes that are: the loop serves others in between."""
    bench = Bench()
    large, both = bytes(watching.SLICE_BYTES // 4), (b"a", b"b")
    for _ in range(6):
        puts = [RequestOp(request_put=PutRequest(key=key, value=large)) for key in both]
        bench.apply(TxnRequest(success=puts))
    bench.commit()
    watcher, client = bench.watch(b"a", b"c", start=2)
    assert (bench.hub.count, bench.hub.count_behind) == (1, 1)
    await settle(bench)
    assert (bench.hub.count, bench.hub.count_behind) == (1, 0)
    assert client.batches == [[2, 2, 3, 3], [4, 4, 5, 5], [6, 6, 7, 7]], "whole revisions"
    assert seen(client) == bench.expected(watcher, 2)
    bench.hub.close()


async def test_one_that_takes_little_at_a_time_gets_the_rest_later() -> None:
    bench = Bench()
    watcher, client = bench.watch(b"a", b"c")
    client.takes = 1
    puts = [PutRequest(key=key) for key in (b"a", b"b", b"a")]
    bench.apply(*puts, TxnRequest(success=[RequestOp(request_put=each) for each in puts[:2]]))
    assert client.batches == [[2]]
    assert not watcher.live
    await settle(bench)
    assert client.batches == [[2], [3], [4], [5, 5]]
    assert watcher.live
    bench.hub.close()


async def test_one_that_reads_nothing_costs_no_memory_and_loses_nothing() -> None:
    bench = Bench()
    watcher, client = bench.watch(b"a", b"")
    client.full = True
    for _ in range(50):
        bench.apply(PutRequest(key=b"a"))
        bench.commit()
    bench.apply(PutRequest(key=b"other"))
    assert not watcher.live
    assert client.got == []
    assert len(bench.hub._recent) <= 2
    client.full = False
    await settle(bench)
    assert seen(client) == bench.expected(watcher, 2)
    bench.hub.close()


async def test_who_needs_what_is_compacted_is_told() -> None:
    bench = Bench()
    for _ in range(5):
        bench.apply(PutRequest(key=b"a"))
    bench.writer.compact(CompactionRequest(revision=4))
    bench.commit()
    _, late = bench.watch(b"a", b"", start=3)
    _, just = bench.watch(b"a", b"", start=4)
    await settle(bench)
    assert (late.compacted_at, late.got) == (4, [])
    assert just.compacted_at is None
    assert [change.revision for change in just.got] == [4, 5, 6]
    bench.hub.close()


async def test_a_failure_while_catching_up_is_told() -> None:
    bench = Bench()
    bench.apply(PutRequest(key=b"a"))
    bench.commit()
    _, client = bench.watch(b"a", b"", start=2)
    client.send = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    for _ in range(5):
        await asyncio.sleep(0)
    assert [type(failure) for failure in bench.failures] == [ZeroDivisionError]


async def test_one_that_left_hears_nothing() -> None:
    bench = Bench()
    watcher, client = bench.watch(b"a", b"")
    bench.hub.remove(watcher)
    bench.apply(PutRequest(key=b"a"))
    behind, other = bench.watch(b"a", b"", start=2)
    bench.hub.remove(behind)
    await settle(bench)
    assert client.got == other.got == []


async def test_a_future_revision_is_waited_for() -> None:
    bench = Bench()
    _, client = bench.watch(b"a", b"", start=4)
    for _ in range(4):
        bench.apply(PutRequest(key=b"a"))
    assert [change.revision for change in client.got] == [4, 5]


@given(st.lists(st.sampled_from(INTERVALS), max_size=8), keys)
def test_the_index_finds_whom_a_comparison_finds(
    intervals: list[tuple[bytes, bytes]], key: bytes
) -> None:
    index, watchers = WatcherIndex(), []
    for interval in intervals:
        watcher = Watcher(1, bounds(*interval), Client(), next_revision=1)
        index.add(watcher)
        watchers.append(watcher)
    assert set(index.of(key)) == {w for w in watchers if covers(w.interval, key)}
    assert len(list(index.of(key))) == len(set(index.of(key)))
    assert index.count() == len(watchers)
    for watcher in watchers[::2]:
        index.remove(watcher)
    assert set(index.of(key)) == {w for w in watchers[1::2] if covers(w.interval, key)}
    assert index.count() == len(watchers[1::2])


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", None), (b"", None), (b"a\0", b"a\1")],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes | None) -> None:
    assert prefix_end(prefix) == end
