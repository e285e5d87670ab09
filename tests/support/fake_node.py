"""A node in this process whose every answer is scripted, and a port that breaks off mid-call."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from kvpb import rpc_pb2, rpc_pb2_grpc, session_pb2_grpc

Context = grpc.ServicerContext
Step = Callable[[Any, Context], Any]

HANG_S = 30.0

SESSIONS = ("Open", "LeaseRevoke")
"""Not recorded unless scripted: what clients begin and end with by themselves."""


class FakeNode:
    """Serves what the client calls; `calls` records what it was asked."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.released = threading.Event()
        self._steps: dict[str, list[Step]] = {}
        self._server = grpc.server(ThreadPoolExecutor(16))
        rpc_pb2_grpc.add_KVServicer_to_server(_kv(self), self._server)
        rpc_pb2_grpc.add_ClusterServicer_to_server(_cluster(self), self._server)
        rpc_pb2_grpc.add_MaintenanceServicer_to_server(_maintenance(self), self._server)
        rpc_pb2_grpc.add_LeaseServicer_to_server(_lease(self), self._server)
        session_pb2_grpc.add_SessionServicer_to_server(_session(self), self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def on(self, method: str, *steps: Step) -> None:
        """Play these steps from now on, one per call; the last one for all further calls."""
        self._steps[method] = list(steps)

    def play(self, method: str, request: Any, context: Context) -> Any:
        if method in self._steps or method not in SESSIONS:
            self.calls.append((method, request))
        steps = self._steps.get(method) or [fails(grpc.StatusCode.UNIMPLEMENTED, "not scripted")]
        return (steps.pop(0) if len(steps) > 1 else steps[0])(request, context)

    def hangs(self, request: Any, context: Context) -> Any:
        """A step: no answer before `stop`."""
        self.released.wait(HANG_S)
        context.abort(grpc.StatusCode.UNAVAILABLE, "stopped")

    def asked(self, method: str) -> int:
        """How often a method was called."""
        return sum(1 for name, _ in self.calls if name == method)

    def stop(self) -> None:
        self.released.set()
        self._server.stop(None).wait(10)


def answers(message: Any) -> Step:
    """A step: this message."""
    return lambda request, context: message


def fails(code: grpc.StatusCode, details: str) -> Step:
    """A step: this status."""

    def step(request: Any, context: Context) -> Any:
        context.abort(code, details)

    return step


def not_active(leader: str = "", term: int | str = "") -> Step:
    """A step: a standby's answer, with a hint if given."""

    def step(request: Any, context: Context) -> Any:
        if leader:
            context.set_trailing_metadata((("kv-leader", leader), ("kv-term", str(term))))
        context.abort(grpc.StatusCode.UNAVAILABLE, "there is no connection available")

    return step


def put_response(revision: int = 2, term: int = 1) -> rpc_pb2.PutResponse:
    header = rpc_pb2.ResponseHeader(revision=revision, raft_term=term)
    return rpc_pb2.PutResponse(header=header)


def range_response(*values: bytes, term: int = 1) -> rpc_pb2.RangeResponse:
    """One key per value."""
    response = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=7, raft_term=term))
    for i, value in enumerate(values):
        response.kvs.add(key=b"k%d" % i, value=value, create_revision=2, mod_revision=3, version=2)
    response.count = len(values)
    return response


def status_response(member_id: int, leader: int, term: int) -> rpc_pb2.StatusResponse:
    """Of a node that knows this leader."""
    header = rpc_pb2.ResponseHeader(cluster_id=1, member_id=member_id, raft_term=term)
    return rpc_pb2.StatusResponse(header=header, leader=leader, raftTerm=term)


def _servicer(base: Any, methods: tuple[str, ...], node: FakeNode) -> Any:
    def method(name: str) -> Callable[[Any, Any, Context], Any]:
        return lambda self, request, context: node.play(name, request, context)

    return type("Fake" + base.__name__, (base,), {name: method(name) for name in methods})()


def _kv(node: FakeNode) -> Any:
    return _servicer(rpc_pb2_grpc.KVServicer, ("Range", "Put", "DeleteRange", "Txn"), node)


def _cluster(node: FakeNode) -> Any:
    verbs = ("List", "Add", "Remove", "Update", "Promote")
    methods = tuple(f"Member{verb}" for verb in verbs)
    return _servicer(rpc_pb2_grpc.ClusterServicer, methods, node)


def _lease(node: FakeNode) -> Any:
    return _servicer(rpc_pb2_grpc.LeaseServicer, ("LeaseRevoke",), node)


def _session(node: FakeNode) -> Any:
    return _servicer(session_pb2_grpc.SessionServicer, ("Open",), node)


def _maintenance(node: FakeNode) -> Any:
    methods = ("Status", "HashKV", "MoveLeader", "Snapshot", "Alarm")
    return _servicer(rpc_pb2_grpc.MaintenanceServicer, methods, node)


@contextlib.contextmanager
def slow_way(address: str, delay_s: float) -> Iterator[str]:
    """A port before a node; what goes through arrives so much later, in both directions."""
    sockets: list[socket.socket] = []

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay_s)
                target.sendall(data)

    def serve(listener: socket.socket) -> None:
        host, _, port = address.rpartition(":")
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                sockets.extend((near, far))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for waiting in (listener, *sockets):
                with contextlib.suppress(OSError):
                    waiting.shutdown(socket.SHUT_RDWR)
                waiting.close()
            thread.join(10)


@contextlib.contextmanager
def broken_port(*, after_request: bool) -> Iterator[str]:
    """A port that accepts and then resets the connection, before or after it has got a request."""
    settings = b"\0\0\0\4\0\0\0\0\0"
    connections: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                with contextlib.suppress(OSError), connection:
                    if after_request:
                        connection.sendall(settings)
                        _read_request(connection)
                    # Lingering for no time makes the close a reset.
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for waiting in (listener, *connections):
                with contextlib.suppress(OSError):
                    waiting.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _read_request(connection: socket.socket) -> None:
    """Until the end of a request's only message: a data frame with the end-of-stream flag."""
    received = b""
    while not _has_request(received):
        chunk = connection.recv(65536)
        if not chunk:
            return
        received += chunk


def _has_request(received: bytes) -> bool:
    at = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    while at + 9 <= len(received):
        length = int.from_bytes(received[at : at + 3])
        kind, flags = received[at + 3], received[at + 4]
        at += 9 + length
        if kind == 0 and flags & 1 and at <= len(received):
            return True
    return False
