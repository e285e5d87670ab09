"""Wires that are cut hold back what is said, and the news that somebody is gone."""

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import uvloop

from kvbench.ports import LOOPBACK, Ports
from kvbench.wires import WireEnd, Wires, _pass_on, _Wire
from kvpb.raft_pb2 import Hello, PeerMessage, PublishMember

SOON_S = 0.1
WAIT_S_MAX = 10.0


@dataclass
class Stage:
    """A node `b` that listens, and wires on which `a` may dial it."""

    wires: Wires
    ends: dict[str, WireEnd]
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(
        default_factory=asyncio.Queue
    )

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """As node `a`; what it said first comes too."""
        host, _, port = self.ends["b"].public.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        said = PublishMember(client_urls=[f"http://{self.ends['a'].client}"])
        body = PeerMessage(hello=Hello(member_id=1, attributes=said)).SerializeToString()
        hello = struct.pack("<II", len(body), zlib.crc32(body)) + body
        writer.write(hello)
        return reader, writer, hello


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    ports = Ports(6)
    address = [f"{LOOPBACK}:{port}" for port in ports.numbers]
    ends = {name: WireEnd(name, *address[3 * i : 3 * i + 3]) for i, name in enumerate("ab")}
    stage = Stage(Wires(ends), ends)

    async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stage.arrived.put((reader, writer))

    host, _, port = ends["b"].private.rpartition(":")
    server = await asyncio.start_server(arrive, host, int(port))
    await stage.wires.start()
    async with asyncio.timeout(WAIT_S_MAX):
        yield stage
    await stage.wires.close()
    server.close()
    ports.close()


async def nothing_comes(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), SOON_S)


async def test_what_is_said_arrives_both_ways(stage: Stage) -> None:
    reader, writer, hello = await stage.dial()
    far_reader, far_writer = await stage.arrived.get()
    writer.write(b"there")
    far_writer.write(b"back")
    assert await far_reader.readexactly(len(hello) + 5) == hello + b"there"
    assert await reader.readexactly(4) == b"back"
    writer.close()
    assert await far_reader.read() == b""
    far_writer.close()


async def test_a_cut_holds_one_way_back_and_loses_nothing(stage: Stage) -> None:
    reader, writer, hello = await stage.dial()
    far_reader, far_writer = await stage.arrived.get()
    assert await far_reader.readexactly(len(hello)) == hello
    stage.wires.cut("a", "b")
    writer.write(b"held")
    far_writer.write(b"not held")
    assert await reader.readexactly(8) == b"not held"
    writer.close()
    await nothing_comes(far_reader)
    stage.wires.mend()
    assert await far_reader.read() == b"held"
    far_writer.close()


async def test_nobody_answers_who_dials_over_a_cut(stage: Stage) -> None:
    stage.wires.part("a", "b")
    impatient = await stage.dial()
    impatient[1].close()
    await asyncio.sleep(SOON_S)
    assert stage.arrived.empty()
    stage.wires.mend()
    await asyncio.sleep(SOON_S)
    assert stage.arrived.empty(), "it is gone"
    stage.wires.isolate("b")
    reader, writer, hello = await stage.dial()
    await nothing_comes(reader)
    stage.wires.mend()
    far_reader, far_writer = await stage.arrived.get()
    assert await far_reader.readexactly(len(hello)) == hello
    writer.close()
    far_writer.close()


async def test_a_reset_is_told_to_both(stage: Stage) -> None:
    reader, writer, _ = await stage.dial()
    far_reader, far_writer = await stage.arrived.get()
    await asyncio.sleep(SOON_S)
    stage.wires.reset("b", "a")
    for each in (reader, far_reader):
        with pytest.raises(ConnectionResetError):
            while await each.read(1000):
                pass
    writer.close()
    far_writer.close()


def test_what_is_said_to_one_that_is_gone_is_dropped() -> None:
    """On the loop that the bench runs on, where a write to a closed connection is no OSError."""

    async def say_after_the_end() -> None:
        accepted = asyncio.Event()

        async def accept(_: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
            far.transport.abort()
            accepted.set()

        server = await asyncio.start_server(accept, LOOPBACK, 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.transport.abort()
        await accepted.wait()  # some turns of the loop: the handle is closed by then
        await asyncio.sleep(0)
        said = asyncio.StreamReader()
        said.feed_data(b"anybody there?")
        said.feed_eof()
        wire = _Wire()
        wire.whole.set()
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                await _pass_on(said, writer, wire)
        finally:
            server.close()
            await server.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(say_after_the_end())
