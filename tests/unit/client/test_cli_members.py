"""`kv member` and `kv move-leader`: who is meant, what is sent, what is printed."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support.fake_node import FakeNode, answers
from support.kv_command import kv, status_step, three_members

from kvpb import rpc_pb2

Nodes = Callable[[int], list[FakeNode]]


@pytest.fixture
def three(node: FakeNode) -> FakeNode:
    """One that knows three members: the active a1, and a2 and a3, of which a3 is a learner."""
    names = [(0xA1, "n1", False), (0xA2, "n2", False), (0xA3, "n3", True)]
    members = [
        rpc_pb2.Member(
            ID=i, name=name, isLearner=learner, peerURLs=[f"http://127.0.0.1:{i}"],
            clientURLs=[f"http://{node.address}"],
        )
        for i, name, learner in names
    ]  # fmt: skip
    node.on("MemberList", answers(rpc_pb2.MemberListResponse(members=members)))
    return node


@pytest.mark.parametrize(
    ("peer", "options", "start"),
    [
        ("127.0.0.1:22380", [], "--listen-peer 127.0.0.1:22380 --listen-client 127.0.0.1:22379"),
        (
            "http://10.0.0.4:2380",
            ["--learner", "--client", "10.0.0.5:1"],
            "--listen-peer 10.0.0.4:2380 --listen-client 10.0.0.5:1 --allow-insecure",
        ),
    ],
)
def test_member_add_says_how_to_start_it(
    three: FakeNode, peer: str, options: list[str], start: str
) -> None:
    address = peer.removeprefix("http://")
    added = rpc_pb2.Member(ID=0xA4, peerURLs=[f"http://{address}"])
    before = [rpc_pb2.Member(ID=0xA1, name="n1", peerURLs=["http://127.0.0.1:161"])]
    three.on(
        "MemberAdd", answers(rpc_pb2.MemberAddResponse(member=added, members=[*before, added]))
    )
    line = (
        "kvserver --name n4 --initial-cluster-state existing "
        f"--initial-cluster n1=127.0.0.1:161,n4={address} {start}"
    )
    result = kv("--endpoints", three.address, "member", "add", "n4", peer, *options)
    assert result.exit_code == 0, result.stderr
    assert f"  {line}\n" in result.stdout
    assert ("kv member promote n4" in result.stdout) is bool(options)
    assert three.calls[-1][1] == rpc_pb2.MemberAddRequest(
        peerURLs=[f"http://{address}"], isLearner=bool(options)
    )
    result = kv("--endpoints", three.address, "member", "add", "n4", peer, *options, "-o", "json")
    printed = json.loads(result.stdout)
    assert printed["start"] == line.split()
    assert printed["member"]["id"] == "a4"
    check = subprocess.run(
        [sys.executable, "-c", PARSES, *printed["start"][1:]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert check.returncode == 0, check.stderr


PARSES = """
import sys
from kvserver.__main__ import command
from kvserver.config import Config
context = command.make_context("kvserver", sys.argv[1:])
Config(**context.params).check()
"""
"""The server takes the options that are printed."""


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["remove", "n2"], rpc_pb2.MemberRemoveRequest(ID=0xA2)),
        (["remove", "A2"], rpc_pb2.MemberRemoveRequest(ID=0xA2)),
        (["promote", "0xa3"], rpc_pb2.MemberPromoteRequest(ID=0xA3)),
        (
            ["update", "n3", "h:1"],
            rpc_pb2.MemberUpdateRequest(ID=0xA3, peerURLs=["http://h:1"]),
        ),
    ],
)
def test_members_are_named_by_name_or_id(
    three: FakeNode, arguments: list[str], request_: Any
) -> None:
    left = [rpc_pb2.Member(ID=0xA3, name="n3")]
    three.on("MemberRemove", answers(rpc_pb2.MemberRemoveResponse(members=left)))
    three.on("MemberPromote", answers(rpc_pb2.MemberPromoteResponse(members=left)))
    three.on("MemberUpdate", answers(rpc_pb2.MemberUpdateResponse(members=left)))
    result = kv("--endpoints", three.address, "member", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert three.calls[-1][1] == request_
    result = kv("--endpoints", three.address, "member", *arguments, "-o", "json")
    printed = json.loads(result.stdout)
    assert printed["member"]["id"] == f"{request_.ID:x}"
    assert [each["name"] for each in printed["members"]] == ["n3"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["member", "remove", "n9"], 1, "no member has the name or id 'n9': there are n1 (a1)"),
        (["member", "add", "n1", "h:1"], 1, "there is a member called 'n1' already"),
        (["member", "add", "n4", "nonsense"], 2, "write it as host:port"),
        (["member", "add", "n 4", "h:1"], 2, "use letters, digits"),
        (["move-leader", "n9"], 1, "no member has the name or id 'n9'"),
    ],
)
def test_a_member_that_can_not_be_meant(
    three: FakeNode, arguments: list[str], code: int, sentence: str
) -> None:
    result = kv("--endpoints", three.address, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert sentence in result.stderr
    assert {method for method, _ in three.calls} <= {"MemberList"}


def test_two_members_of_one_name(node: FakeNode) -> None:
    members = [rpc_pb2.Member(ID=i, name="n1") for i in (0xA1, 0xA2)]
    node.on("MemberList", answers(rpc_pb2.MemberListResponse(members=members)))
    result = kv("--endpoints", node.address, "member", "remove", "n1")
    assert (result.exit_code, result.stderr) == (
        1, "kv: a1 and a2 are both called 'n1': give the id\n",
    )  # fmt: skip


def test_move_leader_takes_the_standby_that_has_most(nodes: Nodes) -> None:
    active, behind, best, learner, differs = nodes(5)
    members = three_members(*[each.address for each in (active, behind, best, learner, differs)])
    for i, (node, applied) in enumerate(
        [(active, 40), (behind, 37), (best, 39), (learner, 40), (differs, 40)], 0xA1
    ):
        node.on("MemberList", members)
        errors = [f"memberID:{0xA5} alarm:CORRUPT "]
        fields = {"isLearner": node is learner, "errors": errors}
        node.on("Status", status_step(i, 0xA1, applied, **fields))
    active.on("MoveLeader", answers(rpc_pb2.MoveLeaderResponse()))
    result = kv("--endpoints", behind.address, "move-leader")
    assert (result.exit_code, result.stdout) == (0, "n163 (a3) is the active now\n"), result.stderr
    assert active.calls[-1] == ("MoveLeader", rpc_pb2.MoveLeaderRequest(targetID=0xA3))
    result = kv("--endpoints", active.address, "move-leader", "n162", "-o", "json")
    assert json.loads(result.stdout)["active"]["id"] == "a2"


@pytest.mark.parametrize(
    ("leader", "sentence"),
    [(0xA1, "no standby that could take over"), (0, "no node is active")],
)
def test_move_leader_without_anybody(node: FakeNode, leader: int, sentence: str) -> None:
    node.on("MemberList", three_members(node.address))
    node.on("Status", status_step(0xA1, leader, 40))
    result = kv("--endpoints", node.address, "move-leader")
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence in result.stderr
