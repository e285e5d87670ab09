"""A holder of a lease on a real cluster, with bare stubs: what it is told, and by when."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from kvbench import clock
from kvpb.lock_pb2 import LockRequest, UnlockRequest
from kvpb.lock_pb2_grpc import LockStub
from kvpb.rpc_pb2 import (
    Compare,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvpb.rpc_pb2_grpc import KVStub, LeaseStub

T = TypeVar("T")

CALL_S_MAX = 1.0
LOCK_S_MAX = 3.0
GIVE_UP_S = 20.0
PAUSE_S = 0.02


class Holder:
    """One lease and one key; asks who answered last, then every endpoint in turn until one does."""

    def __init__(self, endpoints: tuple[str, ...], lease: int, ttl_s: int) -> None:
        self._endpoints = endpoints
        self._turn = 0
        """Which of them answered last."""
        self.lease = lease
        self.ttl_s = ttl_s
        self.key = b"lease/%d" % lease
        self.until = 0.0
        """Time up to which it was told that the lease lives, counted from when it asked."""
        self.kept = 0
        self._keeping: asyncio.Task[None] | None = None

    async def ask(self, call: Callable[[grpc.aio.Channel], Awaitable[T]]) -> tuple[T, float]:
        """The answer of whoever serves, and when it was asked for."""
        deadline = clock.monotonic() + GIVE_UP_S
        while True:
            endpoint = self._endpoints[self._turn % len(self._endpoints)]
            asked_at = clock.monotonic()
            async with grpc.aio.insecure_channel(
                endpoint, (("grpc.enable_http_proxy", 0),)
            ) as channel:
                try:
                    return await call(channel), asked_at
                except grpc.aio.AioRpcError as error:
                    last = error
            assert clock.monotonic() < deadline, last
            self._turn += 1
            await asyncio.sleep(PAUSE_S)

    async def begin(self) -> None:
        """Grant the lease, put the key."""
        grant = LeaseGrantRequest(ID=self.lease, TTL=self.ttl_s)
        put = PutRequest(key=self.key, value=b"held", lease=self.lease)
        answer, asked_at = await self.ask(
            lambda channel: LeaseStub(channel).LeaseGrant(grant, timeout=CALL_S_MAX)
        )
        self.until = asked_at + answer.TTL
        await self.ask(lambda channel: KVStub(channel).Put(put, timeout=CALL_S_MAX))

    async def keep_alive_once(self) -> int:
        """The time that it has from now on, in seconds."""
        request = LeaseKeepAliveRequest(ID=self.lease)

        async def keep(channel: grpc.aio.Channel) -> int:
            call = LeaseStub(channel).LeaseKeepAlive(timeout=CALL_S_MAX)
            await call.write(request)
            answer = await call.read()
            if not hasattr(answer, "TTL"):  # the stream has ended instead
                raise grpc.aio.AioRpcError(
                    await call.code(), await call.initial_metadata(), await call.trailing_metadata()
                )
            return int(answer.TTL)

        ttl_s, asked_at = await self.ask(keep)
        if ttl_s:
            self.until = asked_at + ttl_s
            self.kept += 1
        return ttl_s

    def keep_alive(self) -> None:
        """Keep it alive from now on, as etcd's clients do."""

        async def keep() -> None:
            while await self.keep_alive_once():
                await asyncio.sleep(self.ttl_s / 3)
            raise AssertionError(f"lease {self.lease} is gone")

        self._keeping = asyncio.create_task(keep())

    async def leave(self) -> None:
        """Keep it alive no longer."""
        assert self._keeping is not None
        if self._keeping.done():
            self._keeping.result()
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    async def there(self) -> bool:
        """Whether the key is there."""
        request = RangeRequest(key=self.key)
        answer, _ = await self.ask(
            lambda channel: KVStub(channel).Range(request, timeout=CALL_S_MAX)
        )
        return bool(answer.kvs)


class Contender(Holder):
    """Somebody who takes a lock with his lease, as often as it takes with the same."""

    def __repr__(self) -> str:
        return f"contender {self.lease}"

    async def lock(self, name: bytes) -> int:
        """Hold the lock; returns its fencing token."""
        request = LockRequest(name=name, lease=self.lease)
        answer, _ = await self.ask(
            lambda channel: LockStub(channel).Lock(request, timeout=LOCK_S_MAX)
        )
        self._lock = answer.key
        look = RangeRequest(key=self._lock)
        found, _ = await self.ask(lambda channel: KVStub(channel).Range(look, timeout=CALL_S_MAX))
        (kv,) = found.kvs
        return int(kv.create_revision)

    async def write_guarded(self, key: bytes, token: int) -> bool:
        """Write something that only the holder of the lock may; whether it was written."""
        guard = Compare(key=self._lock, target=Compare.CREATE, create_revision=token)
        put = PutRequest(key=key, value=b"%d" % token)
        request = TxnRequest(compare=[guard], success=[RequestOp(request_put=put)])
        answer, _ = await self.ask(lambda channel: KVStub(channel).Txn(request, timeout=CALL_S_MAX))
        return bool(answer.succeeded)

    async def unlock(self) -> None:
        """Let go."""
        request = UnlockRequest(key=self._lock)
        await self.ask(lambda channel: LockStub(channel).Unlock(request, timeout=CALL_S_MAX))
