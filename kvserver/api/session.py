"""Session: writes that are applied once, however often they are sent. Served by the active only.

A write that carries the metadata `kv-write-id-bin` is a numbered one (`mvcc/sessions.py`).
"""

from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from kvpb import session_pb2, session_pb2_grpc
from kvpb.raft_pb2 import Command
from kvserver.api.door import Door
from kvserver.errors import (
    AnswerTooLargeError,
    CompactedError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseNotFoundError,
    WindowFullError,
    WriteForgottenError,
    WriteIdError,
    WriteIdReusedError,
    WriteTooExpensiveError,
)
from kvserver.mvcc.sessions import WINDOW

WRITE_ID: Final = "kv-write-id-bin"

FROM_THE_LOG: Final = (
    KeyNotFoundError, LeaseNotFoundError, CompactedError, FutureRevisionError,
    WriteTooExpensiveError,
    WriteForgottenError, WriteIdReusedError, WindowFullError, AnswerTooLargeError,
)  # fmt: skip
"""Errors of writes that were committed in a session that is there."""

Context = grpc.aio.ServicerContext


class SessionServicer(session_pb2_grpc.SessionServicer):
    """kv.v1.Session."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def Open(
        self,
        request: session_pb2.OpenSessionRequest,
        context: "Context[session_pb2.OpenSessionRequest, session_pb2.OpenSessionResponse]",
    ) -> session_pb2.OpenSessionResponse:
        """Begin a session."""
        return await self._door.answer(context, self._open(request))

    async def _open(
        self, request: session_pb2.OpenSessionRequest
    ) -> session_pb2.OpenSessionResponse:
        await self._door.role.require_active()
        granted = await self._door.lessor.open_session(request.ttl_s)
        response = session_pb2.OpenSessionResponse(
            header=granted.header, session=granted.ID, ttl_s=granted.TTL, window=WINDOW
        )
        self._door.fill(response.header)
        return response


def number(command: Command, context: "Context[Any, Any]") -> bool:
    """Give a write the number that its client has sent along; False if it has none.

    Raises:
        WriteIdError: it is none.
    """
    for name, value in context.invocation_metadata() or ():
        if name == WRITE_ID:
            try:
                write = session_pb2.WriteId.FromString(value)  # type: ignore[arg-type] # -bin: bytes
            except DecodeError:
                raise WriteIdError from None
            if write.session <= 0 or not write.sequence:
                raise WriteIdError
            command.session = write.session
            command.sequence = write.sequence
            command.done_to = write.done_to
            return True
    return False
