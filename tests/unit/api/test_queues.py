"""Places in queues: whoever goes away leaves none behind, and takes none from who comes."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest
from support.memory_storage import MemoryStorage
from support.reading import read_range
from support.rooms import Rooms

from kvpb.rpc_pb2 import RangeRequest, RangeResponse, TxnRequest, TxnResponse
from kvserver.api import queues as module
from kvserver.api.door import Door
from kvserver.api.kv import KvServicer
from kvserver.api.queues import Queues
from kvserver.errors import LeaseNotFoundError, NotActiveError, RequestError
from kvserver.mvcc.store import Writer
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.proposer import Proposer

NAME = b"lock"
TRANSIT_S = 0.002
SOON_S = 20 * TRANSIT_S


class Role:
    """Whether this node is the active."""

    def __init__(self) -> None:
        self._serves = asyncio.Event()
        self._serves.set()

    def park(self) -> None:
        self._serves.clear()

    def serve(self) -> None:
        self._serves.set()

    async def require_active(self) -> None:
        await self._serves.wait()


class Kv:
    """A store behind a log: commands wait for their turn, in the order of the calls."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._writer = Writer(MemoryStorage().writer(), 1)
        self.failure: RequestError | None = None
        """What the next command ends with, without being done."""
        self._log: asyncio.Queue[tuple[Callable[[], Any], asyncio.Future[Any]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            command, future = await self._log.get()
            await asyncio.sleep(TRANSIT_S)
            failure, self.failure = self.failure, None
            result = command() if failure is None else None
            if future.done():
                continue
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

    async def _do(self, command: Callable[[], Any]) -> Any:
        await self._role.require_active()
        future = asyncio.get_running_loop().create_future()
        self._log.put_nowait((command, future))
        return await future

    async def txn(self, request: TxnRequest) -> TxnResponse:
        for op in request.success:
            if op.HasField("request_put"):
                op.request_put.lease = 0  # the store knows none
        return cast("TxnResponse", await self._do(lambda: self._writer.txn(request)))

    async def range(self, request: RangeRequest) -> RangeResponse:
        return cast("RangeResponse", await self._do(lambda: self._read(request)))

    def _read(self, request: RangeRequest) -> RangeResponse:
        found = read_range(self._writer._txn, request, self._writer.revision)
        found.header.revision = self._writer.revision
        return found

    def keys(self) -> list[bytes]:
        everything = RangeRequest(key=b"\0", range_end=b"\0")
        return [kv.key for kv in self._read(everything).kvs]

    async def unlock(self, lease: int) -> None:
        request = TxnRequest()
        request.success.add().request_delete_range.key = key_of(lease)
        await self._do(lambda: self._writer.txn(request))


class NoNews:
    """Stands for what tells of changes: nothing arrives."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def next(self) -> None:
        await asyncio.Event().wait()


class Bench:
    def __init__(self) -> None:
        self.role = Role()
        self.kv = Kv(self.role)
        door = cast("Door", SimpleNamespace(role=self.role))
        self.queues = Queues(door, cast("KvServicer", self.kv))

    def lock(self, lease: int) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.queues.take(NAME, lease, b""))

    async def held_and_waited_for(self) -> "asyncio.Task[Any]":
        """1 has the lock; the call of 2, which waits for it."""
        await self.lock(1)
        waiting = self.lock(2)
        await asyncio.sleep(SOON_S)
        assert self.kv.keys() == [key_of(1), key_of(2)]
        return waiting

    async def settle(self) -> None:
        await asyncio.sleep(SOON_S)
        assert not self.queues._newest, "nobody is here any more"
        assert not self.queues._withdrawals


def key_of(lease: int) -> bytes:
    return NAME + b"/%x" % lease


@pytest.fixture(autouse=True)
def _without_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Following", NoNews)


async def test_who_gives_up_waiting_gives_up_his_place() -> None:
    bench = Bench()
    waiting = await bench.held_and_waited_for()
    waiting.cancel()
    await bench.settle()
    assert bench.kv.keys() == [key_of(1)]


async def test_a_withdrawal_leaves_alone_who_asks_again() -> None:
    """The same client gives up and asks again at once; the lock has become free meanwhile."""
    bench = Bench()
    waiting = await bench.held_and_waited_for()
    await bench.kv.unlock(1)
    waiting.cancel()
    await asyncio.sleep(0)
    place, _ = await bench.queues.take(NAME, 2, b"")  # its first step is before the withdrawal's
    assert place.first
    await bench.settle()
    assert bench.kv.keys() == [key_of(2)], "what he was told he holds"


async def test_a_withdrawal_that_is_in_the_log_first_makes_who_asks_again_stand_anew() -> None:
    bench = Bench()
    waiting = await bench.held_and_waited_for()
    third = bench.lock(3)
    await asyncio.sleep(SOON_S)
    waiting.cancel()
    await asyncio.sleep(TRANSIT_S / 2)
    again = bench.lock(2)
    await asyncio.sleep(SOON_S)
    assert bench.kv.keys() == [key_of(1), key_of(2), key_of(3)]
    third.cancel()
    again.cancel()
    await bench.settle()
    assert bench.kv.keys() == [key_of(1)]


async def test_a_withdrawal_that_was_parked_looks_again() -> None:
    bench = Bench()
    waiting = await bench.held_and_waited_for()
    await bench.kv.unlock(1)
    bench.role.park()
    waiting.cancel()
    await asyncio.sleep(SOON_S)
    again = bench.lock(2)
    await asyncio.sleep(SOON_S)
    bench.role.serve()
    place, _ = await again
    assert place.first
    assert place.found is not None, "the place was not given up"
    await bench.settle()
    assert bench.kv.keys() == [key_of(2)]


@pytest.mark.parametrize("lease", [1, 2])
async def test_who_goes_away_while_he_queues_up_leaves_no_place_behind(lease: int) -> None:
    """First or not: nobody knows of the place, and its lease may live on for long."""
    bench = Bench()
    for each in range(1, lease):
        await bench.lock(each)
    call = bench.lock(lease)
    await asyncio.sleep(TRANSIT_S / 2)
    call.cancel()
    await bench.settle()
    assert bench.kv.keys() == [key_of(each) for each in range(1, lease)]


async def test_a_place_that_is_asked_for_again_before_it_is_known_is_kept() -> None:
    bench = Bench()
    call = bench.lock(1)
    await asyncio.sleep(TRANSIT_S / 2)
    call.cancel()
    await asyncio.sleep(0)
    place, _ = await bench.lock(1)
    assert place.first
    await bench.settle()
    assert bench.kv.keys() == [key_of(1)]


async def test_who_holds_the_lock_does_not_lose_it_by_asking_again() -> None:
    bench = Bench()
    await bench.lock(1)
    again = bench.lock(1)
    await asyncio.sleep(TRANSIT_S / 2)
    again.cancel()
    await bench.settle()
    assert bench.kv.keys() == [key_of(1)]


async def test_a_place_that_could_not_be_taken_needs_no_withdrawal() -> None:
    bench = Bench()
    bench.kv.failure = LeaseNotFoundError()
    call = bench.lock(1)
    await asyncio.sleep(TRANSIT_S / 2)
    call.cancel()
    await bench.settle()
    bench.kv.failure = LeaseNotFoundError()
    with pytest.raises(LeaseNotFoundError):
        await bench.lock(1)
    await bench.settle()
    assert bench.kv.keys() == []


async def test_an_active_proposes_without_a_suspension() -> None:
    """Withdrawals rest on it: what they have looked at holds until they are in the queue."""
    proposer = Proposer(
        Limits(), SimpleNamespace(monotonic=lambda: 0.0), knock=lambda: None,
        log_time_ms=lambda: 0, feature_level=lambda: 0, room=Rooms(),
    )  # fmt: skip
    door = SimpleNamespace(role=Role(), proposer=proposer)
    request = TxnRequest()
    request.success.add().request_delete_range.key = b"key"
    call = KvServicer(cast("Door", door)).txn(request)
    call.send(None)  # its first step
    assert proposer.pending == 1
    with pytest.raises(NotActiveError):
        call.throw(NotActiveError())
