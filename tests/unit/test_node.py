"""When a node ends because one of its threads is stuck, and when not."""

import asyncio
import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from kvserver import node as module
from kvserver.node import STUCK_EXIT_S, Node
from kvserver.pipeline.watchdog import STEP_S_MAX, RaftWatch

LOOKS = int(3 * STUCK_EXIT_S / STEP_S_MAX)


class DiedError(Exception):
    """The process would have ended."""


class Watched:
    """What the watch looks at."""

    def __init__(self, on_look: Callable[["Watched"], None]) -> None:
        self.now = 0.0
        self.looks = 0
        self.turns = 0
        self.steps = 0
        self._on_look = on_look
        self.obstacles: list[str | None] = []

    def look(self) -> float:
        """The clock, which passes a little at every look."""
        self.looks += 1
        self.now += STEP_S_MAX
        self._on_look(self)
        if self.looks == LOOKS:
            raise asyncio.CancelledError
        return self.now

    def _die(self, thread: str) -> None:
        raise DiedError(thread)

    async def watch(self) -> None:
        node = SimpleNamespace(
            _beats=0, _die=self._die,
            _proposer=SimpleNamespace(expire=lambda: None),
            _reader=SimpleNamespace(expire=lambda: None),
            _clock=SimpleNamespace(monotonic=self.look), _thread=self,
            _applier=SimpleNamespace(pace=self),
            _raft_watch=RaftWatch(0.0, stuck_after_s=0.6),
            _role=SimpleNamespace(obstruct=self.obstacles.append),
        )  # fmt: skip
        with contextlib.suppress(asyncio.CancelledError):
            await Node._watch(cast("Node", node))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.0)


async def test_a_raft_thread_that_does_nothing_ends_the_process() -> None:
    watched = Watched(lambda _: None)
    with pytest.raises(DiedError, match="raft"):
        await watched.watch()
    assert watched.now == pytest.approx(STUCK_EXIT_S, abs=3 * STEP_S_MAX)


async def test_an_entry_that_takes_long_does_not_but_nobody_is_served_meanwhile() -> None:
    def apply(watched: Watched) -> None:
        watched.steps += watched.looks % 20 == 0

    watched = Watched(apply)
    await watched.watch()
    assert watched.obstacles[-1] == "raft thread stuck"


async def test_turns_are_all_that_serving_needs() -> None:
    def turn(watched: Watched) -> None:
        watched.turns += 1

    watched = Watched(turn)
    await watched.watch()
    assert set(watched.obstacles) == {None}
