"""Watching keys over failures: one stream after the other, each going on where the last one ended.

No event is missed and none comes twice: a server sends all events of a revision together, and a
stream begins behind the newest revision that was heard of.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import grpc

from kvclient import _models, _requests
from kvclient._channels import open_aio
from kvclient._clock import now
from kvclient._endpoints import Attempts, Endpoints, parse_addresses
from kvclient._models import Event
from kvclient._outcomes import Failure, Outcome, failure_of
from kvclient._requests import Text
from kvclient.errors import Compacted, server_error
from kvpb import rpc_pb2, rpc_pb2_grpc

# A stream that has been still for so long is asked whether it is alive: a node that hangs keeps its
# connections.
IDLE_S = 5.0
# How long a node may take to answer that, or to begin.
ANSWER_S = 2.0


class Course:
    """How far a watch has come: what to ask the next stream for, what its responses bring."""

    def __init__(self, create: rpc_pb2.WatchCreateRequest) -> None:
        self._create = create
        self.next_revision = create.start_revision
        """Oldest revision that was not heard of yet; 0 before the first stream has begun."""

    def request(self) -> rpc_pb2.WatchRequest:
        """What a new stream is asked for."""
        self._create.start_revision = self.next_revision
        return rpc_pb2.WatchRequest(create_request=self._create)

    def take(self, response: rpc_pb2.WatchResponse) -> list[Event]:
        """The events of a response; raises what ends the watch for good."""
        if response.compact_revision:
            raise server_error("OUT_OF_RANGE", Compacted.text)
        if response.canceled:
            raise server_error("CANCELLED", response.cancel_reason or "the watch was canceled")
        if response.events:
            events = [_models.event(each) for each in response.events]
            due = [each for each in events if each.kv.mod_revision >= self.next_revision]
            self.next_revision = max(self.next_revision, events[-1].kv.mod_revision + 1)
            return due
        # the answer to a request for progress is not believed: an etcd before 3.5.8 is too early
        heard = response.created and not self._create.start_revision
        if heard or (not response.created and response.watch_id >= 0):
            self.next_revision = max(self.next_revision, response.header.revision + 1)
        return []


async def watch(  # noqa: PLR0913 - as many as the request has fields
    endpoints: str | Sequence[str],
    key: Text,
    *,
    range_end: Text | None = None,
    prefix: bool = False,
    start_revision: int = 0,
    prev_kv: bool = False,
    patience_s: float = 5.0,
) -> AsyncGenerator[Event, None]:
    """Every change of a key or of a range, from now or from a revision on, for as long as you like.

    Args:
        endpoints: all members, as a client takes them.
        key: as `AsyncClient.range` takes it, with `range_end` and `prefix`.
        range_end: see there.
        prefix: see there.
        start_revision: the oldest revision that is wanted; 0 for what comes.
        prev_kv: also what was there before each change.
        patience_s: how long to look for a node that serves before giving up.

    Raises:
        Compacted: the server no longer keeps what comes next.
        KvError: nobody served for `patience_s`, or the server refused.
    """
    first, end = _requests.span(key, range_end, prefix=prefix)
    course = Course(
        rpc_pb2.WatchCreateRequest(
            key=first, range_end=end, start_revision=start_revision, prev_kv=prev_kv,
            progress_notify=True,
        )
    )  # fmt: skip
    known = Endpoints(parse_addresses(endpoints))
    rng = random.Random()  # noqa: S311 - jitter is no secret
    attempts: Attempts | None = None
    while True:
        attempts = attempts or Attempts(known, now() + patience_s, write=False, rng=rng)
        if pause_s := attempts.pause_s(now()):
            await asyncio.sleep(pause_s)
        address = attempts.next(now()).address
        try:
            async for response in _stream(address, course):
                attempts = None
                for event in course.take(response):
                    yield event
            failure = Failure(grpc.StatusCode.UNAVAILABLE, "no answer", {})
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error)
        if failure.outcome(write=False) is Outcome.DECLINED:
            raise server_error(failure.code.name, failure.details)
        known.failed(address)
        attempts = attempts or Attempts(known, now() + patience_s, write=False, rng=rng)
        attempts.note(address, Outcome.NO_ANSWER, failure.said())
        if hint := failure.hint():
            known.follow(hint)


async def _stream(address: str, course: Course) -> AsyncIterator[rpc_pb2.WatchResponse]:
    """The responses of one stream; ends when it does, or when the node does not answer any more."""
    async with open_aio(address) as channel:
        call = rpc_pb2_grpc.WatchStub(channel).Watch()
        reading: asyncio.Future[object] | None = None
        try:
            await call.write(course.request())
            asked = True
            while True:
                reading = reading or asyncio.ensure_future(call.read())
                await asyncio.wait({reading}, timeout=ANSWER_S if asked else IDLE_S)
                if reading.done():
                    response, reading, asked = reading.result(), None, False
                    if not isinstance(response, rpc_pb2.WatchResponse):
                        return
                    yield response
                elif asked:
                    return
                else:
                    progress = rpc_pb2.WatchProgressRequest()
                    await call.write(rpc_pb2.WatchRequest(progress_request=progress))
                    asked = True
        finally:
            call.cancel()
            if reading is not None:
                await asyncio.gather(reading, return_exceptions=True)
