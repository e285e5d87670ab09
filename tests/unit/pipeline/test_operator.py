"""Leadership is handed over, more than once if need be, and the caller told when it is not."""

import asyncio
from collections.abc import Callable

import pytest

from kvserver.errors import BadTransfereeError
from kvserver.pipeline import operator
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.operator import Operator
from kvserver.pipeline.role import RoleMachine
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.status import RaftStatus

ME, TARGET, OTHER = MemberId(1), MemberId(2), MemberId(3)


class Clock:
    def monotonic(self) -> float:
        return 100.0


class Bench:
    """An active whose raft thread is played by the test."""

    def __init__(self, *, timeout_s: float = 5.0) -> None:
        limits = Limits(request_timeout_s=timeout_s)
        self.role = RoleMachine(ME, limits, Clock(), lambda *_: None)
        self.begun = 0
        self.hand_over: Callable[[], MemberId | None] = lambda: TARGET
        self.operator = Operator(
            ME, limits, self.role, Roster(), post=lambda change: None, hand_over=self._hand_over
        )
        self.leads(ME)

    def _hand_over(self, target: MemberId | None, tell: Callable[[object], None]) -> None:
        self.begun += 1
        tell(self.hand_over())

    def leads(self, leader: MemberId | None) -> None:
        self.role.observe(
            RaftStatus(
                term=2, leader=leader, leading=leader == ME, active=leader == ME, established=True,
                commit_index=1, applied_index=1, visible_index=1, last_index=1, peers={},
            )
        )  # fmt: skip


async def test_it_ends_when_the_target_leads() -> None:
    bench = Bench()
    moving = asyncio.create_task(bench.operator.move_leader(TARGET))
    await asyncio.sleep(0.01)
    bench.leads(None)
    await asyncio.sleep(0.01)
    assert not moving.done()
    bench.leads(TARGET)
    await moving
    assert bench.begun == 1


async def test_a_target_that_is_not_there_is_told_at_once() -> None:
    bench = Bench(timeout_s=3600.0)
    bench.hand_over = lambda: None
    with pytest.raises(BadTransfereeError):
        await bench.operator.move_leader(TARGET)


async def test_what_was_given_up_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "HAND_OVER_AGAIN_S", 0.001)
    bench = Bench()

    def third_time() -> MemberId:
        if bench.begun == 3:
            bench.leads(TARGET)
        return TARGET

    bench.hand_over = third_time
    await bench.operator.move_leader(TARGET)
    assert bench.begun == 3


@pytest.mark.parametrize("leader", [ME, OTHER, None])
async def test_another_leader_than_the_target(
    leader: MemberId | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "HAND_OVER_AGAIN_S", 0.001)
    bench = Bench(timeout_s=0.05)

    def elected() -> MemberId:
        bench.leads(leader)
        return TARGET

    bench.hand_over = elected
    with pytest.raises(BadTransfereeError):
        await bench.operator.move_leader(TARGET)


async def test_without_a_target_anybody_will_do() -> None:
    bench = Bench()

    def gone() -> MemberId:
        bench.leads(None)
        return OTHER

    bench.hand_over = gone
    await bench.operator.move_leader(None)
