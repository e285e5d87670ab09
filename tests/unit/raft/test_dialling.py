"""Dials over real sockets, with the loop of the raft thread: connected, or a reason why not."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import pytest
import uvloop

from kvserver.raft.dialling import DialError, dial

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class Dialer(asyncio.Protocol):
    """Stands still as it connects, as a turn with a slow sync does."""

    def __init__(self, still_s: float = 0.0) -> None:
        self.still_s = still_s
        self.transport: asyncio.Transport | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        time.sleep(self.still_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


async def end(dialer: Dialer) -> None:
    assert dialer.transport is not None
    dialer.transport.abort()
    async with asyncio.timeout(10):
        while not dialer.lost:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("no..label:2380", "is not known"),
        (".:2380", "is not known"),
        (f"{'a' * 70}.example:2380", "is not known"),
        ("host.invalid:2380", "is not known"),
        ("127.0.0.1:70000", "127.0.0.1:70000"),
    ],
)
def test_a_host_that_is_none_has_a_reason(address: str, reason: str) -> None:
    with pytest.raises(DialError, match=re.escape(reason)):
        run(dial(Dialer, address, 5.0))


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(DialError, match=r"can't be reached: Connection refused"):
            run(dial(Dialer, address, 5.0))


def test_nobody_answers() -> None:
    """A queue that is full: the kernel does not answer."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        address = f"127.0.0.1:{full.getsockname()[1]}"
        with pytest.raises(DialError, match=r"within 0\.2 s"):
            run(dial(Dialer, address, 0.2))


def test_it_connects_by_name_and_within_brackets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def connect(address: str) -> Dialer:
            _, dialer = await dial(Dialer, address, 5.0)
            await end(dialer)
            return dialer

        for host in ("localhost", "127.0.0.1", "[127.0.0.1]"):
            assert run(connect(f"{host}:{port}")).lost


@pytest.mark.parametrize("how", ["too late", "cancelled"])
def test_a_connection_is_made_whole_or_not_at_all(how: str) -> None:
    """Else there would be a transport that says it is open and raises at the next write."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    received: list[bytes] = []

    def greet() -> None:
        listening.settimeout(10)
        connection, _ = listening.accept()
        connection.settimeout(10)
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"hello")
            received.append(connection.recv(1))

    greeter = threading.Thread(target=greet)
    greeter.start()
    dialer = Dialer(0.3)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        dialling = loop.create_task(dial(lambda: dialer, f"127.0.0.1:{port}", 0.1))
        if how == "cancelled":
            while dialer.transport is None and not dialling.done():
                loop.call_soon(lambda: dialer.transport and dialling.cancel())
                await asyncio.sleep(0)
            dialling.cancel()
            await asyncio.wait([dialling])
            async with asyncio.timeout(10):
                while len(asyncio.all_tasks()) > 1 or not (dialer.lost or not dialer.transport):
                    await asyncio.sleep(0.001)
        else:
            await dialling
            assert dialer.transport is not None
            dialer.transport.write(b"x")
            await asyncio.to_thread(greeter.join)
            assert received == [b"x"]
            await end(dialer)

    run(main())
    greeter.join()
    listening.close()
