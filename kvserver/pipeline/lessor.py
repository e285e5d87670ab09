"""The clock of the leases, on the active: who is kept alive, and whose time is up. Main thread.

Time is told by the active alone, and only the log ends a lease. A new active begins with the
promises of the log (`mvcc/leases.py`): every lease has its full time anew, but never beyond the
deadline that is promised for it, so that failovers following one another keep no lease alive.

Invariants:
- a lease is kept alive only after a read round that began after its client asked: a deposed active
  renews nothing;
- what a client is told ends before the promise in the log does;
- nothing is ended while a client that asked in time waits for its answer;
- nothing is answered while an entry of an earlier tenure may still end a lease (`_Tenure.loaded`).
"""

import asyncio
import contextlib
import heapq
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from kvpb.raft_pb2 import Command, ExpireLeases, PassTime, RenewLeases
from kvpb.rpc_pb2 import LeaseGrantRequest, LeaseGrantResponse
from kvserver.clock import Clock
from kvserver.errors import (
    LeaseTtlTooLargeError,
    NotActiveError,
    NotCapableError,
    RequestError,
)
from kvserver.mvcc.leases import LeaseChange, LeaseRow, leases_after
from kvserver.pipeline.awaited import Awaited
from kvserver.pipeline.outcome import Response
from kvserver.storage.contract import Storage

TTL_S_MAX: Final = 9_000_000_000
"""As in etcd."""

TTL_TIMEOUTS_MIN: Final = 1.5
"""Shortest time of a lease in election timeouts, as in etcd."""

REFUSED_S: Final = 0.5
"""How long etcd's client waits after a standby has refused to keep a lease alive."""

LOOK_S: Final = 0.1
"""How often it is looked whose time is up."""

STALL_S: Final = 0.5
STALL_GRACE_S: Final = 1.0
"""After so long without a look (a pause of the process) nothing is ended for a moment: keepalives
that came meanwhile are served first."""

EXPIRED_PER_ENTRY: Final = 200
LOADED_PER_SLICE: Final = 500

TIME_HELD_MS: Final = 2_000
"""How far the time in the log may stay behind while there are leases and nothing is written."""

TOLD_WITHIN_S: Final = 1
"""Between the look at the promise and the client's being told."""

RETRY_S: Final = 0.05


@dataclass(slots=True, eq=False)
class _Lease:
    ttl_s: int
    deadline: float
    """Of the node's clock."""
    promised_ms: int
    """Log time that the row promises."""
    due: float = 0.0
    """When it is looked at next. Invariant: it stands in the heap once, at this time."""
    ending: bool = False
    """Its end is proposed."""

    def falls_short(self, now_ms: int) -> bool:
        """True if the log does not promise its full time from log time `now_ms` on."""
        return self.promised_ms < now_ms + 1000 * (self.ttl_s + TOLD_WITHIN_S)


