"""Nodes whose log can't be written: they serve, and lose lines only."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.cluster import CALL_S_MAX

from kvbench.ports import Ports
from kvclient import AsyncClient

pytestmark = pytest.mark.cluster

MEMBERS = 3
STOP_S_MAX = 30.0


@contextlib.asynccontextmanager
async def running(folder: Path, stderr: int) -> AsyncIterator[tuple[list[str], list[Process]]]:
    """Three nodes that log to a file descriptor; the addresses for clients, and the processes."""
    ports, nodes = Ports(2 * MEMBERS), list[Process]()
    addresses = [f"127.0.0.1:{port}" for port in ports.numbers]
    peers, clients = addresses[:MEMBERS], addresses[MEMBERS:]
    plan = ",".join(f"n{number}={peer}" for number, peer in enumerate(peers))
    try:
        for number in range(MEMBERS):
            options = {
                "name": f"n{number}", "data-dir": folder / f"n{number}", "initial-cluster": plan,
                "listen-peer": peers[number], "listen-client": clients[number],
            }  # fmt: skip
            given = [f"--{name}={value}" for name, value in options.items()]
            command = [sys.executable, "-m", "kvserver", *given]
            nodes.append(await asyncio.create_subprocess_exec(*command, stderr=stderr))
        yield clients, nodes
        for node in nodes:
            if node.returncode is None:
                node.terminate()
                async with asyncio.timeout(STOP_S_MAX):
                    assert await node.wait() == 0
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                node.kill()
            await node.wait()
        ports.close()


@pytest.mark.parametrize("what", ["full disk", "reader that stands still", "reader gone"])
async def test_a_sick_log_stops_nobody(tmp_path: Path, what: str) -> None:
    reader, writer = os.pipe()
    if what == "full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    elif what == "reader that stands still":
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
    else:
        os.close(reader)
    async with (
        running(tmp_path, writer) as (clients, nodes),
        AsyncClient(clients, timeout_s=CALL_S_MAX) as client,
    ):
        await client.put(b"key", b"before")
        nodes[0].kill()  # the others say so
        await nodes[0].wait()
        await client.put(b"key", b"after")
        found = await client.get(b"key")
        assert found is not None
        assert found.value == b"after"
        assert [node.returncode for node in nodes[1:]] == [None, None]
    for end in {reader, writer} - ({reader} if what == "reader gone" else set()):
        os.close(end)
