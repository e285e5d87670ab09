"""Leases outlive the active that granted them: none ends early, none lives for ever."""

import asyncio

import pytest
from support.cluster import crash, hand_over, wait_until
from support.lease_holder import Holder

from kvbench import clock
from kvbench.cluster import Cluster

pytestmark = pytest.mark.cluster

TTL_S = 3
LONG_TTL_S = 600
ENDS_WITHIN_S = TTL_S + 3.0
"""After the last failover: its time anew, the grace after a pause, and the work."""


async def test_a_paused_active_ends_no_lease_that_its_successor_renewed(cluster: Cluster) -> None:
    """etcd's does: what the old leader proposes when it wakes up is passed on to the new one."""
    paused = await cluster.active()
    holder, left_alone = (Holder(cluster.endpoints, lease, TTL_S) for lease in (1, 2))
    await holder.begin()
    await left_alone.begin()
    paused.stop()
    assert await cluster.active() is not paused
    holder.keep_alive()
    await asyncio.sleep(2 * TTL_S)
    assert holder.kept >= 3
    paused.cont()
    await cluster.wait_in_step()
    await asyncio.sleep(2 * TTL_S)
    assert await holder.there()
    assert not await left_alone.there()
    await holder.leave()


async def test_a_paused_active_renews_nothing(cluster: Cluster) -> None:
    paused = await cluster.active()
    holder = Holder((paused.client,), 1, TTL_S)
    await holder.begin()
    paused.stop()
    asking = asyncio.create_task(holder.keep_alive_once())
    assert await cluster.active() is not paused
    other = Holder(cluster.endpoints, 1, TTL_S)
    await wait_until_gone(other, ENDS_WITHIN_S)
    assert not asking.done()
    paused.cont()
    with pytest.raises(AssertionError, match=r"no connection available|leader changed|Deadline"):
        await asking
    assert clock.monotonic() > holder.until


async def test_failovers_of_every_kind(cluster: Cluster) -> None:
    kept = [Holder(cluster.endpoints, lease, TTL_S) for lease in range(1, 6)]
    forgotten = [Holder(cluster.endpoints, lease, LONG_TTL_S) for lease in range(11, 14)]
    for holder in (*kept, *forgotten):
        await holder.begin()
    for holder in kept:
        holder.keep_alive()
    for fault in ("kill", "stop", "transfer", "kill", "transfer"):
        before = [holder.kept for holder in kept]
        active = await cluster.active()
        match fault:
            case "kill":
                await crash(active)
                assert await cluster.active() is not active
                active.start()
            case "stop":
                active.stop()
                assert await cluster.active() is not active
                active.cont()
            case _:
                await hand_over(cluster)
        await cluster.wait_in_step()
        for holder, count in zip(kept, before, strict=True):
            await wait_until(lambda h=holder, c=count: h.kept > c + 1, "leases are kept alive")  # type: ignore[misc]
    for holder in (*kept, *forgotten):
        assert await holder.there()
    for holder in kept:
        await holder.leave()
    for holder in kept:
        await wait_until_gone(holder, ENDS_WITHIN_S)
        assert clock.monotonic() >= holder.until


async def test_failovers_keep_no_lease_alive(cluster: Cluster) -> None:
    holder = Holder(cluster.endpoints, 1, TTL_S)
    await holder.begin()
    deadline = clock.monotonic() + 20 * TTL_S
    failovers = 0
    while await holder.there():
        assert clock.monotonic() < deadline, f"alive after {failovers} failovers"
        await hand_over(cluster)
        await cluster.wait_in_step()
        failovers += 1
        await asyncio.sleep(TTL_S / 4)
    assert failovers > 3, "none of them gave it its full time"


async def wait_until_gone(holder: Holder, within_s: float) -> None:
    deadline = clock.monotonic() + within_s
    while await holder.there():
        assert clock.monotonic() < deadline, f"lease {holder.lease} lives on"
        await asyncio.sleep(0.05)
