"""What streams of requests have in common."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final, TypeVar

import grpc

from kvserver.api.door import Door
from kvserver.api.status import status_of
from kvserver.errors import NotActiveError, RequestError
from kvserver.pipeline.role import RoleMachine

Request = TypeVar("Request")

FIRST_WITHIN_S: Final = 5.0

CHANGED_TEXT: Final = "etcdserver: leader changed"
"""On this text clients resume their streams elsewhere."""


def until_deposed(role: RoleMachine) -> Coroutine[Any, Any, None]:
    """Ends when this node is not the active any more, or is it anew since this call.

    Load-bearing: not a coroutine function. A deposal and a new election may both be told between
    this call and the first step of what it returns.
    """
    return _until_moved(role, role.epoch)


async def _until_moved(role: RoleMachine, epoch: int) -> None:
    while role.active and role.epoch == epoch:
        await role.change()


async def converse(
    door: Door,
    context: "grpc.aio.ServicerContext[Any, Any]",
    listen: Coroutine[Any, Any, None],
    talk: Coroutine[Any, Any, None],
) -> None:
    """Serve both directions of a stream until `talk` ends, or this node as the active does.

    A client that has asked for all it wants may say so: it goes on being served, as with etcd.
    What either direction raises is the end of the stream.
    """
    try:
        await _converse(door.role, listen, talk)
    except NotActiveError:
        await context.abort(grpc.StatusCode.UNAVAILABLE, CHANGED_TEXT, door.hint())
    except RequestError as error:
        await context.abort(*status_of(error))


async def _converse(
    role: RoleMachine, listen: Coroutine[Any, Any, None], talk: Coroutine[Any, Any, None]
) -> None:
    listening, talking = asyncio.create_task(listen), asyncio.create_task(talk)
    deposed = asyncio.create_task(until_deposed(role))
    tasks = {listening, talking, deposed}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            listening.result()
            await asyncio.wait({talking, deposed}, return_when=asyncio.FIRST_COMPLETED)
        if not talking.done():
            raise NotActiveError
        talking.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def after_first_request(requests: AsyncIterator[Request]) -> AsyncIterator[Request]:
    """The same requests, once the first has arrived, the stream has ended, or time is up.

    A stream that is refused before its client has said anything looks to Go's clients like one that
    was closed: the error they get to see is EOF, and they do not move on.
    """
    first = asyncio.ensure_future(anext(requests))
    # who is refused leaves it unread: asyncio would log how it ended
    first.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await asyncio.wait({first}, timeout=FIRST_WITHIN_S)
    return _chained(first, requests)


async def _chained(
    first: "asyncio.Future[Request]", requests: AsyncIterator[Request]
) -> AsyncIterator[Request]:
    try:
        yield await first
    except StopAsyncIteration:
        return
    async for request in requests:
        yield request
