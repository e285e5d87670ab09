"""Changes of the members and of the leadership: asked of the active, never repeated in doubt."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from support.fake_node import FakeNode, answers, fails, not_active, status_response

from kvclient import DeadlineExceeded, OutcomeUnknown
from kvclient.errors import BadTransferee, MemberNotFound, NotLeader
from kvpb import rpc_pb2

Nodes = Callable[[int], list[FakeNode]]
Connect = Callable[..., Any]

BROKEN = grpc.StatusCode.UNAVAILABLE
LOST = "etcdserver: request timed out, possibly due to previous leader failure"

MEMBERS = rpc_pb2.MemberListResponse(
    header=rpc_pb2.ResponseHeader(raft_term=3),
    members=[rpc_pb2.Member(ID=2**63 + 1, name="n1", peerURLs=["http://p:1"])],
)


async def test_members_are_added_removed_changed(nodes: Nodes, connect: Connect) -> None:
    standby, active = nodes(2)
    added = rpc_pb2.MemberAddResponse(
        member=rpc_pb2.Member(ID=7, peerURLs=["http://p:2"], isLearner=True),
        members=MEMBERS.members,
    )
    active.on("MemberAdd", answers(added))
    active.on("MemberRemove", answers(rpc_pb2.MemberRemoveResponse(members=MEMBERS.members)))
    active.on("MemberUpdate", answers(rpc_pb2.MemberUpdateResponse(members=MEMBERS.members)))
    active.on("MemberPromote", answers(rpc_pb2.MemberPromoteResponse(members=MEMBERS.members)))
    standby.on("MemberAdd", not_active(active.address, 5))
    client = connect(standby, active)
    result = await client.add_member("p:2", learner=True)
    assert (result.member.id, result.member.learner) == (7, True)
    assert [member.name for member in result.members] == ["n1"]
    for members in (
        await client.remove_member(2**63 + 1),
        await client.update_member(7, "http://p:3"),
        await client.promote_member(7),
    ):
        assert [member.id for member in members] == [2**63 + 1]
    assert [request for _, request in active.calls] == [
        rpc_pb2.MemberAddRequest(peerURLs=["http://p:2"], isLearner=True),
        rpc_pb2.MemberRemoveRequest(ID=2**63 + 1),
        rpc_pb2.MemberUpdateRequest(ID=7, peerURLs=["http://p:3"]),
        rpc_pb2.MemberPromoteRequest(ID=7),
    ]


async def test_a_change_of_the_members_is_not_repeated_in_doubt(
    nodes: Nodes, connect: Connect
) -> None:
    one, two = nodes(2)
    one.on("MemberAdd", fails(BROKEN, LOST))
    one.on("MemberRemove", fails(grpc.StatusCode.NOT_FOUND, MemberNotFound.text))
    client = connect(one, two)
    with pytest.raises(MemberNotFound):
        await client.remove_member(1)
    with pytest.raises(OutcomeUnknown, match="list the members before you repeat it"):
        await client.add_member("p:1")
    assert not two.calls


async def test_the_active_is_asked_to_hand_over_once_it_is_known(
    nodes: Nodes, connect: Connect
) -> None:
    """The active is no endpoint of the client's, and has just changed."""
    standby, old, new = nodes(3)
    standby.on("Status", *[answers(status_response(1, leader, 5)) for leader in (0, 2, 3)])
    members = [
        rpc_pb2.Member(ID=i, clientURLs=[f"http://{node.address}"])
        for i, node in enumerate((standby, old, new), 1)
    ]
    standby.on("MemberList", answers(rpc_pb2.MemberListResponse(members=members)))
    old.on("MoveLeader", fails(grpc.StatusCode.FAILED_PRECONDITION, NotLeader.text))
    new.on("MoveLeader", answers(rpc_pb2.MoveLeaderResponse()))
    await connect(standby, timeout_s=30).move_leader(1)
    assert (old.asked("MoveLeader"), new.asked("MoveLeader")) == (1, 1)
    assert new.calls[-1] == ("MoveLeader", rpc_pb2.MoveLeaderRequest(targetID=1))


async def test_leadership_does_not_move_without_an_active_or_to_anybody(
    nodes: Nodes, connect: Connect
) -> None:
    (node,) = nodes(1)
    member = rpc_pb2.Member(ID=1, clientURLs=[f"http://{node.address}"])
    node.on("MemberList", answers(rpc_pb2.MemberListResponse(members=[member])))
    node.on("Status", answers(status_response(1, 0, 5)))
    with pytest.raises(DeadlineExceeded, match="see kv status"):
        await connect(node).move_leader(2, timeout_s=0.3)
    node.on("Status", answers(status_response(1, 1, 5)))
    node.on("MoveLeader", fails(grpc.StatusCode.FAILED_PRECONDITION, BadTransferee.text))
    with pytest.raises(BadTransferee):
        await connect(node).move_leader(2)
    node.on("MoveLeader", fails(grpc.StatusCode.FAILED_PRECONDITION, NotLeader.text))
    with pytest.raises(DeadlineExceeded, match="not leader"):
        await connect(node).move_leader(2, timeout_s=0.5)
