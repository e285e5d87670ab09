"""`kv alarm`: which are printed, and which are disarmed."""

import json

import pytest
from support.fake_node import FakeNode, answers
from support.kv_command import kv, three_members

from kvpb import rpc_pb2
from kvpb.rpc_pb2 import CORRUPT, NOSPACE, AlarmMember, AlarmRequest

RAISED = [
    AlarmMember(memberID=0xA1, alarm=NOSPACE),
    AlarmMember(memberID=0xA2, alarm=CORRUPT),
    AlarmMember(memberID=0xFF, alarm=NOSPACE),
]


@pytest.fixture
def alarmed(node: FakeNode) -> FakeNode:
    node.on("MemberList", three_members(node.address))
    node.on("Alarm", answers(rpc_pb2.AlarmResponse(alarms=RAISED)))
    return node


def asked(node: FakeNode) -> list[AlarmRequest]:
    return [request for method, request in node.calls if method == "Alarm"]


def test_list_names_the_members(alarmed: FakeNode) -> None:
    result = kv("--endpoints", alarmed.address, "alarm", "list")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["ID", "NAME", "ALARM"]
    assert lines[-3:] == [["a1", "n161", "NOSPACE"], ["a2", "CORRUPT"], ["ff", "NOSPACE"]]
    assert asked(alarmed) == [AlarmRequest()]


def test_list_as_json(alarmed: FakeNode) -> None:
    result = kv("--endpoints", alarmed.address, "-o", "json", "alarm", "list")
    first = json.loads(result.stdout)["alarms"][0]
    assert first == {"id": "a1", "name": "n161", "alarm": "NOSPACE"}


def test_none_print_nothing(node: FakeNode) -> None:
    node.on("MemberList", three_members(node.address))
    node.on("Alarm", answers(rpc_pb2.AlarmResponse()))
    for verb in ("list", "disarm"):
        result = kv("--endpoints", node.address, "alarm", verb)
        assert (result.exit_code, result.stdout) == (0, "")


@pytest.mark.parametrize(("member", "which"), [(None, RAISED), ("n161", RAISED[:1])])
def test_disarm_asks_for_each_one_by_itself_as_etcd_wants_it(
    alarmed: FakeNode, member: str | None, which: list[AlarmMember]
) -> None:
    options = [] if member is None else [member]
    result = kv("--endpoints", alarmed.address, "alarm", "disarm", *options)
    assert result.exit_code == 0, result.stderr
    assert asked(alarmed)[1:] == [
        AlarmRequest(action=AlarmRequest.DEACTIVATE, memberID=each.memberID, alarm=each.alarm)
        for each in which
    ]
    assert len(result.stdout.splitlines()) == 2 + len(which)
