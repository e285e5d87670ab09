"""Election: one leader by name, with a value that can be followed. Served by the active only."""

from collections.abc import AsyncIterator
from typing import Final

import grpc

from kvpb import election_pb2, election_pb2_grpc
from kvpb.rpc_pb2 import DeleteRangeRequest, PutRequest, RequestOp, ResponseHeader, TxnRequest
from kvserver.api.following import Following
from kvserver.api.queues import (
    InterruptedWaitError,
    Place,
    QueueError,
    Queues,
    end_of,
    oldest,
    prefix_of,
    was_created_at,
)
from kvserver.errors import NotActiveError
from kvserver.mvcc.history import DELETE, Change
from kvserver.mvcc.interval import bounds
from kvserver.mvcc.keyvalue import to_message

NOT_LEADER: Final = "election: not leader"
NO_LEADER: Final = "election: no leader"
NO_LEADER_KEY: Final = '"leader" field must be provided'

Context = grpc.aio.ServicerContext


class ElectionServicer(election_pb2_grpc.ElectionServicer):
    """v3electionpb.Election."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    async def Campaign(
        self,
        request: election_pb2.CampaignRequest,
        context: "Context[election_pb2.CampaignRequest, election_pb2.CampaignResponse]",
    ) -> election_pb2.CampaignResponse:
        """Return when the caller leads."""
        return await self._queues.answer(context, self._campaign(request))

    async def _campaign(
        self, request: election_pb2.CampaignRequest
    ) -> election_pb2.CampaignResponse:
        queues = self._queues
        await queues.door.role.require_active()
        lease = await queues.lease_of(request.lease)

        async def renew(found: Place) -> None:
            await self._put(found.key, found.revision, lease, request.value)

        place, confirmed = await queues.take(request.name, lease, request.value, on_found=renew)
        if confirmed is None:
            raise QueueError(NOT_LEADER)
        leader = election_pb2.LeaderKey(
            name=request.name, key=place.key, rev=place.revision, lease=lease
        )
        return election_pb2.CampaignResponse(header=place.header, leader=leader)

    async def _put(self, key: bytes, revision: int, lease: int, value: bytes) -> ResponseHeader:
        put = PutRequest(key=key, value=value, lease=lease)
        response = await self._queues.kv.txn(
            TxnRequest(
                compare=[was_created_at(key, revision)], success=[RequestOp(request_put=put)]
            )
        )
        if not response.succeeded:
            raise QueueError(NOT_LEADER)
        return response.header

    async def Proclaim(
        self,
        request: election_pb2.ProclaimRequest,
        context: "Context[election_pb2.ProclaimRequest, election_pb2.ProclaimResponse]",
    ) -> election_pb2.ProclaimResponse:
        """Change the value of the leader."""
        return await self._queues.answer(context, self._proclaim(request))

    async def _proclaim(
        self, request: election_pb2.ProclaimRequest
    ) -> election_pb2.ProclaimResponse:
        if not request.HasField("leader"):
            raise QueueError(NO_LEADER_KEY)
        leader = request.leader
        await self._queues.door.role.require_active()
        lease = await self._queues.lease_of(leader.lease)
        header = await self._put(leader.key, leader.rev, lease, request.value)
        return election_pb2.ProclaimResponse(header=header)

    async def Resign(
        self,
        request: election_pb2.ResignRequest,
        context: "Context[election_pb2.ResignRequest, election_pb2.ResignResponse]",
    ) -> election_pb2.ResignResponse:
        """Lead no longer; nothing happens to who does not."""
        return await self._queues.answer(context, self._resign(request))

    async def _resign(self, request: election_pb2.ResignRequest) -> election_pb2.ResignResponse:
        if not request.HasField("leader"):
            raise QueueError(NO_LEADER_KEY)
        leader = request.leader
        response = await self._queues.kv.txn(
            TxnRequest(
                compare=[was_created_at(leader.key, leader.rev)],
                success=[RequestOp(request_delete_range=DeleteRangeRequest(key=leader.key))],
            )
        )
        return election_pb2.ResignResponse(header=response.header)

    async def Leader(
        self,
        request: election_pb2.LeaderRequest,
        context: "Context[election_pb2.LeaderRequest, election_pb2.LeaderResponse]",
    ) -> election_pb2.LeaderResponse:
        """Who leads now."""
        return await self._queues.answer(context, self._leader(request))

    async def _leader(self, request: election_pb2.LeaderRequest) -> election_pb2.LeaderResponse:
        found = await self._queues.kv.range(oldest(request.name))
        if not found.kvs:
            raise QueueError(NO_LEADER)
        return election_pb2.LeaderResponse(header=found.header, kv=found.kvs[0])

    async def Observe(
        self,
        request: election_pb2.LeaderRequest,
        context: "Context[election_pb2.LeaderRequest, election_pb2.LeaderResponse]",
    ) -> AsyncIterator[election_pb2.LeaderResponse]:
        """Who leads, and every leader and value that comes, as long as the client listens."""
        queues = self._queues
        await queues.answer(context, queues.door.role.require_active())
        observed = self._observe(request.name)
        while True:
            yield await queues.answer(context, _next(observed))

    async def _observe(self, name: bytes) -> AsyncIterator[election_pb2.LeaderResponse]:
        while True:
            found = await self._queues.kv.range(oldest(name))
            if found.kvs:
                leader, since = found.kvs[0], found.header.revision
                yield election_pb2.LeaderResponse(header=found.header, kv=leader)
            else:
                change = await self._first_put(name, found.header.revision)
                if change is None:
                    continue
                leader, since = to_message(change.key, change.row()), change.revision
                yield self._told(change)
            with Following(self._queues.door, bounds(leader.key, b""), since) as changes:
                while (change := await changes.next()) is not None and change.kind != DELETE:
                    yield self._told(change)

    async def _first_put(self, name: bytes, after_revision: int) -> Change | None:
        prefix = prefix_of(name)
        interval = bounds(prefix, end_of(prefix))
        with Following(
            self._queues.door, interval, after_revision, unwanted=frozenset({DELETE})
        ) as puts:
            return await puts.next()

    def _told(self, change: Change) -> election_pb2.LeaderResponse:
        response = election_pb2.LeaderResponse(kv=to_message(change.key, change.row()))
        self._queues.door.fill(response.header, change.revision)
        return response


async def _next(
    observed: AsyncIterator[election_pb2.LeaderResponse],
) -> election_pb2.LeaderResponse:
    try:
        return await anext(observed)
    except NotActiveError as error:
        raise InterruptedWaitError from error
