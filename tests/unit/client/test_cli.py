"""`kv` against scripted nodes: what is sent, what is printed, and how it ends."""

import json
import subprocess
import sys
from collections.abc import Callable

import click
import grpc
import pytest
from support.etcd import free_ports
from support.fake_node import (
    FakeNode,
    Step,
    answers,
    fails,
    not_active,
    range_response,
)
from support.kv_command import HEADER, kv, status_step, three_members

from kvclient import _command, cli
from kvclient.errors import BY_TEXT, FutureRevision
from kvpb import kv_pb2, rpc_pb2

Nodes = Callable[[int], list[FakeNode]]


def test_put_says_ok(node: FakeNode) -> None:
    result = kv("--endpoints", node.address, "put", "k", "v")
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, b"OK\n", "")
    assert node.calls == [("Put", rpc_pb2.PutRequest(key=b"k", value=b"v"))]


def test_put_reads_standard_input_byte_by_byte(node: FakeNode) -> None:
    result = kv("--endpoints", node.address, "put", "k", "-", stdin=b"\xff\0\r\n")
    assert result.exit_code == 0
    assert node.calls == [("Put", rpc_pb2.PutRequest(key=b"k", value=b"\xff\0\r\n"))]


def test_arguments_may_be_any_bytes(node: FakeNode) -> None:
    key = b"\xff\x80".decode("utf-8", "surrogateescape")
    assert kv("--endpoints", node.address, "put", key, "--", "-v").exit_code == 0
    assert node.calls == [("Put", rpc_pb2.PutRequest(key=b"\xff\x80", value=b"-v"))]


def test_put_shows_what_was_there(node: FakeNode) -> None:
    previous = kv_pb2.KeyValue(
        key=b"k", value=b"\xff", create_revision=2, mod_revision=3, version=2
    )
    node.on("Put", answers(rpc_pb2.PutResponse(header=HEADER, prev_kv=previous)))
    result = kv("--endpoints", node.address, "put", "k", "v", "--prev-kv")
    assert result.stdout_bytes == b"OK\nk\n\xff\n"
    assert node.calls[0][1].prev_kv
    result = kv("--endpoints", node.address, "put", "k", "v", "--prev-kv", "--output", "json")
    assert json.loads(result.stdout) == {
        "revision": 7,
        "prev_kv": {
            "key": "k",
            "value": {"base64": "/w=="},
            "create_revision": 2,
            "mod_revision": 3,
            "version": 2,
            "lease": 0,
        },
    }
    node.on("Put", answers(rpc_pb2.PutResponse(header=HEADER)))
    result = kv("--endpoints", node.address, "put", "k", "v", "--output", "json")
    assert json.loads(result.stdout) == {"revision": 7, "prev_kv": None}


def test_get_of_a_missing_key_prints_nothing_and_is_no_error(node: FakeNode) -> None:
    result = kv("--endpoints", node.address, "get", "nope")
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, b"", "")


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ([], b"k0\n\xff\nk1\nb\n"),
        (["--print-value-only"], b"\xff\nb\n"),
        (["--count-only"], b"2\n"),
    ],
)
def test_get_prints_keys_and_values(node: FakeNode, options: list[str], printed: bytes) -> None:
    response = range_response(b"\xff", b"b")
    if "--count-only" in options:
        del response.kvs[:]
    node.on("Range", answers(response))
    result = kv("--endpoints", node.address, "get", "k", "--prefix", *options)
    assert (result.exit_code, result.stdout_bytes) == (0, printed)


def test_get_as_json(node: FakeNode) -> None:
    node.on("Range", answers(range_response("ö".encode())))
    result = kv("--endpoints", node.address, "get", "k", "-o", "json")
    kvs = [
        {
            "key": "k0", "value": "ö",
            "create_revision": 2, "mod_revision": 3, "version": 2, "lease": 0,
        }
    ]  # fmt: skip
    assert json.loads(result.stdout) == {"revision": 7, "count": 1, "more": False, "kvs": kvs}


