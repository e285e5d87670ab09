"""Plays steps with watches on one server, and remembers what each watcher was told.

What a watcher has to see is known from an observer of all keys on a stream of its own, so that the
player can wait for it at every point where the order of things would otherwise be a matter of luck.
"""

import copy
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
from google.protobuf.text_format import MessageToString
from support.kv_requests import Request, absolute
from support.watch_streams import WITHIN_S, Side, Stream, back_by

from kvpb.kv_pb2 import Event
from kvpb.rpc_pb2 import (
    CompactionRequest,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchResponse,
)
from kvserver.mvcc.interval import bounds, covers

UNWANTED = {WatchCreateRequest.NOPUT: Event.PUT, WatchCreateRequest.NODELETE: Event.DELETE}
ETCD_CATCHES_UP_S = 0.25
"""etcd looks every 100 ms for watchers that start in the past."""


class Do(NamedTuple):
    """Ask for something of the keys."""

    request: Request

    def __repr__(self) -> str:
        return f"{type(self.request).__name__}({MessageToString(self.request, as_one_line=True)})"


class Create(NamedTuple):
    """Ask a stream for a watcher."""

    stream: int
    request: WatchCreateRequest

    def __repr__(self) -> str:
        return f"Create({self.stream}, {MessageToString(self.request, as_one_line=True)})"


class Cancel(NamedTuple):
    """Cancel a watcher of a stream, or one that is not there."""

    stream: int
    number: int


class Progress(NamedTuple):
    """Ask a stream how far it is."""

    stream: int


class Close(NamedTuple):
    """End a stream; the next step that needs it opens another."""

    stream: int


Step = Do | Create | Cancel | Progress | Close


@dataclass
class Watched:
    """A watcher, and what it was told."""

    request: WatchCreateRequest
    since: int
    """Oldest revision that it gets."""
    batches: list[WatchResponse] = field(default_factory=list)
    end: WatchResponse | None = None
    """What ended it, if that was the server."""
    too_old: bool = False
    """What it asked for is compacted."""

    @property
    def events(self) -> list[Event]:
        return [event for response in self.batches for event in response.events]

    def wants(self, event: Event) -> bool:
        return (
            event.kv.mod_revision >= self.since
            and event.type not in {UNWANTED[each] for each in self.request.filters}
            and covers(bounds(self.request.key or b"\0", self.request.range_end), event.kv.key)
        )


