"""Lease: time-to-live grants that keys can be attached to. Served by the active only."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc

from kvpb import rpc_pb2, rpc_pb2_grpc
from kvpb.raft_pb2 import Command
from kvserver.api.door import Door
from kvserver.api.streams import after_first_request, converse
from kvserver.mvcc.leases import keys_of

KEPT_TOGETHER_MAX: Final = 1_000
"""Keepalives of one stream that share a read round; a client that sends more has to wait."""

SLICE_KEYS: Final = 1_000
SLICE_LEASES: Final = 5_000

Context = grpc.aio.ServicerContext


class LeaseServicer(rpc_pb2_grpc.LeaseServicer):
    """etcdserverpb.Lease."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def LeaseGrant(
        self,
        request: rpc_pb2.LeaseGrantRequest,
        context: "Context[rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse]",
    ) -> rpc_pb2.LeaseGrantResponse:
        """Begin a lease."""
        return await self._door.answer(context, self._grant(request))

    async def _grant(self, request: rpc_pb2.LeaseGrantRequest) -> rpc_pb2.LeaseGrantResponse:
        await self._door.role.require_active()
        response = await self._door.lessor.grant(request)
        self._door.fill(response.header)
        return response

    async def LeaseRevoke(
        self,
        request: rpc_pb2.LeaseRevokeRequest,
        context: "Context[rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse]",
    ) -> rpc_pb2.LeaseRevokeResponse:
        """End a lease and delete its keys."""
        return await self._door.answer(context, self._revoke(request))

    async def _revoke(self, request: rpc_pb2.LeaseRevokeRequest) -> rpc_pb2.LeaseRevokeResponse:
        await self._door.role.require_active()
        response = await self._door.proposer.propose(Command(lease_revoke=request))
        assert isinstance(response, rpc_pb2.LeaseRevokeResponse)
        self._door.fill(response.header)
        return response

    async def LeaseKeepAlive(  # type: ignore[override] # it writes, where others yield
        self,
        request_iterator: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest],
        context: "Context[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]",
    ) -> None:
        """Give leases their full time anew, until the client, or this node as active, goes."""
        door = self._door
        requests = await after_first_request(request_iterator)
        await door.answer(context, door.role.require_active())
        waiting: asyncio.Queue[int | None] = asyncio.Queue(KEPT_TOGETHER_MAX)
        talk = self._keep_alive(waiting, context)
        await converse(door, context, _listen(requests, waiting), talk)

    async def _keep_alive(
        self,
        waiting: "asyncio.Queue[int | None]",
        context: "Context[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]",
    ) -> None:
        """Answer in order, all that wait at a time."""
        door = self._door
        while (first := await waiting.get()) is not None:
            numbers: list[int | None] = [first]
            while not waiting.empty() and numbers[-1] is not None:
                numbers.append(waiting.get_nowait())
            wanted = [number for number in numbers if number is not None]
            kept = await door.lessor.keep_alive(wanted)
            for number, ttl_s in zip(wanted, kept, strict=True):
                response = rpc_pb2.LeaseKeepAliveResponse(ID=number, TTL=ttl_s)
                door.fill(response.header, door.newest_revision())
                await context.write(response)
            if numbers[-1] is None:
                return

    async def LeaseTimeToLive(
        self,
        request: rpc_pb2.LeaseTimeToLiveRequest,
        context: "Context[rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.LeaseTimeToLiveResponse]",
    ) -> rpc_pb2.LeaseTimeToLiveResponse:
        """How long a lease has left, and which keys end with it."""
        return await self._door.answer(context, self._time_to_live(request))

    async def _time_to_live(
        self, request: rpc_pb2.LeaseTimeToLiveRequest
    ) -> rpc_pb2.LeaseTimeToLiveResponse:
        await self._door.role.require_active()
        left = await self._door.lessor.remaining(request.ID)
        response = rpc_pb2.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        self._door.fill(response.header, self._door.newest_revision())
        if left is None:
            return response
        response.TTL, response.grantedTTL = left.left_s, left.granted_s
        if request.keys:
            with self._door.storage.read() as txn:
                for number, key in enumerate(keys_of(txn, request.ID), 1):
                    response.keys.append(key)
                    if number % SLICE_KEYS == 0:
                        await asyncio.sleep(0)
        return response

    async def LeaseLeases(
        self,
        request: rpc_pb2.LeaseLeasesRequest,
        context: "Context[rpc_pb2.LeaseLeasesRequest, rpc_pb2.LeaseLeasesResponse]",
    ) -> rpc_pb2.LeaseLeasesResponse:
        """Ids of all leases, those that end first in front."""
        return await self._door.answer(context, self._leases())

    async def _leases(self) -> rpc_pb2.LeaseLeasesResponse:
        await self._door.role.require_active()
        numbers = await self._door.lessor.all()
        response = rpc_pb2.LeaseLeasesResponse()
        for place in range(0, len(numbers), SLICE_LEASES):
            part = numbers[place : place + SLICE_LEASES]
            response.leases.extend(rpc_pb2.LeaseStatus(ID=number) for number in part)
            await asyncio.sleep(0)
        self._door.fill(response.header, self._door.newest_revision())
        return response


async def _listen(
    requests: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest], waiting: "asyncio.Queue[int | None]"
) -> None:
    """Queue what is to be kept alive, then None."""
    async for request in requests:
        await waiting.put(request.ID)
    await waiting.put(None)
