"""Auth: says that it is off, as an etcd without users does. Answered by every node."""

import grpc

from kvpb import rpc_pb2, rpc_pb2_grpc
from kvserver.api.door import Door
from kvserver.errors import AuthNotEnabledError

Context = grpc.aio.ServicerContext


class AuthServicer(rpc_pb2_grpc.AuthServicer):
    """etcdserverpb.Auth; what it does not define is answered UNIMPLEMENTED."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def AuthStatus(
        self,
        request: rpc_pb2.AuthStatusRequest,
        context: "Context[rpc_pb2.AuthStatusRequest, rpc_pb2.AuthStatusResponse]",
    ) -> rpc_pb2.AuthStatusResponse:
        """Whether users have to name themselves."""
        response = rpc_pb2.AuthStatusResponse(enabled=False, authRevision=1)
        self._door.fill(response.header, self._door.newest_revision())
        return response

    async def Authenticate(
        self,
        request: rpc_pb2.AuthenticateRequest,
        context: "Context[rpc_pb2.AuthenticateRequest, rpc_pb2.AuthenticateResponse]",
    ) -> rpc_pb2.AuthenticateResponse:
        """Tell clients that were given a user that none is needed: etcd's own go on without."""
        return await self._door.answer(context, _refuse())


async def _refuse() -> rpc_pb2.AuthenticateResponse:
    raise AuthNotEnabledError
