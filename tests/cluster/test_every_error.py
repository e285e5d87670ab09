"""Every error of the catalogue is provoked over the wire, and arrives with its code and text."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from support.cluster import crash, raw_call, wait_until
from support.etcd import free_ports

from kvbench.cluster import Cluster, Node
from kvpb.rpc_pb2 import (
    AuthenticateRequest,
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    MemberAddRequest,
    MemberAddResponse,
    MemberPromoteRequest,
    MemberRemoveRequest,
    MoveLeaderRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    SnapshotRequest,
    StatusRequest,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvpb.rpc_pb2_grpc import ClusterStub, MaintenanceStub, WatchStub
from kvpb.session_pb2 import OpenSessionRequest, WriteId
from kvpb.session_pb2_grpc import SessionStub
from kvserver import errors
from kvserver.api.status import CATALOGUE, Status

pytestmark = pytest.mark.cluster

NOT_BY_A_CALL = {
    errors.MemberExistsError: "ids of new members are drawn from 2**63",
    errors.NotCapableError: "takes a member of an older version",
}
KV, LEASE, CLUSTER, MAINTENANCE = (
    f"/etcdserverpb.{name}" for name in ("KV", "Lease", "Cluster", "Maintenance")
)
LARGE_BYTES = 64 << 20

DIRECT = (("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1))

MADE_ELSEWHERE = {
    errors.TooManyRequestsError: "test_more_than_may_wait",
    errors.NoSpaceError: "test_quota.py",
    errors.DefragmentFailedError: "tests/unit/api/test_status.py",  # no call makes it fail
    errors.CorruptClusterError: "test_comparison.py",
    errors.UnverifiedError: "tests/unit/api/test_unverified.py",  # for a moment only
}

put = PutRequest(key=b"a", value=b"v")
twice = TxnRequest(success=[RequestOp(request_put=put)] * 2)
many = TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"a"))] * 129)

WRONG: dict[type[errors.RequestError], tuple[str, Message]] = {
    errors.EmptyKeyError: ("Put", PutRequest(value=b"v")),
    errors.KeyTooLongError: ("Put", PutRequest(key=b"k" * 481)),
    errors.KeyNotFoundError: ("Put", PutRequest(key=b"none", ignore_value=True)),
    errors.ValueProvidedError: ("Put", PutRequest(key=b"a", value=b"v", ignore_value=True)),
    errors.LeaseProvidedError: ("Put", PutRequest(key=b"a", lease=7, ignore_lease=True)),
    errors.LeaseNotFoundError: ("Put", PutRequest(key=b"a", lease=7)),
    errors.TooManyOpsError: ("Txn", many),
    errors.DuplicateKeyError: ("Txn", twice),
    errors.InvalidSortOptionError: ("Range", RangeRequest(key=b"a", sort_order=9)),  # type: ignore[arg-type]
    errors.RequestTooLargeError: ("Put", PutRequest(key=b"a", value=b"x" * 1_600_000)),
    errors.FutureRevisionError: ("Range", RangeRequest(key=b"a", revision=1 << 40)),
    errors.CompactedError: ("Compact", CompactionRequest(revision=2)),  # for the second time
}


async def answer(node: Node, method: str, request: Message) -> Status:
    return Status(*await raw_call(node.client, method, request.SerializeToString()))


async def of_the_keys(active: Node) -> dict[type[errors.RequestError], Status]:
    for _ in range(2):
        assert (await answer(active, f"{KV}/Put", put)).code is grpc.StatusCode.OK
    done = await answer(active, f"{KV}/Compact", CompactionRequest(revision=2))
    assert done.code is grpc.StatusCode.OK
    return {
        kind: await answer(active, f"{KV}/{method}", request)
        for kind, (method, request) in WRONG.items()
    }


async def of_much(active: Node) -> dict[type[errors.RequestError], Status]:
    """What looks at too many keys, and what would answer too much."""
    puts = [RequestOp(request_put=PutRequest(key=b"many/%03d" % n)) for n in range(100)]
    assert (await answer(active, f"{KV}/Txn", TxnRequest(success=puts))).code is grpc.StatusCode.OK
    compares = [
        Compare(key=b"many/", range_end=b"many0", target=Compare.VERSION,
                result=Compare.GREATER, version=0)
    ] * 128  # fmt: skip
    ranges = [RequestOp(request_range=RangeRequest(key=b"many/", range_end=b"many0"))] * 100
    expensive = TxnRequest(compare=compares, success=[*ranges, puts[0]])
    value = b"v" * 1_400_000
    for number in range(LARGE_BYTES // len(value) + 1):
        put_large = PutRequest(key=b"large/%d" % number, value=value)
        assert (await answer(active, f"{KV}/Put", put_large)).code is grpc.StatusCode.OK
    everything = RangeRequest(key=b"large/", range_end=b"large0")
    return {
        errors.WriteTooExpensiveError: await answer(active, f"{KV}/Txn", expensive),
        errors.ResponseTooLargeError: await answer(active, f"{KV}/Range", everything),
    }


async def of_the_leases(active: Node) -> dict[type[errors.RequestError], Status]:
    lease = LeaseGrantRequest(TTL=60, ID=7777)
    assert (await answer(active, f"{LEASE}/LeaseGrant", lease)).code is grpc.StatusCode.OK
    return {
        errors.LeaseExistsError: await answer(active, f"{LEASE}/LeaseGrant", lease),
        errors.LeaseTtlTooLargeError: await answer(
            active, f"{LEASE}/LeaseGrant", LeaseGrantRequest(TTL=9_000_000_001)
        ),
    }


async def of_users(node: Node) -> dict[type[errors.RequestError], Status]:
    somebody = AuthenticateRequest(name="root", password="root")
    return {
        errors.AuthNotEnabledError: await answer(node, "/etcdserverpb.Auth/Authenticate", somebody)
    }


async def of_the_sessions(active: Node) -> dict[type[errors.RequestError], Status]:
    async with grpc.aio.insecure_channel(active.client, DIRECT) as channel:
        opened = await SessionStub(channel).Open(OpenSessionRequest(ttl_s=60), timeout=10)

    async def numbered(sequence: int, session: int = opened.session, **more: int) -> Status:
        write = WriteId(session=session, sequence=sequence, done_to=more.get("done_to", 0))
        request: Message = DeleteRangeRequest(key=b"large", prev_kv=True)
        method = "DeleteRange"
        if "put" in more:
            method, request = "Put", PutRequest(key=b"a")
        metadata = [("kv-write-id-bin", write.SerializeToString())]
        body = request.SerializeToString()
        return Status(*await raw_call(active.client, f"{KV}/{method}", body, metadata))

    large = PutRequest(key=b"large", value=b"v" * 10_000)
    assert (await answer(active, f"{KV}/Put", large)).code is grpc.StatusCode.OK
    assert (await numbered(2)).code is grpc.StatusCode.OK
    return {
        errors.WriteIdError: await numbered(0),
        errors.SessionNotFoundError: await numbered(1, session=1),
        errors.AnswerTooLargeError: await numbered(2),
        errors.WriteIdReusedError: await numbered(2, put=1),
        errors.WindowFullError: await numbered(1025),
        errors.WriteForgottenError: await numbered(3, done_to=3),
    }


async def of_the_members(
    active: Node, others: Sequence[Node], ids: dict[str, int]
) -> dict[type[errors.RequestError], Status]:
    urls = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    found = {
        errors.MemberNotFoundError: await answer(
            active, f"{CLUSTER}/MemberRemove", MemberRemoveRequest(ID=1)
        ),
        errors.PeerUrlInvalidError: await answer(
            active, f"{CLUSTER}/MemberAdd", MemberAddRequest(peerURLs=["nonsense"])
        ),
        errors.PeerUrlExistsError: await answer(
            active,
            f"{CLUSTER}/MemberAdd",
            MemberAddRequest(peerURLs=[f"http://{active.plan.peer}"]),
        ),
        errors.NotLearnerError: await answer(
            active, f"{CLUSTER}/MemberPromote", MemberPromoteRequest(ID=ids[active.name])
        ),
        errors.BadTransfereeError: await answer(
            active, f"{MAINTENANCE}/MoveLeader", MoveLeaderRequest(targetID=1)
        ),
        errors.NotLeaderError: await answer(
            others[0], f"{MAINTENANCE}/MoveLeader", MoveLeaderRequest(targetID=1)
        ),
        errors.NotActiveError: await answer(others[0], f"{KV}/Put", put),
    }
    async with grpc.aio.insecure_channel(active.client, DIRECT) as channel:
        stub = ClusterStub(channel)
        added: MemberAddResponse = await stub.MemberAdd(
            MemberAddRequest(peerURLs=urls[:1], isLearner=True), timeout=10
        )
        learner = added.member.ID
        found[errors.LearnerNotReadyError] = await answer(
            active, f"{CLUSTER}/MemberPromote", MemberPromoteRequest(ID=learner)
        )
        found[errors.TooManyLearnersError] = await answer(
            active, f"{CLUSTER}/MemberAdd", MemberAddRequest(peerURLs=urls[1:], isLearner=True)
        )
        await stub.MemberRemove(MemberRemoveRequest(ID=learner), timeout=10)
    return found


async def test_each_with_its_code_and_text(cluster: Cluster) -> None:
    active = await cluster.wait_in_step()
    members = await cluster.control.members(timeout_s=10)
    ids = {member.name: member.id for member in members}
    others = cluster.others(active)
    found = await of_the_keys(active) | await of_the_leases(active) | await of_much(active)
    found |= await of_the_sessions(active) | await of_users(others[0])
    found |= await of_the_members(active, others, ids)
    await cluster.wait_in_step()
    (others[0].plan.data / "backup-0").touch()  # in the way of the copy
    found[errors.SnapshotFailedError] = await answer(
        others[0], f"{MAINTENANCE}/Snapshot", SnapshotRequest()
    )
    await crash(others[0])
    await wait_until(lambda: not others[0].running, "it is gone")
    found[errors.NotEnoughMembersError] = await answer(
        active, f"{CLUSTER}/MemberRemove", MemberRemoveRequest(ID=ids[others[1].name])
    )
    others[1].stop()
    try:
        found[errors.OutcomeUnknownError] = await answer(active, f"{KV}/Put", put)
    finally:
        others[1].cont()
    for kind, status in found.items():
        assert status == CATALOGUE[kind], kind
    assert set(found) | set(NOT_BY_A_CALL) | set(MADE_ELSEWHERE) == set(CATALOGUE), (
        "an error of the catalogue is provoked by no test: add it here"
    )


@contextlib.asynccontextmanager
async def watching(
    node: Node,
) -> AsyncIterator["grpc.aio.StreamStreamCall[WatchRequest, WatchResponse]"]:
    async with grpc.aio.insecure_channel(node.client, DIRECT) as channel:
        call = WatchStub(channel).Watch()
        await call.write(WatchRequest(create_request=WatchCreateRequest(key=b"a")))
        await call.read()
        yield call


async def test_streams_end_with_the_active_and_nobody_leads_alone(cluster: Cluster) -> None:
    active = await cluster.wait_in_step()
    others = cluster.others(active)
    async with watching(active) as call:
        ids = {each.name: each.id for each in await cluster.control.members(timeout_s=10)}
        moved = MoveLeaderRequest(targetID=ids[others[0].name])
        done = await answer(active, f"{MAINTENANCE}/MoveLeader", moved)
        assert done.code is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ended.value.details() == "etcdserver: leader changed"
    await crash(others[0])
    await crash(others[1])
    async with grpc.aio.insecure_channel(active.client, DIRECT) as channel, asyncio.timeout(20):
        while True:
            status = await MaintenanceStub(channel).Status(StatusRequest(), timeout=10)
            if status.leader == 0:
                break
            await asyncio.sleep(0.05)
    assert "etcdserver: no leader" in status.errors


async def test_more_than_may_wait(tmp_path: Path) -> None:
    """Writes that wait for a quorum have a bound, and what is above it is refused at once."""
    patient = ("--check-quorum-ms=30000", "--request-timeout-ms=30000", "--dead-peer-ms=30000")
    async with Cluster(tmp_path, options=patient) as cluster:
        active = await cluster.wait_in_step()
        for other in cluster.others(active):
            other.stop()
        large = PutRequest(key=b"a", value=b"x" * 1_500_000).SerializeToString()
        refused: list[tuple[grpc.StatusCode, str]] = []
        async with grpc.aio.insecure_channel(active.client, DIRECT) as channel:
            method: Callable[..., grpc.aio.UnaryUnaryCall[bytes, bytes]] = channel.unary_unary(
                f"{KV}/Put"
            )
            calls = [method(large, timeout=60) for _ in range(190)]
            tasks = [asyncio.ensure_future(call.code()) for call in calls]
            await asyncio.wait(tasks, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            for call in calls:
                if call.done():
                    refused.append((await call.code(), await call.details() or ""))
                call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for other in cluster.others(active):
            other.cont()
        assert set(refused) == {CATALOGUE[errors.TooManyRequestsError]}
        await cluster.wait_in_step()
