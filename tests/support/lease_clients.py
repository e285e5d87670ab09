"""Clients that hold leases in a simulated cluster, and what they were told of their time."""

import asyncio
from typing import Any

from support.calls import ConnectionLostError, Finder, NotDoneError
from support.clients import Clients
from support.whole_node import WholeNode

from kvpb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    PutRequest,
)
from kvserver.mvcc.leases import LeaseChange
from kvserver.pipeline.lessor import LOOK_S, STALL_GRACE_S

TTLS_S = (1, 1, 1, 2, 3)
KEEPERS = 4
LEASE_KEYS = b"lease/"

END_WITHIN_S = max(TTLS_S) + STALL_GRACE_S + 2 * LOOK_S + 0.5
"""Time after which nothing is left of abandoned leases, once nothing fails any more."""


class Keepers:
    """Those clients, and the leases of the run."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self.promised: dict[int, float] = {}
        """Until when a lease lives, as its client knows: counted from when it asked."""
        self.ended: dict[int, float] = {}
        self.revoked: set[int] = set()
        self.kept = 0
        for _ in range(KEEPERS):
            clients.add(_Keeper(self, clients))

    def fresh_id(self) -> int:
        lease = len(self.promised) + 1
        self.promised[lease] = 0.0
        return lease

    def applied(self, changes: list[LeaseChange]) -> None:
        """Some node applied this."""
        for lease, row in changes:
            if row is None:
                self.ended.setdefault(lease, self._clients.loop.time())

    def early(self) -> list[str]:
        """Leases that ended before their time."""
        return [
            f"lease {lease} ended {self.promised[lease] - at:.3f} s early"
            for lease, at in self.ended.items()
            if lease not in self.revoked and at < self.promised[lease]
        ]


class _Keeper:
    """Takes a lease, keeps it alive for a while, leaves it alone; again and again."""

    def __init__(self, keepers: Keepers, clients: Clients) -> None:
        self._keepers = keepers
        self._clients = clients
        self._rng = clients.rng
        self._do = Finder(clients.pick, self._send, clients.rng).ask
        self._sent_at = 0.0
        self.stopping = False

    def _send(self, node: WholeNode, method: str, request: Any) -> "asyncio.Future[Any]":
        self._sent_at = self._clients.loop.time()
        return self._clients.send(node, method, request)

    async def run(self) -> None:
        while not self.stopping:
            await asyncio.sleep(self._rng.uniform(0, 0.2))
            ttl_s, lease = self._rng.choice(TTLS_S), self._keepers.fresh_id()
            try:
                await self._hold(lease, ttl_s)
            except (ConnectionLostError, NotDoneError):
                continue

    async def _hold(self, lease: int, ttl_s: int) -> None:
        await self._ask(lease, "LeaseGrant", LeaseGrantRequest(ID=lease, TTL=ttl_s))
        key = LEASE_KEYS + b"%d" % lease
        await self._do("Put", PutRequest(key=key, lease=lease))
        while self._rng.random() < 0.9 and not self.stopping:
            await asyncio.sleep(ttl_s * self._rng.uniform(0.1, 0.5))
            try:
                answer = await self._ask(lease, "LeaseKeepAlive", LeaseKeepAliveRequest(ID=lease))
            except (ConnectionLostError, NotDoneError):
                continue
            if not answer.TTL:
                return
            self._keepers.kept += 1
        if self._rng.random() < 0.2:
            self._keepers.revoked.add(lease)
            await self._do("LeaseRevoke", LeaseRevokeRequest(ID=lease))

    async def _ask(self, lease: int, method: str, request: Any) -> Any:
        answer = await self._do(method, request)
        promised = self._keepers.promised
        if answer.TTL:
            promised[lease] = max(promised[lease], self._sent_at + answer.TTL)
        return answer
