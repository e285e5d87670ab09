"""Nodes watched over HTTP, as Prometheus, balancers and monitors for etcd do it."""

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.cluster import CALL_S_MAX, address_of, crash, hand_over, run_kvserver, wait_until
from support.etcd import free_ports

from kvbench.cluster import Cluster, Node
from kvbench.flavor import KVSERVER, NodePlan
from kvbench.ports import LOOPBACK, Ports
from kvpb.rpc_pb2 import NOSPACE, AlarmRequest
from kvpb.rpc_pb2_grpc import MaintenanceStub
from kvserver import __version__

pytestmark = pytest.mark.cluster

USAGE, ADDRESS = 2, 4
SOON_S = 3.0
PATHS = ("/health", "/livez", "/readyz", "/active", "/version", "/metrics")
HEALTHY = (200, '{"health":"true","reason":""}')
NO_LEADER = (503, '{"health":"false","reason":"RAFT NO LEADER"}')


class Watched:
    """A cluster, and where each of its nodes is asked."""

    def __init__(self, cluster: Cluster, addresses: Mapping[str, str]) -> None:
        self.cluster = cluster
        self.addresses = addresses

    def ask(self, node: Node, path: str, method: str = "GET") -> tuple[int, str]:
        """Status and body."""
        status, _, body = call(self.addresses[node.name], path, method)
        return status, body

    def metrics(self, node: Node) -> dict[tuple[str, ...], float]:
        """Name and label values -> value."""
        status, text = self.ask(node, "/metrics")
        assert status == 200, text
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def connected(self, node: Node) -> dict[str, float]:
        """Of each peer, by name."""
        return self._of_peers(node, "kv_peer_connected")

    def lags(self, node: Node) -> dict[str, float]:
        return self._of_peers(node, "kv_peer_lag_entries")

    def _of_peers(self, node: Node, metric: str) -> dict[str, float]:
        return {key[1]: told for key, told in self.metrics(node).items() if key[0] == metric}

    async def until(self, node: Node, path: str, told: tuple[int, str]) -> None:
        await wait_until(lambda: self.ask(node, path) == told, f"{node.name}{path} is {told}")


def call(address: str, path: str, method: str = "GET") -> tuple[int, Mapping[str, str], str]:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=CALL_S_MAX)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()


@contextlib.contextmanager
def http_ports(nodes: int) -> Iterator[Mapping[str, str]]:
    ports = Ports(nodes)
    try:
        yield {f"n{i + 1}": f"{LOOPBACK}:{port}" for i, port in enumerate(ports.numbers)}
    finally:
        ports.close()


@contextlib.asynccontextmanager
async def watched(folder: Path, nodes: int) -> AsyncIterator[Watched]:
    with http_ports(nodes) as addresses:

        def command(plan: NodePlan) -> list[str]:
            return [*KVSERVER.command(plan), "--listen-http", addresses[plan.name]]

        flavor = replace(KVSERVER, command=command)
        async with Cluster(folder, flavor=flavor, nodes=nodes) as cluster:
            yield Watched(cluster, addresses)


async def test_every_node_tells_what_it_is(tmp_path: Path) -> None:
    async with watched(tmp_path, 3) as seen:
        await seen.cluster.control.put("key", "value", timeout_s=CALL_S_MAX)
        active = await seen.cluster.wait_in_step()
        for node in seen.cluster.nodes:
            assert seen.ask(node, "/health") == HEALTHY
            assert seen.ask(node, "/livez") == (200, "ok\n")
            assert seen.ask(node, "/readyz") == (200, "ok\n")
            here = (200, "ok\n") if node is active else (503, "standby\n")
            assert seen.ask(node, "/active") == here
            version = {"etcdserver": "3.5.0", "etcdcluster": "3.5.0", "kvserver": __version__}
            assert json.loads(seen.ask(node, "/version")[1]) == version
            assert seen.ask(node, "/active", "HEAD") == (here[0], "")
            told, serves = seen.metrics(node), node is active
            assert told["etcd_server_has_leader",] == 1
            assert told["etcd_server_is_leader",] == serves
            assert told["kv_role", "active"] == serves
            assert told["kv_ready",] == 1
            assert told["etcd_debugging_mvcc_current_revision",] == 2
            assert told["process_resident_memory_bytes",] > 0
            others = {each.name for each in seen.cluster.others(node)}
            assert seen.connected(node) == dict.fromkeys(others, 1)
            assert seen.lags(node) == (dict.fromkeys(others, 0) if serves else {})
            assert ("kv_leases",) in told or not serves


async def test_it_follows_the_active_and_tells_when_there_is_none(tmp_path: Path) -> None:
    async with watched(tmp_path, 3) as seen:
        before = await seen.cluster.wait_in_step()
        await hand_over(seen.cluster)
        after = await seen.cluster.wait_in_step()
        assert after is not before
        await seen.until(before, "/active", (503, "standby\n"))
        await seen.until(after, "/active", (200, "ok\n"))
        (third,) = seen.cluster.others(before, after)
        await crash(third)
        assert seen.ask(after, "/health") == HEALTHY
        assert seen.connected(after) == {before.name: 1, third.name: 0}
        assert seen.lags(after)[before.name] == 0
        await crash(before)
        await seen.until(after, "/health", NO_LEADER)
        assert seen.ask(after, "/readyz") == (503, "no leader\n")
        assert seen.ask(after, "/active") == (503, "standby\n")
        assert seen.ask(after, "/livez") == (200, "ok\n")
        assert seen.metrics(after)["etcd_server_has_leader",] == 0


