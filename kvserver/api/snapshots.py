"""Maintenance.Snapshot: a copy of the state as a stream of blobs, and its sha256 as the last one.

The copy is made by a thread at the disk's speed and read from a file without a name, so whatever
ends the call, or the process, leaves nothing behind.
"""

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from kvpb.rpc_pb2 import SnapshotResponse
from kvserver.errors import TooManyRequestsError
from kvserver.storage.contract import Backup, MakeBackup

BLOB_BYTES: Final = 32 << 10
"""As etcd's: what some clients have room for."""

READ_BYTES: Final = 32 * BLOB_BYTES
"""Read from the file at a time."""

BACKUPS_MAX: Final = 2
"""At once, made or sent: each takes the disk space of the whole state."""


TAKEN_S: Final = 60.0
"""Who takes no blob for so long loses the place: one that is stopped would hold it for ever."""


class Snapshots:
    """The copies that clients of one node are being sent."""

    def __init__(self, make: MakeBackup, version: str) -> None:
        """Begin without any.

        Args:
            make: makes a copy; called in a thread of its own.
            version: of this server, told with every blob.
        """
        self._make = make
        self._version = version
        self._count = 0

    async def send(self, write: Callable[[SnapshotResponse], Awaitable[object]]) -> None:
        """Write one copy to a client, as `stream` gives it.

        Raises:
            TooManyRequestsError: others are being sent, or this one takes nothing.
            SnapshotFailedError, DataDirError: as `stream` does.
        """
        async with contextlib.aclosing(self.stream()) as responses:
            async for response in responses:
                try:
                    async with asyncio.timeout(TAKEN_S):
                        await write(response)
                except TimeoutError:
                    raise TooManyRequestsError from None

    async def stream(self) -> AsyncGenerator[SnapshotResponse, None]:
        """One copy, of the newest state that a read transaction opened now shows.

        Raises:
            TooManyRequestsError: others are being sent.
            SnapshotFailedError: it could not be made.
            DataDirError: the state is damaged.
        """
        backup = await self._begin()
        try:
            sent = 0
            while sent < backup.total:
                data = await asyncio.to_thread(backup.read, sent, READ_BYTES)
                for start in range(0, len(data), BLOB_BYTES):
                    blob = data[start : start + BLOB_BYTES]
                    sent += len(blob)
                    yield SnapshotResponse(
                        remaining_bytes=backup.total - sent, blob=blob, version=self._version
                    )
            yield SnapshotResponse(blob=backup.digest, version=self._version)
        finally:
            self._end(backup)

    async def _begin(self) -> Backup:
        if self._count >= BACKUPS_MAX:
            raise TooManyRequestsError
        self._count += 1
        given_up = threading.Event()
        making = _in_thread(lambda: self._make(given_up))
        try:
            return await asyncio.shield(making)
        except BaseException:
            # the thread may still run: its place is free, and its file gone, when it ends
            given_up.set()
            making.add_done_callback(self._abandoned)
            raise

    def _abandoned(self, making: "asyncio.Future[Backup]") -> None:
        if making.cancelled() or making.exception() is not None:
            self._count -= 1
        else:
            self._end(making.result())

    def _end(self, backup: Backup) -> None:
        self._count -= 1
        backup.close()


def _in_thread(make: Callable[[], Backup]) -> "asyncio.Future[Backup]":
    """What it returns, or raises. A node that ends does not wait for it, as for others it would."""
    loop = asyncio.get_running_loop()
    making: asyncio.Future[Backup] = loop.create_future()

    def run() -> None:
        try:
            outcome = functools.partial(making.set_result, make())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            outcome = functools.partial(making.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(outcome)

    threading.Thread(target=run, name="backup", daemon=True).start()
    return making
