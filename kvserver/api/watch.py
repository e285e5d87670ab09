"""Watch: one stream of a client, many watchers on it."""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc

from kvpb import rpc_pb2
from kvpb.kv_pb2 import Event
from kvserver.api.door import Door
from kvserver.api.streams import after_first_request, converse
from kvserver.mvcc.history import DELETE, PUT, Change, previous_row
from kvserver.mvcc.interval import bounds
from kvserver.mvcc.keyvalue import decode_row, to_message
from kvserver.pipeline.watching import News, Watcher
from kvserver.storage.contract import ReadTxn

QUEUE_BYTES_MAX: Final = 4 << 20
"""Of one stream; above it its watchers catch up from the history once there is room again."""

QUEUE_RESPONSES_MAX: Final = 10_000
FULL_PAUSE_S: Final = 0.01

FRAGMENT_BYTES: Final = 1_572_864 + (512 << 10)
"""Largest response to a watcher that asked for fragments, as in etcd; one event may be larger."""

RESPONSE_BYTES: Final = 2 << 20
"""Of a response, up to the end of a revision: the rows before changes count as well, so that not a
thousand deletions of large values become one response. The watcher gets the rest in later ones."""

EVENT_BYTES: Final = 6
"""What an event takes in a response besides its own bytes, at most: its tag and its length."""

RESPONSE_HEAD_BYTES: Final = 80
"""What a response takes besides events, at most: four numbers of a header, the id of the watcher,
the mark of a fragment, each with its tag, and the length of the header."""

PROGRESS_LOOK_S: Final = 1.0

_UNWANTED: Final = {
    rpc_pb2.WatchCreateRequest.NOPUT: PUT,
    rpc_pb2.WatchCreateRequest.NODELETE: DELETE,
}

Parts = tuple[bytes, ...]
"""Of a response: each a message for itself, all of them together the response."""

Context = grpc.aio.ServicerContext


class WatchServicer:
    """etcdserverpb.Watch."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve there. What many watchers get is serialized once, so not by gRPC."""
        watch = grpc.stream_stream_rpc_method_handler(
            self.watch, rpc_pb2.WatchRequest.FromString, b"".join
        )
        name = rpc_pb2.DESCRIPTOR.services_by_name["Watch"].full_name
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"Watch": watch}),)
        )

    async def watch(
        self,
        request_iterator: AsyncIterator[rpc_pb2.WatchRequest],
        context: "Context[rpc_pb2.WatchRequest, Parts]",
    ) -> None:
        """Serve one stream until its client, or this node as the active, goes away."""
        door = self._door
        requests = await after_first_request(request_iterator)
        await door.answer(context, door.role.require_active())
        stream = WatchStream(door)
        try:
            await converse(door, context, stream.listen(requests), stream.talk(context))
        finally:
            stream.close()


