"""From requests to log entries: queues writes, batches what waits, and tells each how it ended.

`propose` belongs to the main thread, everything else to the raft thread; the queue between them is
a deque, whose single operations are atomic.

Invariant: every proposal ends as exactly one of applied, provably not applied, unknown.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from kvpb.raft_pb2 import Command, CommandBatch, PassTime
from kvserver.clock import Clock
from kvserver.errors import (
    NoSpaceError,
    NotActiveError,
    NotCapableError,
    OutcomeUnknownError,
    RequestTooLargeError,
    TooManyRequestsError,
)
from kvserver.pipeline.features import batch_format, check_command
from kvserver.pipeline.gathering import Gathering
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.log_time import LogClock
from kvserver.pipeline.outcome import Outcome, Response, Result
from kvserver.pipeline.weight import weight_of

CAPABLE_WITHIN_S: Final = 2.0
CAPABLE_LOOK_S: Final = 0.02

ORPHAN_S: Final = 1.0
"""How long the entries of a deposed active may take to be decided by its successor."""


class Room(Protocol):
    """What there is room for."""

    def admit(self, command: Command) -> None:
        """Raise NoSpaceError for a command that must not be proposed now."""
        ...

    async def is_settled(self, command: Command) -> bool:
        """Whether a numbered write changes nothing any more, as of all that was answered."""
        ...


@dataclass(slots=True, eq=False)
class _Proposal:
    command: Command
    weight: int
    """Bytes that it counts in a batch."""
    future: "asyncio.Future[Response]"
    deadline: float


@dataclass(slots=True)
class _Flight:
    """Proposals that share an entry."""

    proposals: list[_Proposal]
    index: int = 0
    term: int = 0
    give_up_at: float = float("inf")


class Proposer:
    """The write path of one node."""

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        *,
        knock: Callable[[], None],
        log_time_ms: Callable[[], int],
        feature_level: Callable[[], int],
        room: Room,
    ) -> None:
        """Nothing moves before the raft thread does.

        Args:
            limits: at the door and for a batch.
            clock: of the node.
            knock: makes the raft thread take a turn; safe from the main thread.
            log_time_ms: newest applied stamp; called in the raft thread.
            feature_level: of the cluster; from any thread.
            room: says which commands must not be proposed now.
        """
        self._limits = limits
        self._clock = clock
        self._log_time_ms = log_time_ms
        self._feature_level = feature_level
        self._room = room
        self._queue: deque[_Proposal] = deque()
        self._gathering = Gathering(self._queue, clock, knock)
        self._open: dict[_Proposal, None] = {}
        """In order of arrival, hence of deadline. Main thread."""
        self._open_bytes = 0
        self._taken: list[_Proposal] | None = None
        self._flight: _Flight | None = None
        """Invariant: one batch of this leadership is uncommitted at most."""
        self._orphans: list[_Flight] = []
        """Batches of past leaderships that nobody has decided yet."""
        self._log_clock: LogClock | None = None
        self._outcomes: list[Outcome] = []
        self.applied_index = 0
        """Newest batch that was decided here."""
        self.capable_soon: Callable[[], bool] = lambda: False
        """Whether the cluster may understand more in a moment."""

    # ------------------------------------------------------------------ main thread

    async def propose(self, command: Command) -> Response:
        """Get `command` applied, once, and return its response.

        Raises:
            RequestTooLargeError, TooManyRequestsError, NotCapableError, NoSpaceError,
                NotActiveError: it is not applied.
            OutcomeUnknownError: it may be.
            RequestError: applying it gave this answer; nothing changed.
        """
        try:
            check_command(command, self._feature_level())
        except NotCapableError:
            await self._wait_capable(command)
        size = command.ByteSize()
        if size > self._limits.request_bytes_max:
            raise RequestTooLargeError
        self._check_open(size)
        try:
            self._room.admit(command)
        except NoSpaceError:
            if not (command.session and await self._is_settled(command, size)):
                raise
            self._check_open(size)  # others came meanwhile
        loop = asyncio.get_running_loop()
        deadline = self._clock.monotonic() + self._limits.request_timeout_s
        proposal = _Proposal(command, size + weight_of(command), loop.create_future(), deadline)
        self._open[proposal] = None
        self._open_bytes += size
        self._queue.append(proposal)
        self._gathering.came()
        try:
            return await proposal.future
        finally:
            del self._open[proposal]
            self._open_bytes -= size

    async def _wait_capable(self, command: Command) -> None:
        """Wait until the members are known to understand a command.

        A cluster that has just begun learns that within moments. A client that was refused a
        session meanwhile would write without, and not know what became of a write over a crash.

        Raises:
            NotCapableError: one of them is known to be older, or was not met within that time.
        """
        give_up_at = self._clock.monotonic() + CAPABLE_WITHIN_S
        while self.capable_soon() and self._clock.monotonic() <= give_up_at:
            await asyncio.sleep(CAPABLE_LOOK_S)
            with contextlib.suppress(NotCapableError):
                return check_command(command, self._feature_level())
        raise NotCapableError

    def _check_open(self, size: int) -> None:
        """Raise TooManyRequestsError if another command of this size is too much."""
        full = len(self._open) >= self._limits.pending_requests_max
        if full or self._open_bytes + size > self._limits.pending_bytes_max:
            raise TooManyRequestsError

    async def _is_settled(self, command: Command, size: int) -> bool:
        """Whether a numbered write for which there is no room puts nothing any more.

        Load-bearing: an earlier attempt may still be in the queue or in the log, even if nobody
        waits for it any more. It must not be applied after its client was told that there is no
        room. What is proposed behind it is applied after it, so first that is waited for.
        """
        self._open_bytes += size
        try:
            await self.propose(Command(pass_time=PassTime()))
            return await self._room.is_settled(command)
        finally:
            self._open_bytes -= size

    def log_time_ms(self) -> int:
        """Log time now, if this node is the active."""
        log_clock = self._log_clock
        return log_clock.stamp(self._clock.monotonic()) if log_clock else self._log_time_ms()

    @property
    def pending(self) -> int:
        """Writes that wait for their result."""
        return len(self._open)

    def expire(self) -> None:
        """Give up on writes that wait for too long. Called now and then on the main thread."""
        now = self._clock.monotonic()
        for proposal in self._open:
            if proposal.deadline > now:
                break
            if not proposal.future.done():
                proposal.future.set_exception(OutcomeUnknownError())

    # ------------------------------------------------------------------ raft thread

    def take(self) -> bytes | None:
        """The next batch of an active; None while one is uncommitted, or too little waits."""
        if self._flight is not None:
            return None  # its commit brings the next turn: nobody needs to knock
        if self._gathering.holds():
            return None
        now = self._clock.monotonic()
        if self._log_clock is None:
            self._log_clock = LogClock(now, self._log_time_ms())
        if not self._queue:
            return None
        batch = self._gather(now)
        if not batch:
            return None
        self._taken = batch
        self._gathering.taken()
        return CommandBatch(
            format=batch_format(self._feature_level()),
            log_time_ms=self._log_clock.stamp(now),
            commands=[proposal.command for proposal in batch],
        ).SerializeToString()

    def _gather(self, now: float) -> list[_Proposal]:
        limits, queue = self._limits, self._queue
        batch: list[_Proposal] = []
        size = 0
        while queue and len(batch) < limits.batch_commands_max:
            proposal = queue[0]
            if batch and size + proposal.weight > limits.batch_bytes_max:
                break
            queue.popleft()
            if proposal.future.cancelled():
                continue
            if proposal.deadline <= now:
                self._outcomes.append((proposal.future, NotActiveError()))
                continue
            batch.append(proposal)
            size += proposal.weight
        return batch

    def appended(self, index: int, term: int) -> None:
        """What was taken last is in the log of this leader."""
        assert self._taken is not None
        self._flight = _Flight(self._taken, index, term)
        self._taken = None

    def awaits(self, index: int) -> bool:
        """Whether somebody here waits for what is answered to the entry at `index`."""
        flights = self._orphans if self._flight is None else [self._flight, *self._orphans]
        return any(flight.index == index for flight in flights)

    def applied(self, index: int, term: int, results: list[Result]) -> None:
        """The entry at `index` is applied, with these results in the order of its commands."""
        self.applied_index = index
        flight = self._flight
        if flight is not None and flight.index == index:
            self._flight = None
            self._decide(flight, term, results)
            self._gathering.answered(len(flight.proposals) + len(self._queue))
        if self._orphans:
            for orphan in [o for o in self._orphans if o.index == index]:
                self._orphans.remove(orphan)
                self._decide(orphan, term, results)

    def _decide(self, flight: _Flight, term: int, results: list[Result]) -> None:
        futures = [proposal.future for proposal in flight.proposals]
        if flight.term == term:
            self._outcomes += zip(futures, results, strict=True)
        else:
            # another entry is committed in its place: it never will be
            self._outcomes += [(future, NotActiveError()) for future in futures]

    def take_outcomes(self) -> list[Outcome]:
        """Outcomes that nobody was told yet."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def stand_down(self) -> None:
        """This node does not lead: nothing waits here any more. Called in every such turn."""
        self._log_clock = None
        self._gathering.forget()
        now = self._clock.monotonic()
        while self._queue:
            self._outcomes.append((self._queue.popleft().future, NotActiveError()))
        if self._flight is not None:
            self._flight.give_up_at = now + ORPHAN_S
            self._orphans.append(self._flight)
            self._flight = None
        while self._orphans and self._orphans[0].give_up_at <= now:
            for proposal in self._orphans.pop(0).proposals:
                self._outcomes.append((proposal.future, OutcomeUnknownError()))