@dataclass(eq=False)
class _Tenure:
    """The leases as long as this node is the active."""

    term: int
    began: float
    leases: dict[int, _Lease] = field(default_factory=dict)
    heap: list[tuple[float, int]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    """Ended while the rows are read: what is read may be older."""
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    """Until it is set no client is told anything and nothing is ended.

    Invariant: set only after an entry that this tenure proposed was applied, and the rows were read
    behind it. A node can lose its role and regain it within one term, with the end of a lease in
    flight that its first tenure decided. Proposals enter the log in the order in which they were
    made, so that end lies before the entry of the new tenure, or nowhere.
    """
    over: bool = False
    fate_known: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever the fate of leases that were ending is known."""
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def check(self) -> None:
        """Raise if this node is not the active any more.

        Raises:
            NotActiveError: nothing it knows of leases holds.
        """
        if self.over:
            raise NotActiveError

    def schedule(self, number: int, lease: _Lease, due: float) -> None:
        """Look at a lease then."""
        lease.due = due
        heapq.heappush(self.heap, (due, number))
        if len(self.heap) > 2 * len(self.leases) + 1_000:  # of leases that are gone
            self.heap = [(each.due, which) for which, each in self.leases.items()]
            heapq.heapify(self.heap)

    def unchanged(self, leases: dict[int, _Lease]) -> list[int]:
        """Ids of those that are still there: one granted anew is another lease."""
        return [number for number, lease in leases.items() if self.leases.get(number) is lease]

    def pop_due(self, now: float) -> int | None:
        """A lease that is to be looked at now."""
        while self.heap and self.heap[0][0] <= now:
            due, number = heapq.heappop(self.heap)
            lease = self.leases.get(number)
            if lease is not None and lease.due == due:
                return number
        return None


def ttl_s_min(members: int, election_timeout_s: float) -> int:
    """Shortest time that is granted: clients must have time to find the active.

    One may come upon every standby first; a second is left for what else takes time.
    """
    return max(math.ceil(TTL_TIMEOUTS_MIN * election_timeout_s), math.ceil(members * REFUSED_S) + 1)


@dataclass(frozen=True)
class Remaining:
    """Of a lease, in whole seconds."""

    granted_s: int
    left_s: int


class Lessor:
    """Grants leases, keeps them alive and ends them, while this node is the active."""

    def __init__(  # noqa: PLR0913 - its neighbours, handed in
        self,
        storage: Storage,
        clock: Clock,
        rng: random.Random,
        *,
        ttl_s_min: Callable[[], int],
        propose: Callable[[Command], Awaitable[Response]],
        linearizable: Callable[[], Awaitable[None]],
        log_time_ms: Callable[[], int],
        stamped_ms: Callable[[], int],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Nothing happens before `activate`.

        Args:
            storage: where the promises lie.
            clock: of the node.
            rng: for the ids of leases.
            ttl_s_min: shorter leases are granted with this; it grows with the cluster.
            propose: brings a command into the log.
            linearizable: returns when what is read then is not stale.
            log_time_ms: log time now, on the active.
            stamped_ms: log time of the newest applied batch.
            on_failure: told what ended the work here; the node must not go on.
        """
        self._storage = storage
        self._clock = clock
        self._rng = rng
        self._ttl_s_min = ttl_s_min
        self._propose_once = propose
        self._linearizable = linearizable
        self._log_time_ms = log_time_ms
        self._stamped_ms = stamped_ms
        self._on_failure = on_failure
        self._tenure: _Tenure | None = None
        self.awaited = Awaited()
        """Leases whose clients wait for an answer which keeps them alive: they asked in time, so no
        end of these is proposed. Of any tenure, since they may have asked before this one began."""

    # ------------------------------------------------------------------ role

    def activate(self, term: int) -> None:
        """This node is the active from now on: every lease has its time anew."""
        self.close()
        tenure = self._tenure = _Tenure(term, self._clock.monotonic())
        for work in (self._load, self._look):
            self._spawn(tenure, work)

    def close(self) -> None:
        """This node is not the active any more: it ends and renews nothing."""
        tenure, self._tenure = self._tenure, None
        if tenure is not None:
            tenure.over = True
            tenure.loaded.set()
            tenure.fate_known.set()
            for task in tenure.tasks:
                task.cancel()

    @property
    def count(self) -> int | None:
        """Leases whose time is told here; None if they are not, or not yet."""
        tenure = self._tenure
        return len(tenure.leases) if tenure is not None and tenure.loaded.is_set() else None

    def _spawn(self, tenure: _Tenure, work: Callable[[_Tenure], Awaitable[None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(tenure, work))
        tenure.tasks.add(task)
        task.add_done_callback(tenure.tasks.discard)

    async def _guarded(self, tenure: _Tenure, work: Callable[[_Tenure], Awaitable[None]]) -> None:
        """Run `work`, made only here: a tenure may be over before its tasks have begun."""
        try:
            await work(tenure)
        except Exception as error:  # noqa: BLE001 - whatever it is, the node must know
            self._on_failure(error)

    def _current(self) -> _Tenure:
        if self._tenure is None:
            raise NotActiveError
        return self._tenure

    async def _loaded(self) -> _Tenure:
        tenure = self._current()
        await tenure.loaded.wait()
        tenure.check()
        return tenure

    async def _propose(self, command: Command) -> Response:
        self._current()
        return await self._propose_once(command)

    # ------------------------------------------------------------------ for clients

    async def grant(self, request: LeaseGrantRequest) -> LeaseGrantResponse:
        """Begin a lease, with an id of the client's or, for 0, of this node's choice.

        Raises:
            LeaseTtlTooLargeError, LeaseExistsError, NotCapableError: nothing changed.
        """
        response = await self._propose(Command(lease_grant=self._settled(request)))
        assert isinstance(response, LeaseGrantResponse)
        return response

    async def open_session(self, ttl_s: int) -> LeaseGrantResponse:
        """Begin a lease that is a session.

        Raises:
            LeaseTtlTooLargeError, NotCapableError: nothing changed.
        """
        request = self._settled(LeaseGrantRequest(TTL=ttl_s))
        response = await self._propose(Command(open_session=request))
        assert isinstance(response, LeaseGrantResponse)
        return response

    def _settled(self, request: LeaseGrantRequest) -> LeaseGrantRequest:
        if request.TTL > TTL_S_MAX:
            raise LeaseTtlTooLargeError
        number = request.ID or self._rng.randrange(1, 1 << 63)
        return LeaseGrantRequest(ID=number, TTL=max(request.TTL, self._ttl_s_min()))

    def used(self, session: int) -> None:
        """The log has answered a write in a session: it lives on, as if it had been kept alive.

        That the write was committed says as much as a read round. It must have been `awaited`: else
        the end of its session may lie behind it in the log.
        """
        lease = self._tenure.leases.get(session) if self._tenure is not None else None
        if lease and not lease.ending and not lease.falls_short(self._log_time_ms()):
            lease.deadline = self._clock.monotonic() + lease.ttl_s

    async def keep_alive(self, numbers: Iterable[int]) -> list[int]:
        """Give leases their full time anew.

        Returns:
            The seconds each has from now on, 0 for one that does not exist.

        Raises:
            NotActiveError: this node does not lead (any more); nothing was renewed.
        """
        wanted = list(numbers)
        with self.awaited.within(*wanted):
            tenure = await self._loaded()
            await self._linearizable()
            tenure.check()
            await self._settle(tenure, wanted)
            return [self._prolong(tenure, number) for number in wanted]

    async def _settle(self, tenure: _Tenure, numbers: list[int]) -> None:
        """Return when the log promises what clients are about to be told, and none is ending."""
        while True:
            tenure.check()
            now_ms = self._log_time_ms()
            there = [each for each in numbers if each in tenure.leases]
            if short := [each for each in there if tenure.leases[each].falls_short(now_ms)]:
                await self._propose(Command(renew_leases=RenewLeases(ids=short)))
            elif any(tenure.leases[each].ending for each in there):
                tenure.fate_known.clear()
                await tenure.fate_known.wait()
            else:
                return

    def _prolong(self, tenure: _Tenure, number: int) -> int:
        lease = tenure.leases.get(number)
        if lease is None:
            return 0
        lease.deadline = self._clock.monotonic() + lease.ttl_s
        return lease.ttl_s

    async def remaining(self, number: int) -> Remaining | None:
        """The time of a lease, None if it does not exist."""
        tenure = await self._loaded()
        await self._linearizable()
        tenure.check()
        lease = tenure.leases.get(number)
        if lease is None:
            return None
        return Remaining(lease.ttl_s, max(0, int(lease.deadline - self._clock.monotonic())))

    async def all(self) -> list[int]:
        """Ids of all leases, the one that ends first at the front."""
        tenure = await self._loaded()
        await self._linearizable()
        tenure.check()
        return sorted(tenure.leases, key=lambda number: tenure.leases[number].deadline)

    # ------------------------------------------------------------------ what the log says

    def publish(self, changes: list[LeaseChange]) -> None:
        """Changes were applied."""
        tenure = self._tenure
        if tenure is None:
            return  # they will be read
        for number, row in changes:
            if row is None:
                tenure.leases.pop(number, None)
                if not tenure.loaded.is_set():
                    tenure.gone.add(number)
            elif (known := tenure.leases.get(number)) is not None:
                known.promised_ms = row.deadline_ms
            else:
                tenure.gone.discard(number)
                self._add(tenure, number, row, float(row.ttl_s))

    def _add(self, tenure: _Tenure, number: int, row: LeaseRow, left_s: float) -> None:
        deadline = self._clock.monotonic() + left_s
        lease = tenure.leases[number] = _Lease(row.ttl_s, deadline, row.deadline_ms)
        tenure.schedule(number, lease, deadline)

    async def _load(self, tenure: _Tenure) -> None:
        """Take over the leases of the predecessor, some at a time."""
        await _insist(self._settle_the_past)
        await _insist(self._linearizable)  # what was applied before is visible from here on
        last: int | None = None
        while True:
            with self._storage.read() as txn:
                rows = list(islice(leases_after(txn, last), LOADED_PER_SLICE))
            now_ms = self._log_time_ms()
            for number, row in rows:
                if number not in tenure.leases and number not in tenure.gone:
                    left_s = min(row.ttl_s, (row.deadline_ms - now_ms) / 1000)
                    self._add(tenure, number, row, left_s)
            if len(rows) < LOADED_PER_SLICE:
                break
            last = rows[-1][0]
            await asyncio.sleep(0)
        tenure.gone.clear()
        tenure.loaded.set()

    async def _settle_the_past(self) -> None:
        """Return when nothing that an earlier tenure proposed can be applied any more.

        Raises:
            RequestError: it may be.
        """
        # A cluster that is not capable of this entry never was of one that ends a lease.
        with contextlib.suppress(NotCapableError):
            await self._propose_once(Command(pass_time=PassTime()))

    # ------------------------------------------------------------------ the end of leases

    async def _look(self, tenure: _Tenure) -> None:
        looked = hold_until = self._clock.monotonic()
        await tenure.loaded.wait()
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._clock.monotonic()
            if now - looked > STALL_S:
                hold_until = now + STALL_GRACE_S
            looked = now
            if now >= hold_until:
                while due := self._due(tenure, now):
                    await self._expire(tenure, due)
                looked = self._clock.monotonic()
            await self._pass_time(tenure)

    def _due(self, tenure: _Tenure, now: float) -> list[int]:
        """Leases whose time is up, a bounded number of them."""
        due: list[int] = []
        while len(due) < EXPIRED_PER_ENTRY and (number := tenure.pop_due(now)) is not None:
            lease = tenure.leases[number]
            if lease.deadline > now:
                tenure.schedule(number, lease, lease.deadline)
            elif number in self.awaited:
                tenure.schedule(number, lease, now + LOOK_S)
            else:
                due.append(number)
        return due

    async def _expire(self, tenure: _Tenure, due: list[int]) -> None:
        """Let the log end these; those that it does not end are looked at again."""
        ending = {number: tenure.leases[number] for number in due}
        for lease in ending.values():
            lease.ending = True
        while left := tenure.unchanged(ending):
            expiry = ExpireLeases(term=tenure.term, ids=left)
            try:
                await self._propose(Command(expire_leases=expiry))
                break
            except RequestError:  # the log may still end them; what comes behind it will show
                await asyncio.sleep(RETRY_S)
        now = self._clock.monotonic()
        for number in tenure.unchanged(ending):
            ending[number].ending = False
            tenure.schedule(number, ending[number], now + STALL_GRACE_S)
        tenure.fate_known.set()

    async def _pass_time(self, tenure: _Tenure) -> None:
        """Let the log know how late it is, if it has not heard for a while.

        Soon after an election it hears more often: of many short reigns it is to know most, too.
        """
        held_ms = self._log_time_ms() - self._stamped_ms()
        reign_ms = 1000 * (self._clock.monotonic() - tenure.began)
        if tenure.leases and held_ms > min(TIME_HELD_MS, reign_ms / 3):
            with contextlib.suppress(RequestError):
                await self._propose(Command(pass_time=PassTime()))


async def _insist(step: Callable[[], Awaitable[None]]) -> None:
    """Repeat a step of a new tenure until it succeeds; the end of the tenure cancels it."""
    while True:
        try:
            await step()
        except RequestError:
            await asyncio.sleep(RETRY_S)
        else:
            return
