"""Active or standby, and requests that come in between."""

import asyncio
from dataclasses import replace

import pytest

from kvserver.errors import CorruptClusterError, NotActiveError
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.role import Role, RoleMachine
from kvserver.pipeline.watchdog import STEP_S_MAX, StallMeter
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Fitness, Reason
from kvserver.raft.status import RaftStatus

ME, OTHER = MemberId(1), MemberId(2)

DISQUALIFIED = Fitness(frozenset({Reason.DISQUALIFIED}))


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def status(leader: MemberId | None, *, active: bool = False, term: int = 1) -> RaftStatus:
    return RaftStatus(
        term=term, leader=leader, leading=leader == ME, active=active, established=True,
        commit_index=1, applied_index=1, visible_index=1, last_index=1, peers={},
    )  # fmt: skip


def machine(limits: Limits | None = None) -> tuple[RoleMachine, list[tuple[Role, int, str]]]:
    changes: list[tuple[Role, int, str]] = []
    made = RoleMachine(ME, limits or Limits(), Clock(), lambda *change: changes.append(change))
    return made, changes


async def test_a_standby_with_a_leader_refuses_at_once() -> None:
    role, _ = machine()
    role.observe(status(OTHER))
    with pytest.raises(NotActiveError):
        await role.require_active()


async def test_a_request_in_an_election_waits_and_is_served() -> None:
    role, changes = machine()
    waiting = asyncio.create_task(role.require_active())
    await asyncio.sleep(0)
    assert role.parked == 1
    role.observe(status(ME))
    await asyncio.sleep(0)
    assert not waiting.done(), "leader, but the no-op is not applied yet"
    role.observe(status(ME, active=True))
    await waiting
    assert role.parked == 0
    assert changes == [(Role.ACTIVE, 1, "elected")]


async def test_a_request_in_an_election_is_refused_when_another_wins() -> None:
    role, _ = machine()
    waiting = asyncio.create_task(role.require_active())
    await asyncio.sleep(0)
    role.observe(status(OTHER))
    with pytest.raises(NotActiveError):
        await waiting


async def test_parking_ends() -> None:
    role, _ = machine(replace(Limits(), parked_s=0.01))
    with pytest.raises(NotActiveError):
        await role.require_active()


async def test_only_so_many_are_parked() -> None:
    role, _ = machine(replace(Limits(), parked_requests_max=1))
    first = asyncio.create_task(role.require_active())
    await asyncio.sleep(0)
    with pytest.raises(NotActiveError):
        await role.require_active()
    first.cancel()


async def test_who_is_disqualified_waits_for_a_successor_and_then_says_why() -> None:
    role, changes = machine(replace(Limits(), parked_s=0.05))
    role.observe(status(ME, active=True))
    role.observe(replace(status(ME, active=True), fitness=DISQUALIFIED))
    assert role.leads
    waiting = asyncio.create_task(role.require_active())
    await asyncio.sleep(0)
    assert role.parked == 1
    with pytest.raises(CorruptClusterError):
        await waiting
    role.observe(replace(status(OTHER, term=2), fitness=DISQUALIFIED))
    with pytest.raises(NotActiveError):
        await role.require_active()
    assert not role.leads
    assert [(change[0], change[2]) for change in changes] == [
        (Role.ACTIVE, "elected"),
        (Role.STANDBY, "its state must not be served: disqualified"),
    ]


async def test_who_is_unverified_serves_only_if_it_is_trusted() -> None:
    role, changes = machine(replace(Limits(), parked_s=0.05))
    unverified = Fitness(frozenset({Reason.UNVERIFIED}))
    role.observe(replace(status(ME, active=True), fitness=unverified))
    assert not role.active
    with pytest.raises(NotActiveError):
        await role.require_active()
    waiting = asyncio.create_task(role.require_active())
    await asyncio.sleep(0)
    role.observe(status(ME, active=True))
    await waiting
    role.observe(replace(status(ME, active=True), fitness=replace(unverified, trusted=True)))
    assert role.active
    assert [(change[0], change[2]) for change in changes] == [(Role.ACTIVE, "elected")]


def test_who_may_have_to_serve_what_nobody_has_read_awaits_its_verification() -> None:
    role, _ = machine()
    unverified = Fitness(frozenset({Reason.UNVERIFIED}))
    assert role.awaits_verification, "it has met nobody yet"
    for fitness, leads, awaits in (
        (unverified, False, False),
        (unverified, True, True),
        (replace(unverified, trusted=True), False, True),
        (Fitness(), True, False),
    ):
        role.observe(replace(status(ME, active=leads), fitness=fitness))
        assert role.awaits_verification is awaits


async def test_who_has_retired_does_not_come_back() -> None:
    role, _ = machine()
    role.observe(status(ME, active=True))
    role.retire("its data is damaged")
    role.obstruct(None)
    role.observe(status(ME, active=True))
    assert not role.active
    assert role.obstacle == "its data is damaged"
    with pytest.raises(NotActiveError):
        await role.require_active()


async def test_who_was_removed_waits_for_no_election() -> None:
    role, _ = machine()
    waiting = asyncio.create_task(role.require_active())
    await asyncio.sleep(0)
    role.set_removed(True)
    for refused in (waiting, asyncio.create_task(role.require_active())):
        async with asyncio.timeout(Limits.parked_s / 2):
            with pytest.raises(NotActiveError):
                await refused
    role.set_removed(False)
    waiting = asyncio.create_task(role.require_active())
    await asyncio.sleep(0)
    role.observe(status(ME, active=True))
    await waiting


async def test_an_obstacle_ends_service_and_its_end_brings_it_back() -> None:
    role, changes = machine()
    role.observe(status(ME, active=True))
    role.obstruct("stopping")
    assert role.obstacle == "stopping"
    with pytest.raises(NotActiveError):
        await role.require_active()
    role.obstruct(None)
    assert role.obstacle is None
    await role.require_active()
    assert [change[0] for change in changes] == [Role.ACTIVE, Role.STANDBY, Role.ACTIVE]


def test_a_pause_of_everything_is_not_a_stall() -> None:
    meter = StallMeter(0.0)
    assert meter.look(0.05, 1) == 0.0
    assert meter.look(60.0, 1) == STEP_S_MAX
    assert meter.look(60.05, 2) == 0.0


def test_a_stall_is_measured_in_the_watchers_own_time() -> None:
    meter = StallMeter(0.0)
    meter.look(0.0, 1)
    for step in range(1, 101):
        meter.look(step * 0.05, 1)
    assert meter.stalled_s == pytest.approx(5.0)
