"""Linearizable moments for reads: all that wait share one read-index round, without a sync.

`linearizable` belongs to the main thread, `take` to the raft thread.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from kvserver.clock import Clock
from kvserver.errors import NotActiveError, TooManyRequestsError
from kvserver.pipeline.gathering import GATHER_FROM, Gathering
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.outcome import Outcome, Response


class Reader:
    """The read path of one node, up to the moment at which a read transaction may be opened."""

    def __init__(self, limits: Limits, clock: Clock, *, knock: Callable[[], None]) -> None:
        """Args as for the proposer."""
        self._limits = limits
        self._clock = clock
        self._knock = knock
        self._waiting: deque[asyncio.Future[Response]] = deque()
        self._gathering = Gathering(self._waiting, clock, knock)
        self._round: list[object] = []
        """Reads that were taken last. Invariant: while many are under way, no others are taken, and
        the end of the last one knocks for those that wait."""
        self._open: dict[asyncio.Future[Response], float] = {}
        """Future -> deadline, in order of arrival. Main thread."""

    async def linearizable(self) -> None:
        """Return when a read transaction opened now sees every write acknowledged before the call.

        Raises:
            NotActiveError: this node does not lead (any more), or could not confirm it in time.
        """
        if len(self._open) >= self._limits.pending_requests_max:
            raise TooManyRequestsError
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._open[future] = self._clock.monotonic() + self._limits.request_timeout_s
        self._waiting.append(future)
        self._gathering.came()
        served = False
        try:
            await future
            served = True
        finally:
            del self._open[future]
            if self._round and future is self._round[-1]:
                self._round_ended(served=served)

    def _round_ended(self, *, served: bool) -> None:
        """Others may go now; after a failure at once, their clients have to look elsewhere."""
        self._gathering.answered(len(self._round) + len(self._waiting) if served else 0)
        if self._waiting:
            self._knock()

    @property
    def pending(self) -> int:
        """Reads that wait for their moment."""
        return len(self._open)

    def expire(self) -> None:
        """Give up on reads that wait for too long. Called now and then on the main thread."""
        now = self._clock.monotonic()
        for future, deadline in self._open.items():
            if deadline > now:
                break
            if not future.done():
                future.set_exception(NotActiveError())

    def take(self) -> list[object]:
        """All reads that wait now, none while they are better held back. Raft thread."""
        if self._under_way() or self._gathering.holds():
            return []
        taken: list[object] = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        if taken:
            self._round = taken
            self._gathering.taken()
        return taken

    def _under_way(self) -> bool:
        """True while many reads that were taken are not answered."""
        if len(self._round) < GATHER_FROM:
            return False
        last = self._round[-1]
        assert isinstance(last, asyncio.Future)
        return not last.done()


def read_outcomes(ready: list[object], failed: list[object]) -> list[Outcome]:
    """What to tell the reads of a turn."""
    outcomes: list[Outcome] = []
    for future in ready:
        assert isinstance(future, asyncio.Future)
        outcomes.append((future, None))
    for future in failed:
        assert isinstance(future, asyncio.Future)
        outcomes.append((future, NotActiveError()))
    return outcomes
