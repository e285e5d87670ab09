"""Clients of a simulated cluster, in virtual time."""

import asyncio
import random
from typing import Any, Protocol

from support.calls import Caller, ConnectionLostError, Finder, Record
from support.simulation import Cluster
from support.virtual_loop import VirtualLoop
from support.whole_node import WholeNode


class Lasting(Protocol):
    """Somebody who goes on until told to stop."""

    stopping: bool

    async def run(self) -> None: ...


class Clients:
    """All clients of a run, and what they saw."""

    def __init__(self, cluster: Cluster, seed: int, count: int = 5) -> None:
        self._cluster = cluster
        self.rng = random.Random(seed)
        self.loop = VirtualLoop(cluster.clock)  # type: ignore[abstract]
        self.record = Record()
        self._waiting: dict[asyncio.Future[Any], WholeNode] = {}
        self._callers: list[Lasting] = []
        self._tasks: list[asyncio.Task[None]] = []
        for number in range(count):
            self.add(self._caller(f"c{number}"))

    def _caller(self, name: str, active: str | None = None) -> Caller:
        finder = Finder(self.pick, self.send, self.rng)
        finder.active = active
        return Caller(self.record, self.rng, name, finder.ask)

    def add(self, caller: Lasting) -> None:
        """Let one more take part."""
        self._callers.append(caller)
        self._tasks.append(self.loop.create_task(caller.run()))

    # ------------------------------------------------------------------ for the run

    def due(self) -> float:
        lost = any(self._gone(node) for node in self._waiting.values())
        return 0.0 if lost else self.loop.due()

    def _gone(self, node: WholeNode) -> bool:
        return self._cluster.nodes.get(node.me) is not node

    def run(self) -> None:
        for future, node in list(self._waiting.items()):
            if self._gone(node) and not future.done():
                future.set_exception(ConnectionLostError())
        self.loop.run()
        for task in self._tasks:
            if task.done():
                task.result()

    def stop(self) -> None:
        """No new calls."""
        for caller in self._callers:
            caller.stopping = True

    def abandon(self) -> None:
        """The run is over, for the nodes too."""
        self.loop.abandon()
        for node in self._cluster.nodes.values():
            assert isinstance(node, WholeNode)
            node.loop.abandon()

    @property
    def idle(self) -> bool:
        """True when all have stopped."""
        return all(task.done() for task in self._tasks)

    def read_all(self) -> "asyncio.Task[None]":
        """One more client reads every key, and sees what is there in the end."""
        active = self._cluster.active()
        client = self._caller("last", active.name if active is not None else None)
        task = self.loop.create_task(client.read_until_answered())
        self._tasks.append(task)
        return task

    # ------------------------------------------------------------------ for the clients

    def pick(self, wanted: str | None) -> WholeNode | None:
        """A running node: the named one, or any."""
        nodes = sorted(self._cluster.nodes.values(), key=lambda node: node.name)
        named = [node for node in nodes if node.name == wanted]
        node = self.rng.choice(named or nodes) if nodes else None
        assert node is None or isinstance(node, WholeNode)
        return node

    def send(self, node: WholeNode, method: str, request: Any) -> "asyncio.Future[Any]":
        """Call a node: request and answer each take a moment."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self._waiting[future] = node
        future.add_done_callback(lambda done: self._waiting.pop(done, None))
        self.loop.call_later(
            self.rng.uniform(0, 0.002), self._arrive, future, node, method, request
        )
        return future

    def _arrive(
        self, future: "asyncio.Future[Any]", node: WholeNode, method: str, request: Any
    ) -> None:
        if future.done():
            return

        def answered(task: "asyncio.Task[Any]") -> None:
            if not task.cancelled():
                delay = self.rng.uniform(0, 0.002)
                self.loop.call_later(delay, self._resolve, future, task)

        node.loop.create_task(node.serve(method, request)).add_done_callback(answered)

    def _resolve(self, future: "asyncio.Future[Any]", task: "asyncio.Task[Any]") -> None:
        error = task.exception()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())
