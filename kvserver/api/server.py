"""The gRPC server: options, services, health, reflection; start and stop, of the HTTP one too."""

from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvpb import (
    election_pb2,
    election_pb2_grpc,
    lock_pb2,
    lock_pb2_grpc,
    rpc_pb2,
    rpc_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from kvserver.api.auth import AuthServicer
from kvserver.api.cluster import ClusterServicer
from kvserver.api.door import Door
from kvserver.api.election import ElectionServicer
from kvserver.api.kv import KvServicer
from kvserver.api.lease import LeaseServicer
from kvserver.api.lock import LockServicer
from kvserver.api.maintenance import MaintenanceServicer
from kvserver.api.queues import Queues
from kvserver.api.session import SessionServicer
from kvserver.api.watch import WatchServicer
from kvserver.errors import AddressError
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.role import Role
from kvserver.telemetry import Event

if TYPE_CHECKING:
    from kvserver.api.http_server import HttpServer

RECEIVE_BYTES_MAX: Final = 2 << 20
"""Transport limit, etcd's: above the request limit, so that most get the proper answer."""

STREAMS_MAX: Final = 10_000
"""Concurrent calls on one connection."""

WAITING_MAX: Final = Limits.pending_requests_max + STREAMS_MAX
"""Calls that gRPC holds until they are looked at; those above it, it cancels without a word. It
lies above our own limit, by one full connection, so that we are the ones who refuse."""

METADATA_BYTES_MAX: Final = 72 << 10
"""Of a call, with 32 bytes for each item (RFC 9113): 64 KiB of tokens and baggage fit in."""

STANDBY_SERVICE: Final = "kv.standby"
"""Health service that says whether a standby is fit for promotion."""

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    # of each pair the first is where gRPC begins to refuse at random
    ("grpc.server.max_pending_requests", WAITING_MAX),
    ("grpc.server.max_pending_requests_hard_limit", WAITING_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class ApiServer:
    """Everything that listens to clients."""

    def __init__(self, door: Door, on_event: Event) -> None:
        self._door = door
        self._event = on_event
        self._http: HttpServer | None = None
        self._server = grpc.aio.server(options=_OPTIONS)
        kv = KvServicer(door)
        maintenance = MaintenanceServicer(door)
        cluster = ClusterServicer(door)
        rpc_pb2_grpc.add_KVServicer_to_server(kv, self._server)
        WatchServicer(door).add_to(self._server)
        rpc_pb2_grpc.add_LeaseServicer_to_server(LeaseServicer(door), self._server)
        rpc_pb2_grpc.add_MaintenanceServicer_to_server(maintenance, self._server)
        rpc_pb2_grpc.add_ClusterServicer_to_server(cluster, self._server)
        rpc_pb2_grpc.add_AuthServicer_to_server(AuthServicer(door), self._server)
        queues = Queues(door, kv)
        lock_pb2_grpc.add_LockServicer_to_server(LockServicer(queues), self._server)
        election_pb2_grpc.add_ElectionServicer_to_server(ElectionServicer(queues), self._server)
        session_pb2_grpc.add_SessionServicer_to_server(SessionServicer(door), self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [
            rpc_pb2.DESCRIPTOR.services_by_name[name].full_name
            for name in ("KV", "Watch", "Lease", "Maintenance", "Cluster", "Auth")
        ]
        names += [
            lock_pb2.DESCRIPTOR.services_by_name["Lock"].full_name,
            election_pb2.DESCRIPTOR.services_by_name["Election"].full_name,
            session_pb2.DESCRIPTOR.services_by_name["Session"].full_name,
        ]
        names += [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)

    async def start(self, clients: tuple[str, int], http: tuple[str, int] | None) -> None:
        """Listen for clients, and for those who watch.

        Args:
            clients: host and port for gRPC.
            http: host and port for HTTP, None for none.

        Raises:
            AddressError: an address can't be bound.
        """
        host, port = clients
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        await self.show_health(Role.STANDBY, fit=False)
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressError(
                f"--listen-client {address} can't be bound: is another process using it?"
            ) from error
        if http is not None:
            await self._start_http(*http)
        await self._server.start()

    async def _start_http(self, host: str, port: int) -> None:
        # here, since a node without it starts 0.2 s sooner and is 10 MB smaller
        from kvserver.api.http_server import HttpServer  # noqa: PLC0415

        self._http = HttpServer(self._door, self._event)
        await self._http.start(host, port)

    async def show_health(self, role: Role, *, fit: bool) -> None:
        """Publish role and fitness to balancers: "" serves on the active only."""
        serving = health_pb2.HealthCheckResponse.SERVING
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        active = role is Role.ACTIVE
        await self._health.set("", serving if active else not_serving)
        await self._health.set(STANDBY_SERVICE, serving if fit and not active else not_serving)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls (GOAWAY), and let those under way end within `grace_s`."""
        await self._server.stop(grace_s)
        if self._http is not None:
            await self._http.stop()
