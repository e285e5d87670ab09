"""Wires between the nodes of a cluster, to be cut: all that peers say to one another goes through.

A cut is what a pulled cable is: bytes do not arrive and nobody is told. They are not lost either,
as TCP would send them again; who has given the connection up meanwhile does not want them any more,
and the other side hears of that once the wire is mended. Each direction has a wire of its own.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError

from kvpb.raft_pb2 import PeerMessage

CHUNK_BYTES: Final = 64 << 10
HELLO_BYTES_MAX: Final = 64 << 10

_HEADER: Final = struct.Struct("<II")
"""Of a peer message: length and checksum of what follows."""

_Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass
class _Wire:
    """From one node to another."""

    whole: asyncio.Event = field(default_factory=asyncio.Event)
    delay_s: float = 0.0

    async def carry(self) -> None:
        """Return when what is sent now arrives."""
        await self.whole.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
            await self.whole.wait()


@dataclass(frozen=True)
class WireEnd:
    """Where a node is reached by its peers."""

    name: str
    client: str
    """host:port for clients: by this a node is recognized that dials another."""
    public: str
    """host:port that the others are told."""
    private: str
    """host:port on which it listens."""


class Wires:
    """All wires of a cluster; whole until told otherwise."""

    def __init__(self, ends: Mapping[str, WireEnd]) -> None:
        """Prepare; `start` listens.

        Args:
            ends: of all nodes, by name.
        """
        self._ends = ends
        self._names = {f"http://{end.client}": name for name, end in ends.items()}
        self._wires: dict[tuple[str, str], _Wire] = {}
        self._servers: list[asyncio.Server] = []
        self._open: dict[asyncio.Task[None], tuple[str, str]] = {}
        """Connections, with who dialled whom; ("", name) until that is known."""

    async def start(self) -> None:
        """Listen on the public addresses."""
        for end in self._ends.values():
            host, _, port = end.public.rpartition(":")
            self._servers.append(await asyncio.start_server(self._accept(end), host, int(port)))

    async def close(self) -> None:
        """End all connections and listen no more."""
        for server in self._servers:
            server.close()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    # ------------------------------------------------------------------ what can be done to them

    def cut(self, source: str, target: str) -> None:
        """Nothing arrives at `target` from `source` any more."""
        self._wire(source, target).whole.clear()

    def part(self, one: str, other: str) -> None:
        """Cut both ways between two."""
        self.cut(one, other)
        self.cut(other, one)

    def isolate(self, name: str) -> None:
        """Cut both ways between one and all others."""
        for other in self._ends.keys() - {name}:
            self.part(name, other)

    def mend(self) -> None:
        """All wires are whole again, and without delay."""
        for wire in self._wires.values():
            wire.delay_s = 0.0
            wire.whole.set()

    def delay(self, seconds: float) -> None:
        """From now on everything takes so long, until `mend`."""
        for source in self._ends:
            for target in self._ends.keys() - {source}:
                self._wire(source, target).delay_s = seconds

    def reset(self, one: str, other: str) -> None:
        """Break the connections of two with a RST to both, whatever is under way."""
        for task, ends in self._open.items():
            if set(ends) == {one, other}:
                task.cancel()

    def _wire(self, source: str, target: str) -> _Wire:
        wire = self._wires.get((source, target))
        if wire is None:
            wire = self._wires[source, target] = _Wire()
            wire.whole.set()
        return wire

    # ------------------------------------------------------------------ connections

    def _accept(self, end: WireEnd) -> _Accept:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._open[task] = ("", end.name)
            writers = [writer]
            try:
                await self._connect(end, reader, writers)
            except (OSError, asyncio.IncompleteReadError):
                pass  # one of the two is gone before they met
            except asyncio.CancelledError:
                for each in writers:
                    _reset_at_close(each)
            finally:
                del self._open[task]
                for each in writers:
                    each.transport.abort()

        return accepted

    async def _connect(
        self, end: WireEnd, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]
    ) -> None:
        """Let two nodes talk, once the wires are whole: as long as they are cut, nobody answers."""
        task = asyncio.current_task()
        assert task is not None
        hello = await _first_message(reader)
        source = self._source(hello[_HEADER.size :])
        self._open[task] = (source, end.name)
        there, back = self._wire(source, end.name), self._wire(end.name, source)
        await there.carry()
        await back.carry()
        if reader.at_eof():
            return  # it gave up waiting
        host, _, port = end.private.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.append(far_writer)
        far_writer.write(hello)
        await asyncio.gather(
            _pass_on(reader, far_writer, there), _pass_on(far_reader, writers[0], back)
        )

    def _source(self, body: bytes) -> str:
        """Who says a hello; nobody if it is not one of ours."""
        try:
            hello = PeerMessage.FromString(body).hello
        except DecodeError:
            return ""
        if hello.HasField("joining"):
            return str(hello.joining.name)
        urls = hello.attributes.client_urls
        return self._names.get(urls[0], "") if urls else ""


async def _first_message(reader: asyncio.StreamReader) -> bytes:
    header = await reader.readexactly(_HEADER.size)
    length, _ = _HEADER.unpack(header)
    return header + await reader.readexactly(min(length, HELLO_BYTES_MAX))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: _Wire) -> None:
    """All that one side says, and that it has ended, to the other one."""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(CHUNK_BYTES):
            await wire.carry()
            with contextlib.suppress(ConnectionError):  # of that its sender hears the other way
                if not writer.is_closing():  # uvloop calls a write after that a bug
                    writer.write(chunk)
                    await writer.drain()
    await wire.carry()
    writer.transport.abort()


def _reset_at_close(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