@pytest.mark.parametrize(
    ("options", "request_"),
    [
        (["a"], rpc_pb2.RangeRequest(key=b"a")),
        (["a", "--prefix"], rpc_pb2.RangeRequest(key=b"a", range_end=b"b")),
        (["", "--prefix"], rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")),
        (["a", "--range-end", "n"], rpc_pb2.RangeRequest(key=b"a", range_end=b"n")),
        (["a", "--from-key"], rpc_pb2.RangeRequest(key=b"a", range_end=b"\0")),
        (["a", "--limit", "3"], rpc_pb2.RangeRequest(key=b"a", limit=3)),
        (["a", "--rev", "4"], rpc_pb2.RangeRequest(key=b"a", revision=4)),
        (["a", "--keys-only"], rpc_pb2.RangeRequest(key=b"a", keys_only=True)),
        (["a", "--count-only"], rpc_pb2.RangeRequest(key=b"a", count_only=True)),
        (
            ["a", "--order", "descend", "--sort-by", "MODIFY"],
            rpc_pb2.RangeRequest(
                key=b"a",
                sort_order=rpc_pb2.RangeRequest.DESCEND,
                sort_target=rpc_pb2.RangeRequest.MOD,
            ),
        ),
    ],
)
def test_get_sends_its_options(
    node: FakeNode, options: list[str], request_: rpc_pb2.RangeRequest
) -> None:
    assert kv("--endpoints", node.address, "get", *options).exit_code == 0
    assert node.calls == [("Range", request_)]


def test_del_prints_the_count_and_what_was_there(node: FakeNode) -> None:
    previous = kv_pb2.KeyValue(key=b"k", value=b"v")
    response = rpc_pb2.DeleteRangeResponse(header=HEADER, deleted=1, prev_kvs=[previous])
    node.on("DeleteRange", answers(response))
    result = kv("--endpoints", node.address, "del", "k", "--prefix", "--prev-kv")
    assert (result.exit_code, result.stdout_bytes) == (0, b"1\nk\nv\n")
    assert node.calls[0][1] == rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True)
    result = kv("--endpoints", node.address, "del", "k", "-o", "json")
    printed = json.loads(result.stdout)
    assert (printed["revision"], printed["deleted"]) == (7, 1)
    assert printed["prev_kvs"][0]["key"] == "k"


def test_the_server_said_no_ends_with_1(node: FakeNode) -> None:
    for text, kind in BY_TEXT.items():
        node.on("Range", fails(grpc.StatusCode.INVALID_ARGUMENT, text))
        result = kv("--endpoints", node.address, "get", "k")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"kv: {kind.advice}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["get"],
        ["put", "k"],
        ["get", "k", "--limit", "-1"],
        ["get", "k", "--prefix", "--from-key"],
        ["del", "k", "--prefix", "--range-end", "z"],
        ["get", "k", "--keys-only", "--count-only"],
        ["--endpoints", "host", "get", "k"],
        ["--endpoints", "https://host:1", "get", "k"],
        ["--timeout", "0", "get", "k"],
        ["--output", "yaml", "get", "k"],
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    result = kv(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_nobody_reached_ends_with_3(node: FakeNode) -> None:
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    result = kv("--endpoints", dead, "--timeout", "0.2", "put", "k", "v")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "kv: no endpoint could be reached: check the addresses and whether the nodes run "
        f"({dead}: can't connect: Connection refused)\n"
    )
    node.on("Put", not_active())
    result = kv("--endpoints", node.address, "--timeout", "0.2", "put", "k", "v")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "a standby that knows no active" in result.stderr


