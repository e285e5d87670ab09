"""KV: ranges, puts, deletes, transactions. Served by the active only.

Steps 1, 2 and 9 of a put (ARCHITECTURE.md): receive, check, respond.
"""

import asyncio
from collections.abc import Generator
from typing import Any, Final, TypeVar

import grpc

from kvpb import rpc_pb2, rpc_pb2_grpc
from kvpb.raft_pb2 import Command
from kvserver.api import session, validate
from kvserver.api.answers import Answers, Room
from kvserver.api.door import Door
from kvserver.mvcc.ranges import RangeBuilder
from kvserver.mvcc.store import current_revision, read_txn
from kvserver.pipeline.outcome import Response

SLICE_KEYS: Final = 500
"""Keys of a large range that are read before other requests get their turn."""

COMPACTION_LOOK_S: Final = 0.02

Context = grpc.aio.ServicerContext

T = TypeVar("T")


async def _drive(work: Generator[None, None, T], room: Room) -> T:
    """Do work that yields now and then; others get their turn meanwhile."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        await room.go_on()


class KvServicer(rpc_pb2_grpc.KVServicer):
    """etcdserverpb.KV."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._answers = Answers()

    async def Put(
        self,
        request: rpc_pb2.PutRequest,
        context: "Context[rpc_pb2.PutRequest, rpc_pb2.PutResponse]",
    ) -> rpc_pb2.PutResponse:
        """Set one key."""
        return await self._door.answer(context, self._put(request, context))

    async def _put(
        self, request: rpc_pb2.PutRequest, context: "Context[Any, Any]"
    ) -> rpc_pb2.PutResponse:
        validate.check_put(request)
        await self._door.role.require_active()
        response = await self._write(Command(put=request), context)
        assert isinstance(response, rpc_pb2.PutResponse)
        self._door.fill(response.header)
        return response

    async def DeleteRange(
        self,
        request: rpc_pb2.DeleteRangeRequest,
        context: "Context[rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse]",
    ) -> rpc_pb2.DeleteRangeResponse:
        """Delete the keys of a range."""
        return await self._door.answer(context, self.delete_range(request, context))

    async def delete_range(
        self, request: rpc_pb2.DeleteRangeRequest, context: "Context[Any, Any] | None" = None
    ) -> rpc_pb2.DeleteRangeResponse:
        """The same, for other services of this node: those have no context.

        Raises:
            RequestError: as the catalogue has it.
        """
        validate.check_delete_range(request)
        await self._door.role.require_active()
        response = await self._write(Command(delete_range=request), context)
        assert isinstance(response, rpc_pb2.DeleteRangeResponse)
        self._door.fill(response.header)
        return response

    async def Range(
        self,
        request: rpc_pb2.RangeRequest,
        context: "Context[rpc_pb2.RangeRequest, rpc_pb2.RangeResponse]",
    ) -> rpc_pb2.RangeResponse:
        """Read the keys of a range; linearizable unless `serializable`."""
        return await self._door.answer(context, self.range(request, context))

    async def range(
        self, request: rpc_pb2.RangeRequest, context: "Context[Any, Any] | None" = None
    ) -> rpc_pb2.RangeResponse:
        """The same, for other services of this node: those have no context.

        Raises:
            RequestError: as the catalogue has it.
        """
        validate.check_range(request)
        await self._door.role.require_active()
        await self._door.read_moment(serializable=request.serializable)
        with self._door.storage.read() as txn:
            revision = current_revision(txn)
            room = self._answers.room(context)
            builder = RangeBuilder(txn, request, revision, room)
            while not builder.step(SLICE_KEYS):
                await room.go_on()
            room.built()
            response = builder.response
        self._door.fill(response.header, revision)
        return response

    async def Txn(
        self,
        request: rpc_pb2.TxnRequest,
        context: "Context[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse]",
    ) -> rpc_pb2.TxnResponse:
        """Compare, then do one branch or the other, as one change."""
        return await self._door.answer(context, self.txn(request, context))

    async def txn(
        self, request: rpc_pb2.TxnRequest, context: "Context[Any, Any] | None" = None
    ) -> rpc_pb2.TxnResponse:
        """The same, for other services of this node: those have no context.

        Raises:
            RequestError: as the catalogue has it.
        """
        validate.check_txn(request)
        await self._door.role.require_active()
        if not validate.is_read_only(request):
            response = await self._write(Command(txn=request), context)
            assert isinstance(response, rpc_pb2.TxnResponse)
        else:
            await self._door.reader.linearizable()
            with self._door.storage.read() as txn:
                room = self._answers.room(context)
                response = await _drive(read_txn(txn, request, room), room)
                room.built()
        self._door.fill(response.header)
        return response

    async def _write(self, command: Command, context: "Context[Any, Any] | None") -> Response:
        propose = self._door.proposer.propose
        if context is None or not session.number(command, context):
            return await propose(command)
        lessor = self._door.lessor
        with lessor.awaited.within(command.session):
            try:
                response = await propose(command)
            except session.FROM_THE_LOG:
                lessor.used(command.session)
                raise
            lessor.used(command.session)
            return response

    async def Compact(
        self,
        request: rpc_pb2.CompactionRequest,
        context: "Context[rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse]",
    ) -> rpc_pb2.CompactionResponse:
        """Forget what was before a revision; with `physical` wait until this disk has."""
        return await self._door.answer(context, self._compact(request))

    async def _compact(self, request: rpc_pb2.CompactionRequest) -> rpc_pb2.CompactionResponse:
        await self._door.role.require_active()
        response = await self._door.proposer.propose(Command(compact=request))
        assert isinstance(response, rpc_pb2.CompactionResponse)
        while request.physical and self._door.compacted_to() < request.revision:
            await asyncio.sleep(COMPACTION_LOOK_S)
        self._door.fill(response.header)
        return response
