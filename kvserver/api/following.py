"""Changes of some keys as they come, for calls of the server's own that wait for one."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Self

from kvserver.api.door import Door
from kvserver.api.streams import until_deposed
from kvserver.errors import NotActiveError
from kvserver.mvcc.history import Change
from kvserver.mvcc.interval import Interval
from kvserver.pipeline.watching import News, Watcher

CHANGES_MAX: Final = 1_000
"""That wait to be looked at; above it the rest is read from the history later."""


class Following:
    """One interest in the changes after a revision, for the length of a `with` block."""

    def __init__(
        self,
        door: Door,
        interval: Interval,
        after_revision: int,
        unwanted: frozenset[int] = frozenset(),
    ) -> None:
        """Prepare.

        Args:
            door: of this node.
            interval: of the keys.
            after_revision: the newest that the caller has seen.
            unwanted: kinds of changes to leave out.
        """
        self._door = door
        self._watcher = Watcher(0, interval, self, after_revision + 1, unwanted)
        self._changes: deque[Change] = deque()
        self._news = asyncio.Event()
        self._lost = False

    def __enter__(self) -> Self:
        self._deposed = asyncio.create_task(until_deposed(self._door.role))
        self._deposed.add_done_callback(lambda _: self._news.set())
        self._door.watches.add(self._watcher, self._door.newest_revision())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._deposed.cancel()
        self._door.watches.remove(self._watcher)

    async def next(self) -> Change | None:
        """The next change; None if it may have been compacted: look at the state again.

        Raises:
            NotActiveError: this node does not see changes any more.
        """
        while not self._changes:
            if self._lost:
                return None
            if self._deposed.done():
                raise NotActiveError
            self._news.clear()
            await self._news.wait()
        return self._changes.popleft()

    # ------------------------------------------------------------------ as a sink

    @property
    def full(self) -> bool:
        """True while it takes no more."""
        return len(self._changes) >= CHANGES_MAX

    def send(self, watcher: Watcher, changes: list[Change], news: News) -> None:
        """Take changes."""
        self._changes += changes
        self._news.set()

    def compacted(self, watcher: Watcher, revision: int) -> None:
        """What comes next is gone."""
        self._lost = True
        self._news.set()
