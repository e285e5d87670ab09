"""Old revisions are forgotten by age or by number, by the active alone, and never too early."""

import asyncio
from typing import cast

import pytest

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import CompactionResponse
from kvserver.config import Retention
from kvserver.errors import CompactedError, OutcomeUnknownError, RequestError
from kvserver.pipeline.autocompact import (
    Keeper,
    KeepPeriod,
    KeepRevisions,
    auto_compact,
    keeper_of,
)
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.role import RoleMachine

HOUR_S = 3600.0
STEP_S = HOUR_S / 10


def test_nothing_is_compacted_before_the_period_has_passed_once() -> None:
    keeper = KeepPeriod(HOUR_S)
    assert keeper.look_s == STEP_S
    for step in range(10):
        assert keeper.look(step * STEP_S, 100 + step) is None
    assert keeper.look(10 * STEP_S, 110) == 100


def test_a_revision_is_never_given_before_it_is_old_enough() -> None:
    keeper = KeepPeriod(HOUR_S)
    noted: dict[int, float] = {}
    for step in range(100):
        now, revision = step * STEP_S, 10 * step + 2
        noted[revision] = now
        if (found := keeper.look(now, revision)) is not None:
            assert now - noted[found] >= HOUR_S
            keeper.done(now)


def test_what_is_old_goes_once_a_period_and_a_failure_is_tried_again_soon() -> None:
    keeper = KeepPeriod(HOUR_S)
    given = []
    for step in range(41):
        found = keeper.look(step * STEP_S, 100 + step)
        given.append(found)
        if found is not None and step != 10:  # the first attempt fails
            keeper.done(step * STEP_S)
    assert [step for step, found in enumerate(given) if found] == [10, 11, 21, 31]
    assert [found for found in given if found] == [100, 101, 111, 121]


def test_a_pause_of_the_node_makes_nothing_old_that_was_noted_after_it() -> None:
    keeper = KeepPeriod(HOUR_S)
    keeper.look(0, 5)
    keeper.look(STEP_S, 6)
    assert keeper.look(30 * HOUR_S, 1000) == 6


def test_a_day_is_kept_though_it_is_looked_at_every_hour() -> None:
    keeper = KeepPeriod(24 * HOUR_S)
    found = [keeper.look(step * STEP_S, 100 + step) for step in range(260)]
    assert next(step for step, each in enumerate(found) if each) == 240
    assert len(keeper._notes) <= 242


def test_nothing_new_means_no_compaction() -> None:
    keeper = KeepPeriod(HOUR_S)
    for step in range(50):
        if keeper.look(step * STEP_S, 7) is not None:
            keeper.done(step * STEP_S)
            assert step == 10
    assert all(KeepPeriod(1.0).look(now, 1) is None for now in range(9)), "an empty store"


def test_so_many_revisions_are_kept() -> None:
    keeper = KeepRevisions(100)
    assert keeper.look(0, 100) is None
    assert keeper.look(0, 101) == 1
    assert keeper.look(0, 102) == 2
    keeper.done(0)
    assert keeper.look(0, 102) is None
    assert keeper.look(0, 500) == 400


def test_options_choose_who_decides() -> None:
    assert keeper_of(Retention()) is None
    assert isinstance(keeper_of(Retention(revisions=5)), KeepRevisions)
    assert isinstance(keeper_of(Retention(period_s=5)), KeepPeriod)


# ---------------------------------------------------------------------- who proposes


class Scripted:
    """Proposer, role and clock of one node; every look comes at once."""

    def __init__(self, *outcomes: RequestError | None) -> None:
        self.outcomes = list(outcomes)
        self.proposed: list[int] = []
        self.events: list[str] = []
        self.active = True
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    async def propose(self, command: Command) -> CompactionResponse:
        self.proposed.append(command.compact.revision)
        if self.outcomes and (outcome := self.outcomes.pop(0)) is not None:
            raise outcome
        return CompactionResponse()

    async def looks(self, keeper: Keeper, count: int) -> None:
        keeper.look_s = 0.0
        revisions = iter(range(1000, 1000 + count))
        task = asyncio.create_task(
            auto_compact(
                keeper, self, cast("RoleMachine", self), cast("Proposer", self),
                revision=lambda: next(revisions),
                on_event=lambda name, **_: self.events.append(name),
            )
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="StopIteration"):
            await task


async def test_only_the_active_proposes() -> None:
    node = Scripted()
    node.active = False
    await node.looks(KeepRevisions(10), 5)
    assert node.proposed == []
    node.active = True
    await node.looks(KeepRevisions(10), 2)
    assert node.proposed == [990, 991]


async def test_a_new_active_goes_on_from_its_own_notes() -> None:
    node = Scripted()
    node.active = False
    keeper = KeepPeriod(3.0)
    await node.looks(keeper, 6)
    node.active = True
    await node.looks(keeper, 1)
    assert node.proposed == [1004], "noted three seconds ago, as a standby"


async def test_a_failure_is_tried_again_and_what_is_done_already_is_not() -> None:
    node = Scripted(OutcomeUnknownError(), CompactedError())
    keeper = KeepPeriod(2.0)
    await node.looks(keeper, 4)
    assert node.proposed == [1000, 1001]
    assert node.events == ["compaction.failed"]
    assert keeper.look(4.5, 1004) is None, "not before the period is over again"
