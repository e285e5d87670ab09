"""The stream of a snapshot: whole, in order, with its hash; and gone with whoever wanted it."""

import asyncio
import hashlib
import threading

import pytest

from kvpb.rpc_pb2 import SnapshotResponse
from kvserver.api import snapshots as module
from kvserver.api.snapshots import BACKUPS_MAX, BLOB_BYTES, READ_BYTES, Snapshots
from kvserver.errors import SnapshotFailedError, TooManyRequestsError


class MemoryBackup:
    """The bytes of a copy, and whether somebody still holds it."""

    number = 1

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.total = len(data)
        self.digest = hashlib.sha256(data).digest()
        self.closed = False

    def read(self, offset: int, size: int) -> bytes:
        assert not self.closed
        return self.data[offset : offset + size]

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Maker:
    """Makes copies of `data`, each only once `go` is set."""

    def __init__(self, data: bytes = b"x" * (3 * BLOB_BYTES)) -> None:
        self.data = data
        self.go = threading.Event()
        self.go.set()
        self.made: list[MemoryBackup] = []
        self.given_up: list[threading.Event] = []

    def __call__(self, given_up: threading.Event) -> MemoryBackup:
        self.given_up.append(given_up)
        assert self.go.wait(30)
        backup = MemoryBackup(self.data)
        self.made.append(backup)
        return backup

    @property
    def open(self) -> int:
        return sum(not backup.closed for backup in self.made)


@pytest.mark.parametrize(
    "size", [0, 1, BLOB_BYTES, BLOB_BYTES + 1, READ_BYTES, 2 * READ_BYTES + 4096]
)
async def test_blobs_in_order_and_the_hash_as_the_last_one(size: int) -> None:
    maker = Maker(bytes(i * 31 % 251 for i in range(size)))
    responses = [each async for each in Snapshots(maker, "3.5.0").stream()]
    *blobs, last = responses
    assert b"".join(each.blob for each in blobs) == maker.data
    assert all(0 < len(each.blob) <= BLOB_BYTES for each in blobs)
    left = size
    for each in blobs:
        left -= len(each.blob)
        assert each.remaining_bytes == left
    assert last == SnapshotResponse(blob=hashlib.sha256(maker.data).digest(), version="3.5.0")
    assert {each.version for each in responses} == {"3.5.0"}
    assert maker.open == 0


async def test_so_many_at_once() -> None:
    maker = Maker()
    snapshots = Snapshots(maker, "")
    streams = [snapshots.stream() for _ in range(BACKUPS_MAX)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(TooManyRequestsError):
        await anext(snapshots.stream())
    await streams[0].aclose()
    assert [backup.closed for backup in maker.made].count(True) == 1
    assert [each async for each in snapshots.stream()]
    await streams[1].aclose()
    assert maker.open == 0


async def test_a_client_that_leaves_while_the_copy_is_made() -> None:
    maker = Maker()
    maker.go.clear()
    snapshots = Snapshots(maker, "")
    for _ in range(BACKUPS_MAX):
        waiting = asyncio.ensure_future(anext(snapshots.stream()))
        while not maker.given_up or maker.given_up[-1].is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert maker.given_up[-1].is_set()
    with pytest.raises(TooManyRequestsError):  # the threads still run
        await anext(snapshots.stream())
    maker.go.set()
    while len(maker.made) < BACKUPS_MAX or maker.open:
        await asyncio.sleep(0.001)
    assert [each async for each in snapshots.stream()]


def test_a_node_that_ends_does_not_wait_for_a_copy_that_is_made() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def make(_: threading.Event) -> MemoryBackup:
        begun.set()
        go.wait(5)
        ended.set()
        return MemoryBackup(b"")

    async def begin() -> None:
        waiting = asyncio.ensure_future(anext(Snapshots(make, "").stream()))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()

    asyncio.run(begin())
    assert not ended.is_set()
    go.set()


async def test_a_failure_frees_the_place() -> None:
    def fail(given_up: threading.Event) -> MemoryBackup:
        raise SnapshotFailedError

    snapshots = Snapshots(fail, "")
    for _ in range(2 * BACKUPS_MAX):
        with pytest.raises(SnapshotFailedError):
            await anext(snapshots.stream())
        await asyncio.sleep(0)  # the place is freed by a callback


async def test_a_client_that_stops_reading_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    snapshots = Snapshots(maker, "")
    taken: list[SnapshotResponse] = []

    async def write(response: SnapshotResponse) -> None:
        taken.append(response)
        if len(taken) % 2 == 0:
            await asyncio.Event().wait()

    monkeypatch.setattr(module, "TAKEN_S", 0.01)
    for _ in range(2 * BACKUPS_MAX):
        with pytest.raises(TooManyRequestsError):
            await asyncio.wait_for(snapshots.send(write), 30)
    assert len(taken) == 4 * BACKUPS_MAX
    assert maker.open == 0


async def test_who_reads_slowly_gets_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    taken: list[bytes] = []

    async def write(response: SnapshotResponse) -> None:
        await asyncio.sleep(0.6)
        taken.append(response.blob)

    monkeypatch.setattr(module, "TAKEN_S", 2.0)  # less than for all four together
    await Snapshots(maker, "").send(write)
    assert b"".join(taken[:-1]) == maker.data
