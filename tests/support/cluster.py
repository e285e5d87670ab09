"""Real clusters to hurt: writers whose every write is judged, and what `kvbench` does not need.

Starting, signals and waiting are `kvbench.cluster`; each process is ended by its own pid.
"""

import asyncio
import contextlib
import os
import random
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import grpc

from kvbench import clock
from kvbench.cluster import Cluster, Node
from kvbench.history import Write
from kvbench.verify import verify
from kvbench.writer import Writer

WAIT_S_MAX = 30.0
CALL_S_MAX = 10.0
START_S_MAX = 30.0
WRITERS = 16
UNLIMITED = resource.RLIM_INFINITY


class Writers:
    """Concurrent writers of one SDK client, each with keys of its own."""

    def __init__(self, writers: dict[str, Writer]) -> None:
        self._writers = writers

    @property
    def writes(self) -> list[Write]:
        return [write for writer in self._writers.values() for write in writer.writes]

    @property
    def count(self) -> int:
        """Writes that have ended, whichever way."""
        return sum(len(writer.writes) for writer in self._writers.values())

    @property
    def one(self) -> Writer:
        return next(iter(self._writers.values()))

    async def reach(self, count: int) -> None:
        """Wait until so many writes have ended, with progress all the time."""
        while (before := self.count) < count:
            await wait_until(lambda: self.count >= min(count, before + 1000), "writes go on")

    async def flow(self) -> None:
        """Wait until every writer has got a write acknowledged that begins now or later."""
        now = clock.monotonic()
        for writer in self._writers.values():
            assert await writer.wait_acknowledged(now, WAIT_S_MAX), writer.trouble

    async def verify(self, cluster: Cluster) -> None:
        """All that was acknowledged is there, once, and all copies are equal."""
        for prefix, writer in self._writers.items():
            verdict = await verify(cluster, writer.writes, prefix)
            assert not verdict.broken, verdict
            assert verdict.acknowledged


@contextlib.asynccontextmanager
async def writing(
    cluster: Cluster, *, writers: int = WRITERS, timeout_s: float = 5.0
) -> AsyncIterator[Writers]:
    """Write until the end of the block."""
    async with cluster.connect(timeout_s) as client:
        found = {
            prefix: Writer(client, prefix, random.Random(prefix))
            for prefix in (f"writer {number:02}/" for number in range(writers))
        }
        for writer in found.values():
            writer.start()
        try:
            yield Writers(found)
        finally:
            await asyncio.gather(*(writer.stop() for writer in found.values()))


async def wait_until(true: Callable[[], bool], what: str, within_s: float = WAIT_S_MAX) -> None:
    deadline = clock.monotonic() + within_s
    while not true():
        assert clock.monotonic() < deadline, f"not in {within_s:g} s: {what}"
        await asyncio.sleep(0.01)


async def wait_said(node: Node, text: str) -> None:
    """Wait for a text in the log of a node."""
    await wait_until(lambda: text in node.log.read_text(), f"{node.name} says {text!r}")


async def make_active(cluster: Cluster, wanted: Node) -> None:
    """Crash the active while only `wanted` has its last entry, so that nobody else can follow."""
    active = await cluster.wait_in_step()
    if active is wanted:
        return
    (third,) = cluster.others(active, wanted)
    await crash(third)
    await cluster.control.delete("nothing", timeout_s=CALL_S_MAX)  # an entry, but no new revision
    await crash(active)
    third.start()
    assert await cluster.active() is wanted
    active.start()
    await cluster.wait_in_step()


async def hand_over(cluster: Cluster) -> None:
    """Make one of the standbys the active."""
    successor, *_ = cluster.others(await cluster.active())
    status = await cluster.status(successor)
    assert status is not None
    await cluster.control.move_leader(status.member_id, timeout_s=CALL_S_MAX)


async def crash(node: Node) -> None:
    node.kill()
    await node.wait_exit()


async def closed_by_peer(reader: asyncio.StreamReader) -> None:
    """Read until the other side ends the connection."""
    async with asyncio.timeout(WAIT_S_MAX):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass


async def raw_call(
    address: str, method: str, body: bytes, metadata: Sequence[tuple[str, bytes]] = ()
) -> tuple[grpc.StatusCode, str]:
    """Call a gRPC method with these bytes; how it ended."""
    async with grpc.aio.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        call: Callable[..., Awaitable[bytes]] = channel.unary_unary(method)
        try:
            await call(body, timeout=CALL_S_MAX, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


def address_of(host_port: str) -> tuple[str, int]:
    host, _, port = host_port.rpartition(":")
    return host, int(port)


def memory_bytes(node: Node) -> int:
    """Resident memory of a running node."""
    pages = Path(f"/proc/{node.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def data_file(node: Node) -> Path:
    (found,) = node.plan.data.glob("env-*/data.mdb")
    return found


def limit_files(node: Node, size: int) -> None:
    """Let no file of this node grow beyond `size`, as on a full disk."""
    assert node.pid is not None
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))


def run_kvserver(*options: str) -> subprocess.CompletedProcess[str]:
    """A node that is expected to end by itself, soon."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
    return subprocess.run(
        [sys.executable, "-m", "kvserver", *options],
        capture_output=True, text=True, timeout=START_S_MAX, check=False, env=environment,
    )  # fmt: skip
