"""Who is first: keys under a name are a queue, each put with a lease; the oldest is first.

This is how etcd's clients make locks and elections out of transactions and watches by themselves,
so they and the services here share them. A key's create revision is its place in the queue, and the
fencing token of whoever is first: it only grows, and it tells in any transaction whether he still
is.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc

from kvpb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    ResponseHeader,
    TxnRequest,
)
from kvserver.api.door import Door
from kvserver.api.following import Following
from kvserver.api.kv import KvServicer
from kvserver.api.status import status_of
from kvserver.api.streams import CHANGED_TEXT
from kvserver.errors import NotActiveError, RequestError
from kvserver.mvcc.history import PUT
from kvserver.mvcc.interval import bounds

LEASE_TTL_S: Final = 60
"""Of a lease that the server grants because the client names none, as in etcd."""

Reply = TypeVar("Reply")


class QueueError(Exception):
    """An answer with one of etcd's texts, which have no code of their own: UNKNOWN."""


class InterruptedWaitError(Exception):
    """This node is not the active any more; the place in the queue is kept."""


@dataclass(frozen=True)
class Place:
    """In the queue under a name."""

    key: bytes
    revision: int
    """Create revision of the key."""
    first: bool
    """Nobody was before it when it was taken."""
    found: bytes | None
    """Value of the key if it was there already, of an earlier call with the same lease."""
    header: ResponseHeader

    @property
    def held_before(self) -> bool:
        """An earlier call may have told its client that he is first: only he may let go."""
        return self.first and self.found is not None


def prefix_of(name: bytes) -> bytes:
    """Of all keys under a name."""
    return name + b"/"


def end_of(prefix: bytes) -> bytes:
    """Of the range of all keys with this prefix, which ends with a slash."""
    return prefix[:-1] + b"0"


def oldest(name: bytes) -> RangeRequest:
    """Asks who is first."""
    prefix = prefix_of(name)
    return RangeRequest(
        key=prefix, range_end=end_of(prefix), limit=1,
        sort_target=RangeRequest.CREATE, sort_order=RangeRequest.ASCEND,
    )  # fmt: skip


def was_created_at(key: bytes, revision: int) -> Compare:
    """Holds as long as a place lasts."""
    return Compare(
        key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=revision
    )  # fmt: skip


def _deletion(place: Place) -> TxnRequest:
    return TxnRequest(
        compare=[was_created_at(place.key, place.revision)],
        success=[RequestOp(request_delete_range=DeleteRangeRequest(key=place.key))],
    )


