"""When streams end: with the active that they began on."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kvserver.api.streams import after_first_request, until_deposed
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.role import RoleMachine
from kvserver.raft.entry import MemberId
from kvserver.raft.status import RaftStatus

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


# ---------------------------------------------------------------------------- the first request


async def saying(*requests: int, broken: bool = False) -> AsyncIterator[int]:
    for request in requests:
        yield request
    if broken:
        raise ConnectionError


@pytest.mark.parametrize("said", [(), (1,), (1, 2, 3)])
async def test_all_requests_are_passed_on(said: tuple[int, ...]) -> None:
    requests = await after_first_request(saying(*said))
    assert [request async for request in requests] == list(said)


async def test_what_breaks_before_the_first_request_is_told() -> None:
    requests = await after_first_request(saying(broken=True))
    with pytest.raises(ConnectionError):
        await anext(requests)


@pytest.mark.parametrize("broken", [False, True])
async def test_a_stream_that_nobody_reads_on_ends_in_silence(broken: bool) -> None:
    """It is refused, and its client was gone without a request."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    await after_first_request(saying(broken=broken))
    gc.collect()
    assert not complaints
