"""The alarm NOSPACE on a real etcd and here: what etcdctl prints, what is refused, what is done."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from support.etcd import Etcd, running_etcd
from support.node import CHANNEL_OPTIONS, running_node

from kvpb.rpc_pb2 import (
    CORRUPT,
    NONE,
    NOSPACE,
    AlarmRequest,
    AlarmResponse,
    AlarmType,
    StatusRequest,
    StatusResponse,
)
from kvpb.rpc_pb2_grpc import MaintenanceStub

Reply = TypeVar("Reply")

pytestmark = pytest.mark.cluster

TXN = """\
version("k") > "0"

{success}

{failure}

"""
LINES = [
    ("alarm list", ""),
    ("put k v", ""),
    ("get k", ""),
    ("txn", TXN.format(success="get k", failure="del k")),
    ("txn", TXN.format(success="get k", failure="put k v")),
    ("txn", TXN.format(success="put l v", failure="get k")),
    ("lease grant 100", ""),
    ("lease list", ""),
    ("alarm list", ""),
    ("del k", ""),
    ("del k", ""),
    ("alarm disarm", ""),
    ("alarm list", ""),
    ("alarm disarm", ""),
    ("put k v", ""),
]
ID = re.compile(r"memberID:\d+")


class Server:
    """One member, etcd's or ours."""

    def __init__(self, endpoint: str) -> None:
        self._ctl = Etcd((endpoint,), ())
        self._channel = grpc.insecure_channel(endpoint, CHANNEL_OPTIONS)
        self._stub = MaintenanceStub(self._channel)
        self.member = self.status().header.member_id

    def status(self) -> StatusResponse:
        response: StatusResponse = self._stub.Status(StatusRequest())
        return response

    def alarm(
        self,
        action: AlarmRequest.AlarmAction.ValueType,
        kind: AlarmType.ValueType = NONE,
        member: int | None = None,
    ) -> list[tuple[bool, AlarmType.ValueType]]:
        """What the response names: whether this member, and which alarm."""
        member = self.member if member is None else member
        request = AlarmRequest(action=action, memberID=member, alarm=kind)
        response: AlarmResponse = self._stub.Alarm(request)
        return sorted((each.memberID == self.member, each.alarm) for each in response.alarms)

    def ctl(self, line: str, stdin: str) -> tuple[int, str, str]:
        done = self._ctl.etcdctl(*line.split(), stdin=stdin)
        said = re.sub(r'.*"error":"(.*?)".*', r"\1", done.stderr)
        return done.returncode, ID.sub("memberID", done.stdout), said

    def errors(self) -> list[str]:
        return [ID.sub("memberID", error) for error in self.status().errors]

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with running_etcd(tmp_path / "etcd") as etcd, running_node(tmp_path / "node") as node:
        servers = Server(etcd.endpoint), Server(node.endpoint)
        yield servers
        for server in servers:
            server.close()


def same(both: tuple[Server, Server], ask: Callable[[Server], Reply]) -> Reply:
    theirs, ours = (ask(server) for server in both)
    assert ours == theirs
    return ours


def test_etcdctl_cannot_tell_them_apart(both: tuple[Server, Server]) -> None:
    assert same(both, lambda it: it.ctl("put k v", ""))[:2] == (0, "OK\n")
    activate = AlarmRequest.ACTIVATE
    assert same(both, lambda it: it.alarm(activate, NOSPACE)) == [(True, NOSPACE)]
    assert same(both, Server.errors) == ["memberID alarm:NOSPACE "]
    said = [same(both, partial(Server.ctl, line=line, stdin=stdin)) for line, stdin in LINES]
    assert "database space exceeded" in said[1][2]
    assert said[-1][:2] == (0, "OK\n")
    assert same(both, Server.errors) == []


def test_the_same_members_and_kinds(both: tuple[Server, Server]) -> None:
    get, activate, deactivate = AlarmRequest.GET, AlarmRequest.ACTIVATE, AlarmRequest.DEACTIVATE
    for action, kind, member in [
        (get, NONE, None),
        (activate, NONE, None),
        (activate, NOSPACE, None),
        (activate, NOSPACE, None),
        (activate, NOSPACE, 7),
        (get, NONE, 0),
        (get, NOSPACE, 7),
        (get, CORRUPT, None),
        (deactivate, CORRUPT, None),
        (deactivate, NOSPACE, 8),
        (deactivate, NOSPACE, 7),
        (get, NONE, None),
        (deactivate, NOSPACE, None),
        (deactivate, NOSPACE, None),
        (get, NONE, None),
    ]:
        same(both, partial(Server.alarm, action=action, kind=kind, member=member))
