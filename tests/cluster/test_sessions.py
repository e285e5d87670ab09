"""Writes with numbers on real nodes: each applied once, whoever dies, however often it is sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from support.cluster import CALL_S_MAX, crash, hand_over, wait_until

from kvbench.cluster import Cluster
from kvclient import AsyncClient, Client
from kvpb.rpc_pb2 import (
    NOSPACE,
    AlarmRequest,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
)
from kvpb.rpc_pb2_grpc import KVStub, MaintenanceStub
from kvpb.session_pb2 import OpenSessionRequest, OpenSessionResponse, WriteId
from kvpb.session_pb2_grpc import SessionStub

pytestmark = pytest.mark.cluster

CRASHES = 6
COUNTERS = 8
NOT_CAPABLE = "etcdserver: not capable"
SHORT_TTL_S = 3
"""The shortest that three members grant."""


class Raw:
    """One node, asked without any cleverness."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._kv, self._sessions = KVStub(channel), SessionStub(channel)
        self._maintenance = MaintenanceStub(channel)

    async def open(self, ttl_s: int = 60) -> OpenSessionResponse:
        request = OpenSessionRequest(ttl_s=ttl_s)
        while True:
            try:
                return await self._sessions.Open(request, timeout=CALL_S_MAX)
            except grpc.aio.AioRpcError as error:  # a young cluster learns what its members know
                if error.details() != NOT_CAPABLE:
                    raise
            await asyncio.sleep(0.05)

    async def put(self, key: str, write: WriteId | bytes) -> PutResponse:
        request = PutRequest(key=key.encode(), value=b"v", prev_kv=True)
        return await self._kv.Put(request, metadata=_metadata(write), timeout=CALL_S_MAX)

    async def out_of_space(self, member: int, *, raised: bool) -> None:
        """Raise the alarm of a member by hand, or take it back."""
        action = AlarmRequest.ACTIVATE if raised else AlarmRequest.DEACTIVATE
        request = AlarmRequest(action=action, memberID=member, alarm=NOSPACE)
        await self._maintenance.Alarm(request, timeout=CALL_S_MAX)

    async def put_again(self, write: WriteId) -> PutResponse:
        """Put the value that a missing key has."""
        request = PutRequest(key=b"none", ignore_value=True)
        return await self._kv.Put(request, metadata=_metadata(write), timeout=CALL_S_MAX)

    async def delete(self, key: str, write: WriteId) -> DeleteRangeResponse:
        request = DeleteRangeRequest(key=key.encode(), prev_kv=True)
        return await self._kv.DeleteRange(request, metadata=_metadata(write), timeout=CALL_S_MAX)


def _metadata(write: WriteId | bytes) -> tuple[tuple[str, bytes], ...]:
    data = write if isinstance(write, bytes) else write.SerializeToString()
    return (("kv-write-id-bin", data),)


@asynccontextmanager
async def at_active(cluster: Cluster) -> AsyncIterator[Raw]:
    active = await cluster.active()
    async with grpc.aio.insecure_channel(active.client) as channel:
        yield Raw(channel)


async def offers_sessions(cluster: Cluster) -> None:
    """Wait until all members are known to offer them: before, writes go without a number."""
    async with at_active(cluster) as raw:
        await raw.open()


Answer = PutResponse | DeleteRangeResponse


def without_header(answer: Answer) -> bytes:
    copy = type(answer).FromString(answer.SerializeToString())
    revision = copy.header.revision
    copy.header.Clear()
    copy.header.revision = revision
    return copy.SerializeToString()


async def test_a_successor_gives_the_answer_of_its_predecessor(cluster: Cluster) -> None:
    async with at_active(cluster) as raw:
        session = (await raw.open()).session
        put = WriteId(session=session, sequence=1)
        delete = WriteId(session=session, sequence=2)
        answers: list[Answer] = [await raw.put("k", put), await raw.delete("k", delete)]
        assert without_header(await raw.put("k", put)) == without_header(answers[0])
    for end in (crash, hand_over, crash):
        if end is crash:
            active = await cluster.active()
            await crash(active)
        else:
            await hand_over(cluster)
        async with at_active(cluster) as raw:
            again: list[Answer] = [await raw.put("k", put), await raw.delete("k", delete)]
        assert list(map(without_header, again)) == list(map(without_header, answers))
        for node in cluster.nodes:
            if not node.running:
                node.start()
        await cluster.wait_in_step()
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        await node.wait_exit()
        node.start()
    await cluster.wait_in_step()
    async with at_active(cluster) as raw:
        assert without_header(await raw.put("k", put)) == without_header(answers[0])
        assert not (await raw.put("k", WriteId(session=session, sequence=3))).HasField("prev_kv")


