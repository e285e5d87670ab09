"""Connecting to a peer: within a time, and with a reason when it fails."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TypeVar

P = TypeVar("P", bound=asyncio.BaseProtocol)


class DialError(OSError):
    """No connection came about; the text says why, for people."""


async def dial(
    factory: Callable[[], P], address: str, within_s: float
) -> tuple[asyncio.Transport, P]:
    """Connect to `address`.

    Load-bearing: the step that makes the transport is never cancelled. Cancelled in the pass of the
    loop in which it has connected, uvloop closes the connection and tells nobody: the protocol
    keeps a transport that says it is open and raises at the next write.

    Args:
        factory: makes the protocol, once there is a connection.
        address: host:port.
        within_s: for finding the host and for the connection, together.

    Raises:
        DialError: the host is not known, or nobody answers there in time.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(within_s):
            connected = await _connect(address)
    except TimeoutError:
        raise DialError(f"no answer from {address} within {within_s:g} s") from None
    making = loop.create_task(loop.create_connection(factory, sock=connected))
    try:
        transport, protocol = await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(_abort)
        raise
    return transport, protocol


def _abort(making: "asyncio.Task[tuple[asyncio.Transport, P]]") -> None:
    if not making.cancelled() and making.exception() is None:
        making.result()[0].abort()


async def _connect(address: str) -> socket.socket:
    """A socket that is connected to the first address of the host at which somebody answers."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError) as error:  # a name may be none at all
        raise DialError(f"the host of {address} is not known: {_text(error)}") from error
    failure: OSError = DialError(f"the host of {address} has no address")
    for family, kind, protocol, _, where in found:
        trying = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            trying.setblocking(False)
            await loop.sock_connect(trying, where)
        except OSError as error:
            trying.close()
            failure = error
        except BaseException:
            trying.close()
            raise
        else:
            return trying
    if isinstance(failure, DialError):
        raise failure
    raise DialError(f"{address} can't be reached: {_text(failure)}") from failure


def _text(error: Exception) -> str:
    """Without the numbers and addresses that the system adds."""
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    number = error.errno if isinstance(error, OSError) else None
    return str(error) if number is None else os.strerror(number)