def test_an_unknown_outcome_ends_with_4(node: FakeNode) -> None:
    node.on("Put", fails(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed"))
    result = kv("--endpoints", node.address, "put", "k", "v")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "the put may or may not be applied" in result.stderr


def test_endpoints_come_from_the_environment_and_the_command_line_goes_first(
    node: FakeNode,
) -> None:
    env = {"KV_ENDPOINTS": node.address}
    assert kv("put", "k", "v", env=env).exit_code == 0
    wrong = {"KV_ENDPOINTS": "127.0.0.1:1"}
    assert kv("--endpoints", node.address, "put", "k", "v", env=wrong).exit_code == 0
    assert kv("put", "k", "v", "--endpoints", node.address, env=wrong).exit_code == 0
    assert node.asked("Put") == 3


def test_status_shows_the_whole_cluster(nodes: Nodes) -> None:
    active, standby = nodes(2)
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    active.on("Status", status_step(0xA1, 0xA1, 40, dbSizeQuota=4096))
    active.on("MemberList", three_members(active.address, standby.address, dead))
    standby.on("Status", status_step(0xA2, 0xA1, 37, errors=["etcdserver: corrupt cluster"]))
    result = kv("--endpoints", active.address, "status")
    assert result.exit_code == 0
    head, _, *lines = result.stdout.splitlines()
    assert head.split() == [
        "ENDPOINT", "NAME", "ROLE", "TERM", "REVISION", "INDEX", "APPLIED", "LAG", "SIZE", "VERSION"
    ]  # fmt: skip
    assert [line.split() for line in lines] == [
        [active.address, "n161", "active", "3", "7", "40", "40", "0", "2", "KiB", "3.5.0"],
        [standby.address, "n162", "standby", "3", "7", "37", "37", "3", "2", "KiB", "3.5.0"],
        [dead, "n163", "unreachable"],
        [],
        [f"{standby.address}:", "etcdserver:", "corrupt", "cluster"],
        [f"{dead}:", "can't", "connect:", "Connection", "refused"],
    ]
    result = kv("--endpoints", active.address, "status", "-o", "json")
    one, two, three = json.loads(result.stdout)["nodes"]
    assert one == {
        "endpoint": active.address, "name": "n161", "id": "a1", "role": "active", "term": 3,
        "leader": "a1", "revision": 7, "index": 40, "applied_index": 40, "lag": 0,
        "db_size_bytes": 2048, "db_size_in_use_bytes": 1024, "db_size_quota_bytes": 4096,
        "version": "3.5.0", "errors": [],
    }  # fmt: skip
    assert (two["role"], two["lag"]) == ("standby", 3)
    assert three == {
        "endpoint": dead, "name": "n163", "id": "a3", "role": "unreachable",
        "errors": ["can't connect: Connection refused"],
    }  # fmt: skip


@pytest.mark.parametrize("leader", [0xA1, 0xA2])
def test_status_of_one_whose_data_differs(nodes: Nodes, leader: int) -> None:
    one, other = nodes(2)
    errors = [f"memberID:{0xA1} alarm:CORRUPT "]
    one.on("Status", status_step(0xA1, leader, 4, errors=errors))
    other.on("Status", status_step(0xA2, leader, 4, errors=errors))
    one.on("MemberList", three_members(one.address, other.address))
    result = kv("--endpoints", one.address, "status", "-o", "json")
    roles = [node["role"] for node in json.loads(result.stdout)["nodes"]]
    assert roles == ["disqualified", "active" if leader == 0xA2 else "standby"]


@pytest.mark.parametrize("leader", [0xA1, 0xA2])
def test_status_of_one_that_reads_its_data_first(nodes: Nodes, leader: int) -> None:
    one, other = nodes(2)
    told = "kvserver: unverified: 63% of its data is read; it serves nothing before"
    one.on("Status", status_step(0xA1, leader, 4, errors=[told]))
    other.on("Status", status_step(0xA2, leader, 4))
    one.on("MemberList", three_members(one.address, other.address))
    result = kv("--endpoints", one.address, "status", "-o", "json")
    roles = [node["role"] for node in json.loads(result.stdout)["nodes"]]
    assert roles == ["unverified", "active" if leader == 0xA2 else "standby"]
    assert "63% of its data is read" in kv("--endpoints", one.address, "status").stdout


def test_status_of_one_that_serves_though_it_is_unverified(nodes: Nodes) -> None:
    (one,) = nodes(1)
    told = "kvserver: unverified: 5% of its data is read; it serves all the same, as all were"
    one.on("Status", status_step(0xA1, 0xA1, 4, errors=[told]))
    one.on("MemberList", three_members(one.address))
    result = kv("--endpoints", one.address, "status", "-o", "json")
    assert json.loads(result.stdout)["nodes"][0]["role"] == "active"


def test_status_of_a_learner_and_of_members_without_an_address(nodes: Nodes) -> None:
    (learner,) = nodes(1)
    learner.on("Status", status_step(0xA1, 0xA9, 4, isLearner=True))
    members = [rpc_pb2.Member(ID=0xA2), rpc_pb2.Member(ID=0xA3, clientURLs=["https://h:1"])]
    learner.on("MemberList", answers(rpc_pb2.MemberListResponse(members=members)))
    result = kv("--endpoints", learner.address, "status", "-o", "json")
    one, two, three = json.loads(result.stdout)["nodes"]
    assert (one["role"], one["name"], one["id"]) == ("learner", "", "a1")
    assert (two["endpoint"], two["role"], two["id"]) == ("", "unreachable", "a2")
    assert "has not started yet" in two["errors"][0]
    assert "only http://" in three["errors"][0]


def test_status_without_any_answer_ends_with_3() -> None:
    dead = [f"127.0.0.1:{port}" for port in free_ports(2)]
    result = kv("--endpoints", ",".join(dead), "status")
    assert result.exit_code == 3
    assert result.stdout.count("unreachable") == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1_047_552, "1023 KiB"), (5 << 42, "20 TiB")],
)
def test_sizes_are_short(nodes: Nodes, count: int, text: str) -> None:
    (node,) = nodes(1)
    node.on("Status", answers(rpc_pb2.StatusResponse(header=HEADER, dbSize=count)))
    assert text in kv("--endpoints", node.address, "status").stdout


