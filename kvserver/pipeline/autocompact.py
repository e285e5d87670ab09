"""Auto-compaction: the active forgets old revisions by itself, so that the history stays bounded.

What may go is decided by revisions ("keep the newest 10,000") or by age ("keep the last hour").
For the latter every node, standbys too, notes the revision it has seen now and then, with the time
of its own clock. A standby is behind the active, never ahead of it, so what it noted is at least
as old as it believes: a new active may go on from its own notes, and one that has none yet waits.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import CompactionRequest
from kvserver.clock import Clock
from kvserver.config import Retention
from kvserver.errors import CompactedError, RequestError
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.role import RoleMachine

PERIOD_S_MAX: Final = 3600.0
"""What is older than the retention goes at least once an hour, as in etcd."""

NOTES_PER_PERIOD: Final = 10
"""How exact the age of a revision is known; also how soon a failed compaction is tried again."""

REVISIONS_PERIOD_S: Final = 300.0
"""Between two compactions by number, as in etcd."""


class Keeper(Protocol):
    """Decides what may go."""

    look_s: float
    """How often it wants to look."""

    def look(self, now: float, revision: int) -> int | None:
        """The revision to compact at now, None for nothing.

        Args:
            now: seconds of the node's clock.
            revision: newest one that is applied here.
        """
        ...

    def done(self, now: float) -> None:
        """What was last looked for is compacted."""
        ...


class KeepRevisions:
    """Keeps so many of the newest revisions."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._found = 0
        self.look_s = REVISIONS_PERIOD_S

    def look(self, now: float, revision: int) -> int | None:  # noqa: ARG002 - not by time
        """The revision to compact at now, None for nothing."""
        self._found = revision - self._count
        return self._found if self._found > max(0, self._done) else None

    def done(self, now: float) -> None:  # noqa: ARG002
        """What was last looked for is compacted."""
        self._done = self._found


class KeepPeriod:
    """Keeps what is younger than a period.

    Invariant: a revision it gives was noted, and therefore applied, at least the period ago.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._every_s = min(period_s, PERIOD_S_MAX)
        self.look_s = self._every_s / NOTES_PER_PERIOD
        self._notes: deque[tuple[float, int]] = deque()
        """Time and revision, in order; bounded, since old ones are forgotten."""
        self._next_s = 0.0
        self._done = 0

    def look(self, now: float, revision: int) -> int | None:
        """The revision to compact at now, None for nothing."""
        self._notes.append((now, revision))
        # the newest note that is old enough stays as the first one
        while len(self._notes) > 1 and self._notes[1][0] <= now - self._period_s:
            self._notes.popleft()
        noted, found = self._notes[0]
        if noted > now - self._period_s or now < self._next_s or found <= max(1, self._done):
            return None
        return found

    def done(self, now: float) -> None:
        """What was last looked for is compacted."""
        self._next_s = now + self._every_s
        self._done = self._notes[0][1]


def keeper_of(retention: Retention) -> Keeper | None:
    """Who decides, as the options want it; None for nobody."""
    if retention.revisions:
        return KeepRevisions(retention.revisions)
    return KeepPeriod(retention.period_s) if retention.period_s else None


async def auto_compact(
    keeper: Keeper,
    clock: Clock,
    role: RoleMachine,
    proposer: Proposer,
    *,
    revision: Callable[[], int],
    on_event: Callable[..., None],
) -> None:
    """Look now and then, until cancelled; only an active proposes what is found.

    Args:
        keeper: decides.
        clock: of the node.
        role: of the node.
        proposer: where the compaction enters the log, as anybody's would.
        revision: newest applied one.
        on_event: log.
    """
    while True:
        now = clock.monotonic()
        found = keeper.look(now, revision())
        if found is not None and role.active:
            try:
                await proposer.propose(Command(compact=CompactionRequest(revision=found)))
                on_event("compaction.proposed", revision=found)
                keeper.done(now)
            except CompactedError:  # by a client, or by the active before
                keeper.done(now)
            except RequestError as error:
                on_event("compaction.failed", revision=found, reason=type(error).__name__)
        await asyncio.sleep(keeper.look_s)
