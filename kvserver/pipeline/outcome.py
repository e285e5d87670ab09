"""How a request ends: a response, or a reason; carried from the raft thread to the main one."""

import asyncio
from collections.abc import Iterable

from kvpb import rpc_pb2
from kvserver.errors import RequestError

Response = (
    rpc_pb2.PutResponse
    | rpc_pb2.DeleteRangeResponse
    | rpc_pb2.TxnResponse
    | rpc_pb2.CompactionResponse
    | rpc_pb2.AlarmResponse
    | rpc_pb2.LeaseGrantResponse
    | rpc_pb2.LeaseRevokeResponse
    | None
)
"""What applying a command gives; None where there is nothing to tell."""

Result = Response | RequestError

Outcome = tuple["asyncio.Future[Response]", Result]


def settle(outcomes: Iterable[Outcome]) -> None:
    """Give every waiting request its result. On the main thread."""
    for future, result in outcomes:
        if future.done():
            continue  # its client went away, or its time was up
        if isinstance(result, RequestError):
            future.set_exception(result)
        else:
            future.set_result(result)