def hash_step(value: int, revision: int) -> Step:
    header = rpc_pb2.ResponseHeader(member_id=value, revision=revision)
    return answers(rpc_pb2.HashKVResponse(header=header, hash=value, hash_revision=revision))


@pytest.mark.parametrize(
    ("steps", "verdict", "exit_code"),
    [
        ([hash_step(1, 5), hash_step(1, 5)], "equal", 0),
        ([hash_step(1, 5), hash_step(2, 5)], "different", 1),
        ([hash_step(1, 5), hash_step(2, 6)], "incomparable", 1),
        ([hash_step(1, 5), fails(grpc.StatusCode.UNAVAILABLE, "down")], "incomplete", 1),
        ([fails(grpc.StatusCode.UNAVAILABLE, "down")] * 2, "incomplete", 1),
    ],
)
def test_hash_compares_the_nodes(
    nodes: Nodes, steps: list[Step], verdict: str, exit_code: int
) -> None:
    asked = nodes(2)
    for node, step in zip(asked, steps, strict=True):
        node.on("HashKV", step)
        node.on("MemberList", three_members())
    endpoints = ",".join(node.address for node in asked)
    result = kv("--endpoints", endpoints, "hash", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (exit_code, verdict)
    result = kv("--endpoints", endpoints, "hash")
    assert result.exit_code == exit_code
    assert result.stdout.splitlines()[-1].startswith(
        verdict if verdict in ("equal", "different") else "not compared"
    )


def test_hash_asks_again_while_writes_go_on(nodes: Nodes) -> None:
    one, two = nodes(2)
    for node in (one, two):
        node.on("MemberList", three_members())
    one.on("HashKV", hash_step(1, 5), hash_step(2, 6))
    two.on("HashKV", hash_step(2, 6))
    result = kv("--endpoints", f"{one.address},{two.address}", "hash", "-o", "json")
    assert json.loads(result.stdout) == {
        "verdict": "equal",
        "nodes": [
            {
                "endpoint": node.address, "name": "", "id": "2",
                "hash": "00000002", "revision": 6, "compact_revision": 0,
            }
            for node in (one, two)
        ],
    }  # fmt: skip


def test_hash_at_a_revision(nodes: Nodes) -> None:
    (node,) = nodes(1)
    node.on("HashKV", fails(grpc.StatusCode.OUT_OF_RANGE, FutureRevision.text))
    result = kv("--endpoints", node.address, "hash", "--rev", "9")
    assert result.exit_code == 1
    assert FutureRevision.advice in result.stdout
    assert node.calls[0][1].revision == 9


def test_member_list(nodes: Nodes) -> None:
    (node,) = nodes(1)
    members = [
        rpc_pb2.Member(ID=0xA1, name="n1", clientURLs=["http://c"], peerURLs=["http://p"]),
        rpc_pb2.Member(ID=0xA2, isLearner=True),
    ]
    node.on("MemberList", answers(rpc_pb2.MemberListResponse(members=members)))
    result = kv("--endpoints", node.address, "member", "list")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].split() == ["a1", "n1", "http://c", "http://p", "yes"]
    assert result.stdout.splitlines()[3].split() == ["a2", "no"]
    result = kv("--endpoints", node.address, "member", "list", "-o", "json")
    assert json.loads(result.stdout)["members"][0] == {
        "id": "a1", "name": "n1", "client_urls": ["http://c"], "peer_urls": ["http://p"],
        "learner": False,
    }  # fmt: skip
    assert not node.calls[0][1].linearizable, "works without a quorum"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
        else:
            found.append((*path, name))
    return found


@pytest.mark.parametrize("command", commands(cli.main), ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    result = kv(*command, "--help")
    assert result.exit_code == 0
    assert f"  kv {' '.join(command)}" in result.stdout.partition("Examples:")[2]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_lists_every_exit_code() -> None:
    listed = kv("--help").stdout.partition("Exit codes:")[2].partition("Shell")[0]
    codes = {int(line.split()[0]) for line in listed.strip().splitlines()}
    done = {0, _command.EXIT_DECLINED, 2, _command.EXIT_UNREACHABLE, _command.EXIT_UNKNOWN}
    assert codes == done | {_command.EXIT_INTERRUPTED}


def test_help_needs_no_grpc() -> None:
    code = "import sys, kvclient.cli; sys.exit('grpc' in sys.modules or 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
