"""An active that is frozen breaks no connection: clients leave it when they hear of another."""

import asyncio
import contextlib

import pytest
from support.cluster import WAIT_S_MAX, writing

from kvbench.cluster import Cluster
from kvclient import AsyncClient, OutcomeUnknown

pytestmark = pytest.mark.cluster

PATIENT_S = 10 * WAIT_S_MAX
"""A client that waited for its own deadline would miss every bound here."""


async def test_a_patient_client_writes_and_reads_on_when_the_active_is_frozen(
    cluster: Cluster,
) -> None:
    async with (
        writing(cluster, timeout_s=PATIENT_S) as writers,
        cluster.connect(PATIENT_S) as reader,
    ):
        await writers.reach(500)
        await reader.put("key", "value")
        frozen = await cluster.active()
        frozen.stop()
        async with asyncio.timeout(WAIT_S_MAX):
            found = await reader.get("key")
        assert found is not None
        assert found.value == b"value"
        await writers.flow()
        assert await cluster.active() is not frozen
        frozen.cont()
        await writers.flow()
    await writers.verify(cluster)


async def test_a_client_that_begins_while_a_node_is_frozen_does_not_wait_for_it(
    cluster: Cluster,
) -> None:
    """Its first call may go there on a connection that another client has made."""
    active = await cluster.active()
    standby, _ = cluster.others(active)
    for frozen in (standby, active):
        frozen.stop()
        async with asyncio.timeout(WAIT_S_MAX), cluster.connect(PATIENT_S) as client:
            await put_until_acknowledged(client, frozen.name)
        frozen.cont()
        await cluster.wait_in_step()


async def put_until_acknowledged(client: AsyncClient, value: str) -> None:
    while True:
        with contextlib.suppress(OutcomeUnknown):
            await client.put("key", value)
            return


async def test_a_stop_that_takes_a_while_is_no_stuck_thread(cluster: Cluster) -> None:
    """Nobody is there to take over, so this one waits, and then stops cleanly."""
    active = await cluster.wait_in_step()
    standbys = cluster.others(active)
    for standby in standbys:
        standby.stop()
    active.term()
    assert await active.wait_exit() == 0
    for standby in standbys:
        standby.cont()
    told = active.log.read_text()
    assert "node.stopped" in told
    assert "node.stuck" not in told
