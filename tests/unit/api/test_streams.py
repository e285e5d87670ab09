"""When streams end: with the active that they began on."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvserver.api.streams import until_deposed
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.role import RoleMachine
from kvserver.raft.engine import RaftStatus
from kvserver.raft.entry import MemberId

ME, OTHER = MemberId(1), MemberId(2)
ACTIVE = RaftStatus(
    term=3, leader=ME, leading=True, active=True, established=True,
    commit_index=1, applied_index=1, visible_index=1, last_index=1, peers={},
)  # fmt: skip
DEPOSED = replace(ACTIVE, term=4, leader=OTHER, leading=False, active=False)
ELECTED_ANEW = replace(ACTIVE, term=5)

WITHIN_S = 1.0


@pytest.fixture
def role() -> RoleMachine:
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    made = RoleMachine(ME, Limits(), clock, lambda *_: None)
    made.observe(ACTIVE)
    return made


async def test_a_deposal_ends_it(role: RoleMachine) -> None:
    deposed = asyncio.create_task(until_deposed(role))
    await asyncio.sleep(0)
    role.observe(replace(ACTIVE, commit_index=2))
    await asyncio.sleep(0)
    assert not deposed.done()
    role.observe(DEPOSED)
    await asyncio.wait_for(deposed, WITHIN_S)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_deposal_that_was_over_at_once_ends_it(role: RoleMachine, begun: bool) -> None:
    deposed = asyncio.create_task(until_deposed(role))
    if begun:
        await asyncio.sleep(0)
    role.observe(DEPOSED)
    role.observe(ELECTED_ANEW)
    await asyncio.wait_for(deposed, WITHIN_S)


async def test_so_does_an_obstacle_that_was_gone_at_once(role: RoleMachine) -> None:
    """The term is the same then: watches were closed, and leases counted anew."""
    deposed = asyncio.create_task(until_deposed(role))
    await asyncio.sleep(0)
    role.obstruct("raft thread stuck")
    role.obstruct(None)
    await asyncio.wait_for(deposed, WITHIN_S)


async def test_on_a_standby_it_has_ended(role: RoleMachine) -> None:
    role.observe(DEPOSED)
    await asyncio.wait_for(until_deposed(role), WITHIN_S)