async def test_without_room_the_answer_of_the_first_time_comes_first(cluster: Cluster) -> None:
    """However short the time since then; what was never applied is refused."""
    async with at_active(cluster) as raw:
        session = (await raw.open()).session
        for sequence in range(1, 11):
            write = WriteId(session=session, sequence=sequence, done_to=sequence - 1)
            answer = await raw.put("k", write)
            await raw.out_of_space(1, raised=True)
            assert without_header(await raw.put("k", write)) == without_header(answer)
            fresh = WriteId(session=session, sequence=sequence + 100)
            with pytest.raises(grpc.aio.AioRpcError, match="database space exceeded"):
                await raw.put("k", fresh)
            await raw.out_of_space(1, raised=False)


async def test_a_client_counts_right_over_crashes_of_the_active(cluster: Cluster) -> None:
    """No write ends in doubt: each is sent until it is answered, and applied once."""
    await offers_sessions(cluster)
    stop = asyncio.Event()

    async def count(client: AsyncClient, key: str) -> int:
        done = 0
        while not stop.is_set():
            result = await client.put(key, str(done), prev_kv=True)
            before = result.prev_kv.version if result.prev_kv is not None else 0
            assert before == done, "a write was lost, or applied twice"
            done += 1
        return done

    async with cluster.connect(30.0) as client:
        keys = [f"counter {number}" for number in range(COUNTERS)]
        counting = [asyncio.create_task(count(client, key)) for key in keys]
        try:
            for _ in range(CRASHES):
                await asyncio.sleep(0.3)
                active = await cluster.active()
                await crash(active)
                await cluster.active()
                await asyncio.sleep(0.2)
                active.start()
                await cluster.wait_in_step()
        finally:
            stop.set()
            counts = await asyncio.gather(*counting)
        for key, done in zip(keys, counts, strict=True):
            found = await client.get(key)
            assert found is not None
            assert found.version == done
        assert min(counts) > CRASHES


async def test_a_client_for_threads_counts_right_over_a_crash(cluster: Cluster) -> None:
    await offers_sessions(cluster)
    active = await cluster.active()
    counted = 0

    def count() -> None:
        nonlocal counted
        with Client(cluster.endpoints, timeout_s=30.0) as client:
            for done in range(1, 401):
                counted = done
                assert client.put("counter", "v", prev_kv=True).revision
            found = client.get("counter")
            assert found is not None
            assert found.version == 400

    counting = asyncio.create_task(asyncio.to_thread(count))
    await wait_until(lambda: counted > 100, "the client counts")
    await crash(active)
    await counting


async def test_a_session_lives_on_while_it_is_used(cluster: Cluster) -> None:
    async with at_active(cluster) as raw:
        opened = await raw.open(ttl_s=1)
        assert opened.ttl_s == SHORT_TTL_S
        for number in range(1, 4):
            await asyncio.sleep(SHORT_TTL_S / 2)
            await raw.put("k", WriteId(session=opened.session, sequence=number))
        for number in range(4, 7):  # refused by the log, so the session was used
            await asyncio.sleep(SHORT_TTL_S / 2)
            with pytest.raises(grpc.aio.AioRpcError, match="key not found"):
                await raw.put_again(WriteId(session=opened.session, sequence=number))
        await asyncio.sleep(1.5 * SHORT_TTL_S)
        with pytest.raises(grpc.aio.AioRpcError, match="session not found") as refused:
            await raw.put("k", WriteId(session=opened.session, sequence=7))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "write",
    [b"\xff", b"", WriteId(session=1), WriteId(session=-1, sequence=1), WriteId(sequence=1)],
    ids=["no message", "empty", "no number", "negative session", "no session"],
)
async def test_a_number_that_is_none_is_refused(cluster: Cluster, write: WriteId | bytes) -> None:
    async with at_active(cluster) as raw:
        with pytest.raises(grpc.aio.AioRpcError, match="no valid write id") as refused:
            await raw.put("k", write)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
