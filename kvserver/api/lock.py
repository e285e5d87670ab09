"""Lock: mutual exclusion by name. Served by the active only."""

from typing import Final

import grpc

from kvpb import lock_pb2, lock_pb2_grpc
from kvpb.rpc_pb2 import DeleteRangeRequest
from kvserver.api.queues import QueueError, Queues

SESSION_EXPIRED: Final = "mutex: session is expired"

Context = grpc.aio.ServicerContext


class LockServicer(lock_pb2_grpc.LockServicer):
    """v3lockpb.Lock."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    async def Lock(
        self,
        request: lock_pb2.LockRequest,
        context: "Context[lock_pb2.LockRequest, lock_pb2.LockResponse]",
    ) -> lock_pb2.LockResponse:
        """Return when the lock is held."""
        return await self._queues.answer(context, self._lock(request))

    async def _lock(self, request: lock_pb2.LockRequest) -> lock_pb2.LockResponse:
        queues = self._queues
        await queues.door.role.require_active()
        lease = await queues.lease_of(request.lease)
        place, header = await queues.take(request.name, lease, b"")
        if header is None:
            raise QueueError(SESSION_EXPIRED)
        return lock_pb2.LockResponse(header=header, key=place.key)

    async def Unlock(
        self,
        request: lock_pb2.UnlockRequest,
        context: "Context[lock_pb2.UnlockRequest, lock_pb2.UnlockResponse]",
    ) -> lock_pb2.UnlockResponse:
        """Let go."""
        return await self._queues.answer(context, self._unlock(request))

    async def _unlock(self, request: lock_pb2.UnlockRequest) -> lock_pb2.UnlockResponse:
        response = await self._queues.kv.delete_range(DeleteRangeRequest(key=request.key))
        return lock_pb2.UnlockResponse(header=response.header)
