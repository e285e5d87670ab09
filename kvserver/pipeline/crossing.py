"""From the raft thread to the main one: few calls per turn, and only if there are news."""

import asyncio
from collections.abc import Callable

from kvserver.mvcc.history import Change
from kvserver.mvcc.leases import LeaseChange
from kvserver.pipeline.outcome import Outcome, settle
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.reader import read_outcomes
from kvserver.raft.status import RaftStatus


class Crossing:
    """Ends a turn: gathers what it decided and carries it over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        proposer: Proposer,
        on_status: Callable[[RaftStatus], None],
        on_changes: Callable[[int, list[Change]], None],
        on_leases: Callable[[list[LeaseChange]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Carry to `loop`.

        Args:
            loop: of the main thread; the callables are called there.
            proposer: whose outcomes are carried.
            on_status: told when who leads, or who is there, changes.
            on_changes: told, on a leader, the changes that were applied, and by which entry.
            on_leases: told, on a leader, the leases that were changed.
            on_failure: told there what one of these has raised; the node must not go on.
        """
        self._loop = loop
        self._proposer = proposer
        self._on_status = on_status
        self._on_changes = on_changes
        self._on_leases = on_leases
        self._on_failure = on_failure
        self._changes: list[Change] = []
        self._leases: list[LeaseChange] = []
        self._told: tuple[object, ...] = ()
        self.status: RaftStatus | None = None
        """Of the newest turn; replaced whole, so any thread may look."""
        self.applied_index_told = 0
        """Newest batch that is applied: clients may know of it."""
        self.applied_index_visible = 0
        """Newest entry that a read transaction opened now will see."""

    @property
    def up_to_date(self) -> bool:
        """True if a read transaction opened now sees everything this node has answered."""
        return self.applied_index_visible >= self.applied_index_told

    def applied(self, changes: list[Change], leases: list[LeaseChange]) -> None:
        """A batch was applied. Raft thread."""
        self._changes += changes
        self._leases += leases

    def results(self) -> None:
        """Committed entries are applied: tell whoever proposed them, or watches. Raft thread."""
        outcomes = self._proposer.take_outcomes()
        changes, self._changes = self._changes, []
        leases, self._leases = self._leases, []
        if self.status is None or not self.status.leading:
            changes, leases = [], []  # nobody watches here, nor keeps leases
        # what was applied as a standby counts too: a successor must not read a state without it
        self.applied_index_told = self._proposer.applied_index
        if outcomes or changes or leases:
            self._call(None, outcomes, changes, leases)

    def end_turn(self, status: RaftStatus, ready: list[object], failed: list[object]) -> None:
        """The turn is durable: its results may be seen. Raft thread."""
        if not status.leading:
            self._proposer.stand_down()
        outcomes = self._proposer.take_outcomes()
        if ready or failed:
            outcomes += read_outcomes(ready, failed)
        self.status = status
        self.applied_index_visible = status.visible_index
        news = (
            status.term, status.leader, status.active, status.established, status.peers,
            status.fitness,
        )  # fmt: skip
        changed = news != self._told
        if changed:
            self._told = news
        if changed or outcomes:
            self._call(status if changed else None, outcomes, [], [])

    def _call(
        self,
        status: RaftStatus | None,
        outcomes: list[Outcome],
        changes: list[Change],
        leases: list[LeaseChange],
    ) -> None:
        if not self._loop.is_closed():
            index = self.applied_index_told
            self._loop.call_soon_threadsafe(self._arrive, status, outcomes, changes, leases, index)

    def _arrive(
        self,
        status: RaftStatus | None,
        outcomes: list[Outcome],
        changes: list[Change],
        leases: list[LeaseChange],
        index: int,
    ) -> None:
        try:
            if status is not None:
                self._on_status(status)
            if changes:
                self._on_changes(index, changes)
            if leases:
                self._on_leases(leases)
            settle(outcomes)
        except Exception as error:  # noqa: BLE001 - the loop would go on, with news that got lost
            self._on_failure(error)
