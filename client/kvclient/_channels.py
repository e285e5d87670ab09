"""Channels to endpoints, tuned for failover: a dead node is noticed, a new active needs no connect.

The two flavours of grpc differ in how a channel is told to connect, and in how a call is begun and
waited for; here they get the same face.
"""

import asyncio
from typing import Generic, TypeVar

import grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

Metadata = tuple[tuple[str, bytes], ...]

# A request may hold 1.5 MiB of keys and values; the server takes half a MiB of wrapping beyond it.
SEND_MAX_BYTES = 2 * 1024 * 1024

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Despite its name it is how long one attempt to connect may take: enough for a slow way and a
    # lost packet. Calls don't wait for it, see CONNECT_S.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", SEND_MAX_BYTES),
    # Servers end a connection that is pinged more often than every 5 s, or while it has no call.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Connections to standbys carry no calls and are kept for the day they do.
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
)


def open_aio(address: str) -> grpc.aio.Channel:
    """A channel for asyncio."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def open_sync(address: str) -> grpc.Channel:
    """A channel for threads."""
    return grpc.insecure_channel(address, options=_OPTIONS)


# Values of grpc.ChannelConnectivity: neither connected nor failed to.
_CONNECTING = frozenset({0, 1})


def connecting_aio(channel: grpc.aio.Channel) -> bool:
    """Begin to connect unless connected; whether a call would have to wait for it."""
    return channel.get_state(try_to_connect=True).value[0] in _CONNECTING


def connecting_sync(channel: grpc.Channel) -> bool:
    """Begin to connect unless connected; whether a call would have to wait for it."""
    # The public way, a subscription, starts a thread that raises if the channel is closed within
    # 0.2 s. Without this member, should it ever go, a channel connects at its first call.
    inner = getattr(channel, "_channel", None)
    return inner is not None and inner.check_connectivity_state(True) in _CONNECTING


class CallAio(Generic[_Response]):
    """A call under way, for asyncio."""

    def __init__(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        timeout_s: float,
        metadata: Metadata | None = None,
    ) -> None:
        self._call = method(request, timeout=timeout_s, metadata=metadata)
        self._waiter: asyncio.Future[None] | None = None
        self._call.add_done_callback(lambda _: self._wake())

    async def ended(self, within_s: float) -> bool:
        """Wait for its end, whichever; False if that does not come in time."""
        if not self._call.done():
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(within_s, self._wake)
            try:
                await self._waiter
            except asyncio.CancelledError:
                self._call.cancel()
                raise
            finally:
                timer.cancel()
        return self._call.done()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def answer(self) -> _Response:
        """Its answer, or raises its error; waits for it."""
        return await self._call

    def done(self) -> bool:
        """Whether it has ended."""
        return self._call.done()

    def give_up(self) -> None:
        """Want no answer any more; whether the server hears of it is another matter."""
        self._call.cancel()


class CallSync(Generic[_Response]):
    """A call under way, for threads."""

    def __init__(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        timeout_s: float,
        metadata: Metadata | None = None,
    ) -> None:
        self._call = method.future(request, timeout=timeout_s, metadata=metadata)

    def ended(self, within_s: float) -> bool:
        """Wait for its end, whichever; False if that does not come in time."""
        try:
            self._call.exception(within_s)
        except grpc.FutureTimeoutError:
            return False
        except BaseException:
            self._call.cancel()
            raise
        return True

    def answer(self) -> _Response:
        """Its answer, or raises its error; waits for it."""
        return self._call.result()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._call.done()

    def give_up(self) -> None:
        """Want no answer any more; whether the server hears of it is another matter."""
        self._call.cancel()