class WatchStream:
    """The watchers of one stream, and what waits to be sent to their client."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._watchers: dict[int, Watcher] = {}
        self._ended: set[int] = set()
        """Ids of watchers that a compaction has ended: taken until cancelled, as in etcd."""
        self._next_number = 0
        self._queue: deque[tuple[Parts, int]] = deque()
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._progress_wanted = False
        self._look_s = min(PROGRESS_LOOK_S, door.watch_progress_s)
        self._look_again_at = 0.0

    # ------------------------------------------------------------------ as a sink

    @property
    def full(self) -> bool:
        """True while it takes no more events."""
        return self._queued_bytes >= QUEUE_BYTES_MAX

    def send(self, watcher: Watcher, changes: list[Change], news: News) -> int | None:
        """Queue the events of changes, as many as belong into a response."""
        if watcher.progress:
            watcher.idle_since = self._door.clock.monotonic()
        if watcher.fragment:
            events, left_from = _events(watcher, changes, news.txn)
            self._send_fragments(watcher, events, news)
            return left_from
        # two messages one behind the other are one message: what is the watcher's own comes first
        of_all = (watcher.prev_kv, *map(id, changes))
        made = news.made.get(of_all)
        if made is None:
            events, left_from = _events(watcher, changes, news.txn)
            body = self._response(news.revision, events=events)
            made = news.made[of_all] = body, left_from
        self._queue_up(_of_watcher(watcher.number), made[0])
        return made[1]

    def _send_fragments(self, watcher: Watcher, events: list[Event], news: News) -> None:
        parts = list(_fragments(events))
        for part in parts:
            more = part is not parts[-1]
            body = self._response(news.revision, events=part, fragment=more)
            self._queue_up(_of_watcher(watcher.number), body)

    def compacted(self, watcher: Watcher, revision: int) -> None:
        """Tell that what a watcher needs is gone."""
        del self._watchers[watcher.number]
        self._ended.add(watcher.number)
        self._queue_up(
            self._response(None, watch_id=watcher.number, canceled=True, compact_revision=revision)
        )

    def _response(self, revision: int | None, **fields: Any) -> bytes:
        """A response, or a part of one."""
        response = rpc_pb2.WatchResponse(**fields)
        self._door.fill(response.header, revision)
        return response.SerializeToString()

    def _queue_up(self, *parts: bytes) -> None:
        size = sum(map(len, parts))
        self._queue.append((parts, size))
        self._queued_bytes += size
        self._filled.set()

    # ------------------------------------------------------------------ towards the client

    async def talk(self, context: "Context[rpc_pb2.WatchRequest, Parts]") -> None:
        """Send what is queued, and now and then a sign of progress."""
        while True:
            while self._queue:
                parts, size = self._queue.popleft()
                await context.write(parts)
                self._queued_bytes -= size
            self._filled.clear()
            self._say_progress_if_wanted()
            self._say_idle_progress()
            if self._queue:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._filled.wait()

    def _say_idle_progress(self) -> None:
        now, hub, every_s = (
            self._door.clock.monotonic(),
            self._door.watches,
            self._door.watch_progress_s,
        )
        if now < self._look_again_at:
            return
        self._look_again_at = now + self._look_s
        for watcher in self._watchers.values():
            if watcher.progress and watcher.live and now - watcher.idle_since > every_s:
                watcher.idle_since = now
                self._queue_up(self._response(hub.revision, watch_id=watcher.number))

    def _say_progress_if_wanted(self) -> None:
        """An answer to a progress request: all watchers have everything up to a revision."""
        if self._progress_wanted and all(watcher.live for watcher in self._watchers.values()):
            self._progress_wanted = False
            self._queue_up(self._response(self._door.watches.revision, watch_id=-1))

    # ------------------------------------------------------------------ from the client

    async def listen(self, requests: AsyncIterator[rpc_pb2.WatchRequest]) -> None:
        """Do what the client asks for until it ends the stream.

        One that asks faster than it reads the answers has to wait: nothing more is read of it.
        """
        async for request in requests:
            while self.full or len(self._queue) > QUEUE_RESPONSES_MAX:
                await asyncio.sleep(FULL_PAUSE_S)
            match request.WhichOneof("request_union"):
                case "create_request":
                    if request.create_request.start_revision > 0:
                        # what was answered before, a compaction too, must be seen
                        await self._door.read_moment(serializable=True)
                    self._create(request.create_request)
                case "cancel_request":
                    self._cancel(request.cancel_request.watch_id)
                case "progress_request":
                    self._progress_wanted = True
                    self._filled.set()
                case None:
                    pass

    def _create(self, request: rpc_pb2.WatchCreateRequest) -> None:
        newest = self._door.newest_revision()
        key = request.key or b"\0"
        reason = self._refuse_reason(request, key)
        number = -1 if reason is not None else self._number(request.watch_id)
        self._queue_up(
            self._response(
                newest, watch_id=number, created=True, canceled=reason is not None,
                cancel_reason=reason or "",
            )
        )  # fmt: skip
        if reason is not None:
            return
        watcher = Watcher(
            number,
            bounds(key, request.range_end),
            self,
            next_revision=request.start_revision or newest + 1,
            unwanted=frozenset(_UNWANTED[each] for each in request.filters if each in _UNWANTED),
            prev_kv=request.prev_kv,
            fragment=request.fragment,
            progress=request.progress_notify,
            idle_since=self._door.clock.monotonic(),
        )
        self._watchers[number] = watcher
        self._door.watches.add(watcher, newest)

    def _refuse_reason(self, request: rpc_pb2.WatchCreateRequest, key: bytes) -> str | None:
        """Why this can't be watched, None if it can."""
        if request.range_end not in {b"", b"\0"} and request.range_end <= key:
            return "mvcc: watcher range is empty"
        if request.start_revision < 0:
            return "etcdserver: mvcc: required revision has been compacted"
        if request.watch_id and self._is_taken(request.watch_id):
            return "mvcc: duplicate watch ID provided on the WatchStream"
        return None

    def _number(self, wanted: int) -> int:
        """The watch id: the client's, or the next free one."""
        if wanted:
            return wanted
        while self._is_taken(self._next_number):
            self._next_number += 1
        self._next_number += 1
        return self._next_number - 1

    def _is_taken(self, number: int) -> bool:
        return number in self._watchers or number in self._ended

    def _cancel(self, number: int) -> None:
        if not self._is_taken(number):
            return
        self._ended.discard(number)
        watcher = self._watchers.pop(number, None)
        if watcher is not None:
            self._door.watches.remove(watcher)
        newest = self._door.newest_revision()
        self._queue_up(self._response(newest, watch_id=number, canceled=True))

    def close(self) -> None:
        """The stream is over."""
        for watcher in self._watchers.values():
            self._door.watches.remove(watcher)
        self._watchers.clear()


