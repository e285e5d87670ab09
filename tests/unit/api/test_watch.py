"""What a watch stream says in the moments before it ends."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from support.memory_storage import MemoryStorage

from kvpb.rpc_pb2 import ResponseHeader, WatchCreateRequest, WatchResponse
from kvserver.api.door import Door
from kvserver.api.watch import WatchStream
from kvserver.mvcc.history import PUT, Change
from kvserver.pipeline.watching import WatchHub


class Client:
    """Takes what is written to it."""

    def __init__(self) -> None:
        self.got: list[WatchResponse] = []

    async def write(self, parts: tuple[bytes, ...]) -> None:
        self.got.append(WatchResponse.FromString(b"".join(parts)))


async def test_who_is_not_served_any_more_is_not_told_of_progress() -> None:
    """A stuck active steps aside but leads on: it publishes, and its streams end a moment later.

    A client that heard of the progress would go on behind a change that it has not got.
    """
    hub = WatchHub(MemoryStorage(), lambda: 0, lambda error: None)

    def fill(header: ResponseHeader, revision: int) -> None:
        header.revision = revision

    door = SimpleNamespace(
        watches=hub, fill=fill, newest_revision=lambda: 1, watch_progress_s=600.0,
        clock=SimpleNamespace(monotonic=lambda: 0.0),
    )  # fmt: skip
    stream, client = WatchStream(cast("Door", door)), Client()
    stream._create(WatchCreateRequest(key=b"k"))
    hub.close()
    hub.publish(2, [Change(2, 0, PUT, b"k", b"")])
    stream._progress_wanted = True
    talk = asyncio.create_task(stream.talk(cast("Any", client)))
    await asyncio.sleep(0)
    talk.cancel()
    assert [each.created for each in client.got] == [True]
