"""Fake nodes that end with the test, and both clients behind one face."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from support.fake_node import FakeNode, answers, put_response, range_response
from support.kv_command import HEADER

from kvclient import AsyncClient, Client
from kvpb import rpc_pb2


@pytest.fixture
def nodes() -> Iterator[Callable[[int], list[FakeNode]]]:
    started: list[FakeNode] = []

    def start(count: int) -> list[FakeNode]:
        fresh = [FakeNode() for _ in range(count)]
        started.extend(fresh)
        return fresh

    yield start
    for node in started:
        node.stop()


@pytest.fixture
def node(nodes: Callable[[int], list[FakeNode]]) -> FakeNode:
    (node,) = nodes(1)
    node.on("Put", answers(put_response(revision=5)))
    node.on("Range", answers(range_response()))
    node.on("DeleteRange", answers(rpc_pb2.DeleteRangeResponse(header=HEADER)))
    return node


class Threaded:
    """The client for threads with the face of the one for asyncio."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.client, name)
        if not inspect.ismethod(attribute):
            return attribute

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(attribute, *args, **kwargs)

        return call


@pytest.fixture(params=["asyncio", "threads"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    opened: list[Any] = []

    def make(*nodes: FakeNode | str, **options: Any) -> Any:
        endpoints = [node if isinstance(node, str) else node.address for node in nodes]
        client: Any
        if request.param == "asyncio":
            client = AsyncClient(endpoints, **options)
        else:
            client = Threaded(Client(endpoints, **options))
        opened.append(client)
        return client

    yield make
    for client in opened:
        await client.close()
