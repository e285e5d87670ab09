"""Linearizable reads sent straight at one node, to catch it answering with old data."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

import grpc

from kvbench import clock
from kvbench.history import Read, Stored, Write
from kvpb import rpc_pb2, rpc_pb2_grpc

LANES: Final = 4
"""Reads under way at a time."""

READ_S_MAX: Final = 2.0
CONNECT_S_MAX: Final = 5.0
DECLINED_PAUSE_S: Final = 0.001

READS_MAX: Final = 1_000_000
"""Of one probe; each is kept in memory."""


class Probe:
    """Reads the newest acknowledged key from one node, again and again.

    kvclient would follow a standby to the active; here the node itself is what is asked.
    """

    def __init__(self, address: str, newest: Callable[[], Write | None]) -> None:
        self._channel = grpc.aio.insecure_channel(address, (("grpc.enable_http_proxy", 0),))
        self._kv = rpc_pb2_grpc.KVStub(self._channel)
        self._newest = newest
        self._stopping = False
        self._lanes: list[asyncio.Task[None]] = []
        self.reads: list[Read] = []
        """Those that were answered."""
        self.declined: Counter[str] = Counter()
        """How many were not, by the status they got: a standby's right."""

    async def connect(self) -> None:
        """Connect now: once frozen, the node could not."""
        async with asyncio.timeout(CONNECT_S_MAX):
            await self._channel.channel_ready()

    def start(self) -> None:
        """Begin to read. Requests to a frozen node wait in its sockets until it goes on."""
        self._lanes = [asyncio.create_task(self._run()) for _ in range(LANES)]

    async def close(self) -> None:
        """Finish the reads under way and disconnect."""
        self._stopping = True
        try:
            await asyncio.gather(*self._lanes)
        finally:
            await self._channel.close()

    async def _run(self) -> None:
        while not self._stopping and len(self.reads) < READS_MAX:
            expected = self._newest()
            if expected is None or not await self._read(expected):
                await asyncio.sleep(DECLINED_PAUSE_S)

    async def _read(self, expected: Write) -> bool:
        request = rpc_pb2.RangeRequest(key=expected.key.encode())
        begun = clock.monotonic()
        try:
            answer = await self._kv.Range(request, timeout=READ_S_MAX)
        except grpc.aio.AioRpcError as error:
            self.declined[f"{error.code().name}: {error.details()}"] += 1
            return False
        found = [Stored(kv.value, kv.version, kv.mod_revision) for kv in answer.kvs]
        self.reads.append(
            Read(
                expected, begun, clock.monotonic(), answer.header.revision,
                found[0] if found else None,
            )
        )  # fmt: skip
        return True
