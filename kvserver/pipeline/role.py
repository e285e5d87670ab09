"""Active or standby: what this node is to clients, and where they should go instead. Main thread.

Active = leader, the no-op of its term applied, and able to serve. Everything else is standby.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final

from kvserver.clock import Clock
from kvserver.errors import CorruptClusterError, NotActiveError
from kvserver.pipeline.limits import Limits
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Fitness, Reason
from kvserver.raft.status import RaftStatus

REMOVED: Final = (
    "this node was removed from the cluster: stop it, and empty its data directory before it joins "
    "again"
)


RECOVERED: Final = "recovered"


class Role(Enum):
    """Of a node, as clients see it."""

    ACTIVE = "active"
    STANDBY = "standby"


class RoleMachine:
    """Follows the consensus; requests that come while no leader is known wait here."""

    def __init__(
        self,
        me: MemberId,
        limits: Limits,
        clock: Clock,
        on_change: Callable[[Role, int, str], None],
    ) -> None:
        """A node starts as standby.

        Args:
            me: id of this node.
            limits: how many may wait, and how long.
            clock: of the node.
            on_change: told the new role, the term and the reason.
        """
        self._me = me
        self._limits = limits
        self._clock = clock
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._parked = 0
        self._obstacle: str | None = None
        self._retired: str | None = None
        self.role = Role.STANDBY
        self.epoch = 0
        """Rises whenever the role moves: who remembers it sees that it moved there and back."""
        self.term = 0
        self.leader: MemberId | None = None
        """Of this term; None while unknown or suspected."""
        self.leads = False
        """This node decides what enters the log, whether it may serve or not."""
        self._fitness = Fitness(trusted=True)  # it has met nobody yet
        self._removed = False

    @property
    def active(self) -> bool:
        """True if this node serves."""
        return self.role is Role.ACTIVE

    @property
    def obstacle(self) -> str | None:
        """Why this node serves nobody, for a reason of its own."""
        return self._retired or self._obstacle

    @property
    def awaits_verification(self) -> bool:
        """Whether clients wait for it: what nobody has read is served, or nothing at all."""
        return self._fitness.trusted or (self.leads and not self._fitness.may_serve)

    @property
    def removed(self) -> bool:
        """True if this node is no member any more: no election makes it serve."""
        return self._removed

    @property
    def parked(self) -> int:
        """Requests that wait for an election to end."""
        return self._parked

    def observe(self, status: RaftStatus) -> None:
        """Take over what a turn has left behind."""
        self.leads, self._fitness = status.active, status.fitness
        reason = "elected" if status.active else "deposed"
        if status.active and not status.fitness.may_serve:
            reason = f"its state must not be served: {status.fitness.text}"
        self._update(status.term, status.leader, reason)

    def obstruct(self, reason: str | None) -> None:
        """Stop serving for a reason of this node's own (stuck), or go on with None."""
        self._obstacle = reason
        self._update(self.term, self.leader, reason or RECOVERED)

    def retire(self, reason: str) -> None:
        """Stop serving for good: stopping, damaged."""
        self._retired = self._retired or reason
        self._update(self.term, self.leader, reason)

    def set_removed(self, removed: bool) -> None:
        """The members say whether this node is one of them."""
        self._removed = removed
        self._wake()

    async def change(self) -> None:
        """Return when role or leader change next."""
        await self._changed.wait()

    def _update(self, term: int, leader: MemberId | None, reason: str) -> None:
        serves = self.leads and self._fitness.may_serve and self.obstacle is None
        role = Role.ACTIVE if serves else Role.STANDBY
        moved = role is not self.role
        if moved or leader != self.leader:
            self._wake()
        self.role, self.term, self.leader = role, term, leader
        if moved:
            self.epoch += 1
            self._on_change(role, term, reason)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def require_active(self) -> None:
        """Return if this node is the active; park while nobody knows who is.

        Raises:
            NotActiveError: it is not, and did nothing.
            CorruptClusterError: nor is any other, since nobody knows whose state is right.
        """
        if self.active:
            return
        deadline = self._clock.monotonic() + self._limits.parked_s
        while self._awaiting_election() and self._parked < self._limits.parked_requests_max:
            if not await self._park(deadline - self._clock.monotonic()):
                break
            if self.active:
                return
        if self.leads and Reason.DISQUALIFIED in self._fitness.reasons:
            raise CorruptClusterError
        raise NotActiveError

    def _awaiting_election(self) -> bool:
        """Nobody is known to lead, or this node does but has not finished taking over."""
        hopeless = self.obstacle is not None or self._removed
        return not hopeless and self.leader in (None, self._me)

    async def _park(self, left_s: float) -> bool:
        """Wait for news about who leads; False if there were none in time."""
        self._parked += 1
        try:
            async with asyncio.timeout(left_s):
                return await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            self._parked -= 1