class Player:
    """One side in one sequence."""

    def __init__(self, side: Side, observer: Stream) -> None:
        """Args: `observer` has one watcher, of all keys."""
        self._side = side
        self._observer = observer
        self._start = self._revision = side.clear()
        self._compacted = 0
        self._changes: list[Event] = []
        self._streams: dict[int, Stream] = {}
        self._live: dict[int, dict[int, Watched]] = {}
        self.watched: list[Watched] = []
        self.told: list[WatchResponse | str] = []
        """Answers to the steps themselves."""

    def play(self, steps: Sequence[Step]) -> None:
        """Do them, then wait until every watcher has been told everything."""
        try:
            for step in steps:
                self._play(step)
            self._settle()
        finally:
            for stream in self._streams.values():
                stream.close()

    def _play(self, step: Step) -> None:
        match step:
            case Do(request):
                self._do(request)
            case Create(number, request):
                self._create(number, request)
            case Cancel(number, watch):
                self._cancel(number, watch)
            case Progress(number):
                self._settle()
                self._stream(number).ask(progress_request=WatchProgressRequest())
                self._tell(self._answer(number))
            case Close(number):
                self._settle()
                self._live.pop(number, None)
                if number in self._streams:
                    self._streams.pop(number).close()

    def _do(self, drawn: Request) -> None:
        request = copy.deepcopy(drawn)
        absolute(request, self._start, self._revision)
        if isinstance(request, CompactionRequest):
            self._settle()
            if any(each.too_old or self._may_lag(each) for each in self._all_live()):
                time.sleep(ETCD_CATCHES_UP_S)
        try:
            self._revision = self._side.do(request).header.revision
        except grpc.RpcError as error:
            self.told.append(error.details() or "")
        else:
            if isinstance(request, CompactionRequest):
                self._compacted = request.revision

    def _may_lag(self, watched: Watched) -> bool:
        """Started in the past, and nothing that it was told shows that it is there."""
        return watched.since <= self._revision and not watched.batches

    def _create(self, number: int, drawn: WatchCreateRequest) -> None:
        request = copy.deepcopy(drawn)
        absolute(request, self._start, self._revision)
        self._stream(number).ask(create_request=request)
        answer = self._answer(number)
        self._tell(answer)
        if answer.created and not answer.canceled:
            watched = Watched(request, request.start_revision or self._revision + 1)
            watched.too_old = 0 < request.start_revision < self._compacted
            self._live[number][answer.watch_id] = watched
            self.watched.append(watched)

    def _cancel(self, number: int, watch: int) -> None:
        self._settle()
        stream = self._stream(number)
        stream.ask(cancel_request=WatchCancelRequest(watch_id=watch))
        if watch in self._live[number]:
            self._tell(self._answer(number))
            del self._live[number][watch]

    # ------------------------------------------------------------------ listening

    def _stream(self, number: int) -> Stream:
        if number not in self._streams:
            self._streams[number] = Stream(self._side.channel)
            self._live[number] = {}
        return self._streams[number]

    def _all_live(self) -> list[Watched]:
        return [watched for live in self._live.values() for watched in live.values()]

    def _tell(self, response: WatchResponse) -> None:
        self.told.append(back_by(response, self._start))

    def _answer(self, number: int) -> WatchResponse:
        """The next response that is not an event: those are put where they belong."""
        while (response := self._next(number)) is None:
            pass
        return response

    def _next(self, number: int, within_s: float = WITHIN_S) -> WatchResponse | None:
        response = self._streams[number].next(within_s)
        watched = self._live[number].get(response.watch_id)
        if response.events:
            assert watched is not None, f"events for a watcher that is not there: {response}"
            watched.batches.append(response)
        elif response.compact_revision:
            assert watched is not None
            assert watched.end is None
            watched.end = back_by(response, self._start)
        else:
            return response
        return None

    def _settle(self) -> None:
        """Wait until all are told what there is to tell."""
        while self._revision > self._start and (
            not self._changes or self._changes[-1].kv.mod_revision < self._revision
        ):
            seen = self._observer.next().events
            self._changes += [each for each in seen if each.kv.mod_revision > self._start]
        for number, live in self._live.items():
            for watched in live.values():
                while not self._has_all(watched):
                    try:
                        stray = self._next(number)
                    except queue.Empty:
                        raise AssertionError(self._lacking(watched)) from None
                    assert stray is None, f"nobody asked for {stray}"

    def _has_all(self, watched: Watched) -> bool:
        if watched.too_old:
            return watched.end is not None
        wanted = [event for event in self._changes if watched.wants(event)]
        told = watched.events
        return not wanted or (
            bool(told) and told[-1].kv.mod_revision >= wanted[-1].kv.mod_revision
            and not watched.batches[-1].fragment
        )  # fmt: skip

    def _lacking(self, watched: Watched) -> str:
        return (
            f"a watcher of {MessageToString(watched.request, as_one_line=True)} was not told all of"
            f" {[each for each in self._changes if watched.wants(each)]}, only {watched.events}"
        )

    # ------------------------------------------------------------------ the outcome

    def summary(self) -> list[object]:
        """What was answered, and per watcher its events and its end: comparable."""
        found: list[object] = [*self.told]
        for watched in self.watched:
            relative = [back_by(each, self._start) for each in watched.batches]
            found += [event for response in relative for event in response.events]
            found.append(watched.end)
        return found

    def check(self) -> None:
        """Each watcher was told each change of its keys once, in order, whole revisions at once."""
        for watched in self.watched:
            wanted = [each for each in self._changes if watched.wants(each)]
            told, due = (
                [(each.kv.mod_revision - self._start, each.type, each.kv.key) for each in events]
                for events in (watched.events, wanted)
            )
            asked = MessageToString(watched.request, as_one_line=True)
            assert told == due[: len(told)], f"a watcher of {asked} was told {told}, not {due}"
            for batch, after in zip(watched.batches, watched.batches[1:], strict=False):
                last, first = batch.events[-1].kv.mod_revision, after.events[0].kv.mod_revision
                assert last < first or batch.fragment, "a revision in two responses"
            for batch in watched.batches:
                assert batch.header.revision >= batch.events[-1].kv.mod_revision