class Queues:
    """All who wait on this node."""

    def __init__(self, door: Door, kv: KvServicer) -> None:
        self.door = door
        self.kv = kv
        self._newest: dict[bytes, object] = {}
        """Of each key that calls wait for, the call that came last, or its withdrawal: that alone
        may delete it."""
        self._withdrawals: set[asyncio.Task[None]] = set()

    async def answer(
        self, context: "grpc.aio.ServicerContext[Any, Any]", work: Coroutine[Any, Any, Reply]
    ) -> Reply:
        """The reply, or the error: UNKNOWN as in etcd, but for those that clients move on at."""
        try:
            return await self.door.answer(context, self._translated(work))
        except QueueError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
            raise
        except InterruptedWaitError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, CHANGED_TEXT, self.door.hint())
            raise

    async def _translated(self, work: Coroutine[Any, Any, Reply]) -> Reply:
        try:
            return await work
        except RequestError as error:
            code, text = status_of(error)
            if code is grpc.StatusCode.UNAVAILABLE:
                raise
            raise QueueError(text) from error

    async def lease_of(self, wanted: int) -> int:
        """The client's lease, or one granted for it."""
        if wanted:
            return wanted
        return (await self.door.lessor.grant(LeaseGrantRequest(TTL=LEASE_TTL_S))).ID

    async def take(
        self,
        name: bytes,
        lease: int,
        value: bytes,
        on_found: Callable[[Place], Awaitable[None]] | None = None,
    ) -> tuple[Place, ResponseHeader | None]:
        """Queue up under a name and return when one is first.

        If the caller goes away meanwhile, the place is given up. If this node is deposed it is
        kept: whoever asks the next active with the same lease goes on where he was.

        Args:
            name: of the queue.
            lease: with which the place ends.
            value: of its key.
            on_found: called before the wait if the key was there with another value.

        Requeues:
            The place, and the header of the moment at which it was seen to be first; None
            instead if it was lost meanwhile.

        Raises:
            InterruptedWaitError: this node is not the active any more.
        """
        key = prefix_of(name) + f"{lease:x}".encode()
        call = self._newest[key] = object()
        standing = asyncio.create_task(self._stand(name, key, lease, value))
        place: Place | None = None
        try:
            # what is proposed may be done though the caller goes away: its end must be known
            place = await asyncio.shield(standing)
            if on_found is not None and place.found not in {None, value}:
                await on_found(place)
            if place.first:
                return place, place.header
            await self._wait(name, place)
            return place, await self._look(place)
        except NotActiveError as error:
            if place is None:
                raise
            raise InterruptedWaitError from error
        except BaseException:
            if self._newest.get(key) is call:
                self._withdraw(key, standing)
            raise
        finally:
            self._forget(key, call)

    def _forget(self, key: bytes, user: object) -> None:
        if self._newest.get(key) is user:
            del self._newest[key]

    async def _stand(self, name: bytes, key: bytes, lease: int, value: bytes) -> Place:
        put = PutRequest(key=key, value=value, lease=lease)
        first = RequestOp(request_range=oldest(name))
        response = await self.kv.txn(
            TxnRequest(
                compare=[was_created_at(key, 0)],
                success=[RequestOp(request_put=put), first],
                failure=[RequestOp(request_range=RangeRequest(key=key)), first],
            )
        )
        revision, found = response.header.revision, None
        if not response.succeeded:
            (mine,) = response.responses[0].response_range.kvs
            revision, found = mine.create_revision, mine.value
        (leader,) = response.responses[1].response_range.kvs
        is_first = leader.create_revision == revision
        return Place(key, revision, is_first, found, response.header)

    async def _wait(self, name: bytes, place: Place) -> None:
        """Until nobody is before a place: each waits for the one just before him alone."""
        prefix = prefix_of(name)
        before = RangeRequest(
            key=prefix, range_end=end_of(prefix), limit=1, max_create_revision=place.revision - 1,
            sort_target=RangeRequest.CREATE, sort_order=RangeRequest.DESCEND,
        )  # fmt: skip
        while (found := await self.kv.range(before)).kvs:
            interval = bounds(found.kvs[0].key, b"")
            with Following(
                self.door, interval, found.header.revision, unwanted=frozenset({PUT})
            ) as deletions:
                await deletions.next()

    def _withdraw(self, key: bytes, standing: "asyncio.Task[Place]") -> None:
        """Give up a place that nobody waits in any more, as soon as it is known."""
        task = asyncio.create_task(self._delete(key, standing))
        self._newest[key] = task
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)

    async def _delete(self, key: bytes, standing: "asyncio.Task[Place]") -> None:
        """Delete the key of a place, unless another call has come for it meanwhile."""
        me = asyncio.current_task()
        try:
            with contextlib.suppress(RequestError):  # then it ends with its lease
                place = await standing
                await self.door.role.require_active()
                # An active puts this in the queue of proposals without a suspension from here on:
                # a call that comes later comes behind it in the log, too, and stands anew.
                if self._newest.get(key) is me and not place.held_before:
                    await self.kv.txn(_deletion(place))
        finally:
            self._forget(key, me)

    async def _look(self, place: Place) -> ResponseHeader | None:
        response = await self.kv.range(RangeRequest(key=place.key))
        lasts = any(kv.create_revision == place.revision for kv in response.kvs)
        return response.header if lasts else None
