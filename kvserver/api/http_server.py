"""HTTP for people and machines that watch a node: health, role, version, metrics.

Answered by every node from what it knows itself, without a quorum.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from kvserver import __version__
from kvserver.api.door import Door
from kvserver.api.maintenance import API_LEVEL
from kvserver.api.metrics import NodeCollector
from kvserver.api.standing import standing, why_not_healthy, why_not_live, why_not_ready
from kvserver.errors import AddressError, NodeError
from kvserver.telemetry import Event

REQUEST_S_MAX: Final = 10.0
"""A connection whose request is not there by then is closed."""

REST_S_MAX: Final = 1.0
"""How long a body, which nothing here wants, is read so that its sender sees the answer."""

STOP_S: Final = 0.1
"""No answer takes so long; who is slow to ask does not keep a node from stopping."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SILENT: Final = logging.getLogger("kvserver.http")
"""For the library: it would log every request that is malformed, with a traceback."""
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


class HttpServer:
    """What listens at `--listen-http`."""

    def __init__(self, door: Door, on_event: Event) -> None:
        self._door = door
        self._event = on_event
        self._registry = CollectorRegistry()
        self._registry.register(NodeCollector(door))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        app = web.Application(middlewares=[self._one_answer])
        app.router.add_get("/health", self._health)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/active", self._active)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app, access_log=None, logger=_SILENT, keepalive_timeout=REQUEST_S_MAX,
            lingering_time=REST_S_MAX, shutdown_timeout=STOP_S,
        )  # fmt: skip

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            AddressError: the address can't be bound.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise AddressError(
                f"--listen-http {address} can't be bound: {error.strerror or error}"
            ) from error

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()

    @web.middleware
    async def _one_answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """One request for each connection: so nobody holds one for long, or asks without reading.

        An error here must not end a node that serves others, unless it is the disk's.
        """
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.force_close()
            raise
        except NodeError as error:
            self._door.on_failure(error)
            response = _verdict("stopping")
        except Exception as error:  # noqa: BLE001 - see above
            self._event("http.failed", path=request.path, reason=repr(error))
            response = web.Response(status=500, text="failed: see the log of this node\n")
        response.force_close()
        return response

    async def _health(self, request: web.Request) -> web.Response:
        """As etcd's; `?exclude=NOSPACE` leaves an alarm out of account."""
        reason = why_not_healthy(standing(self._door), request.query.getall("exclude", ()))
        told = {"health": "false" if reason else "true", "reason": reason}
        return _json(told, status=503 if reason else 200)

    async def _livez(self, request: web.Request) -> web.Response:
        """Do both threads turn? The one that answers does."""
        return _verdict(why_not_live(standing(self._door)))

    async def _readyz(self, request: web.Request) -> web.Response:
        """Can this node play its role?"""
        return _verdict(why_not_ready(standing(self._door)))

    async def _active(self, request: web.Request) -> web.Response:
        """For balancers: is this where requests are served?"""
        return _verdict("" if self._door.role.active else "standby")

    async def _version(self, request: web.Request) -> web.Response:
        return _json({"etcdserver": API_LEVEL, "etcdcluster": API_LEVEL, "kvserver": __version__})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
        )


def _json(told: dict[str, str], status: int = 200) -> web.Response:
    """Without blanks, as etcd writes it: some look for the text."""
    text = json.dumps(told, separators=(",", ":"))
    return web.Response(status=status, text=text, content_type="application/json")


def _verdict(flaw: str) -> web.Response:
    return web.Response(status=503 if flaw else 200, text=f"{flaw or 'ok'}\n")
