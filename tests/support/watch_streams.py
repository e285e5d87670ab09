"""Watch streams of one server, as bare as they are on the wire."""

import queue
import threading
from typing import Any

import grpc

from kvpb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    TxnRequest,
    WatchRequest,
    WatchResponse,
)
from kvpb.rpc_pb2_grpc import KVStub, WatchStub

WITHIN_S = 10
END = WatchRequest()


class Stream:
    """One watch stream of one server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._out: queue.Queue[WatchRequest] = queue.Queue()
        self._in: queue.Queue[WatchResponse | grpc.RpcError | None] = queue.Queue()
        self._call = WatchStub(channel).Watch(iter(self._out.get, END))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._reading = False

    def _listen(self) -> None:
        try:
            for response in self._call:
                self._in.put(response)
            self._in.put(None)
        except grpc.RpcError as error:
            self._in.put(error)

    def ask(self, **request: Any) -> None:
        self._out.put(WatchRequest(**request))

    def next(self, within_s: float = WITHIN_S) -> WatchResponse:
        """The next response, without what names the server. Nothing is read before the first call.

        Raises:
            queue.Empty: there was none in time.
        """
        if not self._reading:
            self._reading = True
            self._thread.start()
        response = self._in.get(timeout=within_s)
        assert isinstance(response, WatchResponse), f"the stream has ended: {response}"
        for field in ("cluster_id", "member_id", "raft_term"):
            response.header.ClearField(field)
        return response

    def close(self) -> None:
        self._out.put(END)
        self._call.cancel()
        if self._reading:
            self._thread.join(WITHIN_S)


class Side:
    """One server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.kv = KVStub(channel)

    def do(self, request: object) -> Any:
        """The reply to any key-value request."""
        methods = {
            PutRequest: self.kv.Put, DeleteRangeRequest: self.kv.DeleteRange,
            TxnRequest: self.kv.Txn, CompactionRequest: self.kv.Compact,
            RangeRequest: self.kv.Range,
        }  # fmt: skip
        return methods[type(request)](request)  # type: ignore[operator]

    def revision(self) -> int:
        return int(self.kv.Range(RangeRequest(key=b"k")).header.revision)

    def clear(self) -> int:
        """Delete all keys; the revision then."""
        return int(self.do(DeleteRangeRequest(key=b"\0", range_end=b"\0")).header.revision)


def back_by(response: WatchResponse, start: int) -> WatchResponse:
    """A response with its revisions counted from `start`."""

    def back(message: Any, *fields: str) -> None:
        for field in fields:
            if getattr(message, field) > 0:
                setattr(message, field, getattr(message, field) - start)

    copy = WatchResponse()
    copy.CopyFrom(response)
    back(copy.header, "revision")
    back(copy, "compact_revision")
    for event in copy.events:
        for pair in (event.kv, event.prev_kv):
            back(pair, "create_revision", "mod_revision")
    return copy
