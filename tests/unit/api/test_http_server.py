"""What an error behind an HTTP answer does to the node, and what not."""

from types import SimpleNamespace
from typing import cast

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from kvserver.api.door import Door
from kvserver.api.http_server import HttpServer
from kvserver.errors import DataDirError


class Watched:
    """A server, and what it tells the node."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        door = cast("Door", SimpleNamespace(on_failure=self.failures.append))
        self._server = HttpServer(door, lambda name, **fields: self.events.append((name, fields)))

    async def answer(self, outcome: web.Response | Exception) -> web.StreamResponse:
        async def handler(_: web.Request) -> web.Response:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return await self._server._one_answer(make_mocked_request("GET", "/metrics"), handler)


async def test_one_answer_ends_the_connection() -> None:
    watched = Watched()
    response = await watched.answer(web.Response(text="told"))
    assert (response.status, response.keep_alive) == (200, False)
    assert not watched.failures


async def test_damage_that_is_met_here_ends_the_node_like_any_other() -> None:
    watched, damage = Watched(), DataDirError("a row is damaged")
    assert (await watched.answer(damage)).status == 503
    assert watched.failures == [damage]


async def test_a_mistake_of_ours_does_not() -> None:
    watched = Watched()
    assert (await watched.answer(ZeroDivisionError("x"))).status == 500
    assert not watched.failures
    assert watched.events == [
        ("http.failed", {"path": "/metrics", "reason": "ZeroDivisionError('x')"})
    ]