async def test_alarms_are_told_unless_left_out(tmp_path: Path) -> None:
    async with watched(tmp_path, 1) as seen:
        (node,) = seen.cluster.nodes
        status = await seen.cluster.status(node)
        assert status is not None
        async with grpc.aio.insecure_channel(node.client) as channel:
            request = AlarmRequest(
                action=AlarmRequest.ACTIVATE, memberID=status.member_id, alarm=NOSPACE
            )
            await MaintenanceStub(channel).Alarm(request, timeout=CALL_S_MAX)
        full = (503, '{"health":"false","reason":"ALARM NOSPACE"}')
        await seen.until(node, "/health", full)
        assert seen.ask(node, "/health?exclude=NOSPACE") == HEALTHY
        assert seen.ask(node, "/health?exclude=CORRUPT&exclude=NOSPACE") == HEALTHY
        assert seen.ask(node, "/health?exclude=CORRUPT") == full
        assert seen.metrics(node)["kv_alarms", "NOSPACE"] == 1
        assert seen.ask(node, "/readyz") == (200, "ok\n")


async def test_what_is_asked_wrongly_is_refused_and_the_log_stays_quiet(tmp_path: Path) -> None:
    async with watched(tmp_path, 1) as seen:
        (node,) = seen.cluster.nodes
        for path in ("/", "/nothing", "/health/", "/v3/kv/range"):
            assert seen.ask(node, path)[0] == 404
        for path in PATHS:
            status, headers, _ = call(seen.addresses[node.name], path, "POST")
            assert (status, headers["Allow"]) == (405, "GET,HEAD")
        assert seen.ask(node, "/" + "x" * 10_000)[0] == 400
        assert await asyncio.to_thread(say, seen.addresses[node.name], b"what?\r\n\r\n") != b""
        many = b"".join(b"a%d: b\r\n" % i for i in range(1_000))
        said = await asyncio.to_thread(
            say, seen.addresses[node.name], b"GET / HTTP/1.1\r\n" + many + b"\r\n"
        )
        assert b" 400 " in said
        log = node.log.read_text()
        assert "Traceback" not in log
        assert all(line[:2] == "20" for line in log.splitlines()), log


async def test_nobody_keeps_a_node_from_stopping(tmp_path: Path) -> None:
    async with watched(tmp_path, 1) as seen:
        (node,) = seen.cluster.nodes
        endless = b"POST /health HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"
        with contextlib.ExitStack() as stack:
            for text in (b"", b"GET /metrics HT", endless):
                line = stack.enter_context(
                    socket.create_connection(address_of(seen.addresses[node.name]))
                )
                line.sendall(text)
            node.term()
            assert await node.wait_exit(SOON_S) == 0


def say(address: str, request: bytes) -> bytes:
    """What is answered until the connection is closed."""
    with socket.create_connection(address_of(address), timeout=CALL_S_MAX) as line:
        line.sendall(request)
        answer = b""
        while data := line.recv(1 << 16):
            answer += data
        return answer


# ---------------------------------------------------------------------- options


def refused(*options: str) -> tuple[int, str]:
    """Exit code and the sentence."""
    peer, client = free_ports(2)
    listening = [f"--listen-peer={LOOPBACK}:{peer}", f"--listen-client={LOOPBACK}:{client}"]
    done = run_kvserver(*listening, *options)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "--listen-http nonsense: give host:port"),
        ("0.0.0.0:2381", "--listen-http 0.0.0.0:2381 can be reached from other machines"),
    ],
)
def test_a_wrong_address_is_named(address: str, words: str, tmp_path: Path) -> None:
    code, said = refused("--data-dir", str(tmp_path / "data"), "--listen-http", address)
    assert code == USAGE, said
    assert words in said
    assert not (tmp_path / "data").exists()


def taken() -> tuple[socket.socket | None, str]:
    held = socket.create_server((LOOPBACK, 0))
    return held, f"{LOOPBACK}:{held.getsockname()[1]}"


def elsewhere() -> tuple[socket.socket | None, str]:
    return None, "192.0.2.1:2381"


@pytest.mark.parametrize("choose", [taken, elsewhere])
def test_an_address_that_can_not_be_had(
    choose: Callable[[], tuple[socket.socket | None, str]], tmp_path: Path
) -> None:
    held, address = choose()
    with held or contextlib.nullcontext():
        code, said = refused(
            "--data-dir", str(tmp_path / "data"), "--allow-insecure", "--listen-http", address
        )
    assert code == ADDRESS, said
    assert f"--listen-http {address} can't be bound" in said