@functools.lru_cache(maxsize=20_000)
def _of_watcher(number: int) -> bytes:
    """The part of a response that is one watcher's alone."""
    return rpc_pb2.WatchResponse(watch_id=number).SerializeToString()


def _event(watcher: Watcher, change: Change, txn: ReadTxn | None) -> Event:
    if change.kind == DELETE:
        event = Event(type=Event.DELETE)
        event.kv.key, event.kv.mod_revision = change.key, change.revision
        created = False
    else:
        row = change.row()
        event = Event(type=Event.PUT, kv=to_message(change.key, row))
        created = row.create_revision == row.mod_revision
    if watcher.prev_kv and not created:
        before = None
        if change.previous:
            before = decode_row(change.previous)
        elif txn is not None:
            before = previous_row(txn, change)
        if before is not None:
            event.prev_kv.CopyFrom(to_message(change.key, before))
    return event


def _events(
    watcher: Watcher, changes: list[Change], txn: ReadTxn | None
) -> tuple[list[Event], int | None]:
    """Events of whole revisions for one response, and the revision of the first change left."""
    events: list[Event] = []
    size = RESPONSE_HEAD_BYTES
    revision = 0
    for change in changes:
        if size >= RESPONSE_BYTES and change.revision != revision:
            return events, change.revision
        revision = change.revision
        events.append(_event(watcher, change, txn))
        size += _carried_bytes(events[-1])
    return events, None


def _carried_bytes(event: Event) -> int:
    """What an event adds to a response: key, value, the row before it, and what frames them."""
    return event.ByteSize() + EVENT_BYTES


def _fragments(events: Iterable[Event]) -> Iterable[list[Event]]:
    part: list[Event] = []
    size = RESPONSE_HEAD_BYTES
    for event in events:
        event_bytes = _carried_bytes(event)
        if part and size + event_bytes > FRAGMENT_BYTES:
            yield part
            part, size = [], RESPONSE_HEAD_BYTES
        part.append(event)
        size += event_bytes
    yield part
