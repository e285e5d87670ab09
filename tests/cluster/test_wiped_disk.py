"""A node that lost its data directory lost its votes too: it comes back only as a new member."""

import asyncio
from pathlib import Path

import pytest
from support.cluster import WAIT_S_MAX, crash, wait_said, writing

from kvbench.cluster import Cluster, Node

pytestmark = pytest.mark.cluster

TIMEOUTS_S = 2.0
"""Some election timeouts."""


async def wipe(node: Node, kept: Path) -> None:
    """Start it with an empty directory; what it had is put aside."""
    await crash(node)
    node.plan.data.rename(kept)
    node.start()


async def test_a_wiped_node_does_not_vote_and_comes_back_as_a_new_member(
    cluster: Cluster, tmp_path: Path
) -> None:
    active = await cluster.active()
    wiped, intact = cluster.others(active)
    async with writing(cluster, timeout_s=2) as writers:
        await writers.flow()
        await crash(active)
        await wipe(wiped, tmp_path / "kept")
        await wait_said(wiped, "this node's data directory is new")
        await wait_said(intact, "lost its data directory and with it the memory of its votes")
        await asyncio.sleep(TIMEOUTS_S)
        statuses = await cluster.statuses()
        assert [name for name, s in statuses.items() if s is not None and s.active] == []
        active.start()
        await cluster.wait_in_step()
        await writers.flow()
    await wait_said(wiped, "it joins as a new member")
    await writers.verify(cluster)


async def test_a_node_that_was_wiped_votes_again_once_it_is_in_step(
    cluster: Cluster, tmp_path: Path
) -> None:
    active = await cluster.active()
    wiped, _ = cluster.others(active)
    async with writing(cluster, timeout_s=2) as writers:
        await writers.flow()
        await wipe(wiped, tmp_path / "kept")
        await wait_said(wiped, "it joins as a new member")
        await cluster.wait_in_step()
        await wait_voters(cluster, len(cluster.nodes))
        await crash(active)
        await writers.flow()  # it takes the vote of the one that was wiped
        active.start()
    await writers.verify(cluster)


async def wait_voters(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(WAIT_S_MAX), cluster.connect(WAIT_S_MAX) as client:
        while True:
            members = await client.members()
            voters = [member for member in members if not member.learner]
            if len(voters) == len(members) == count:
                return
            await asyncio.sleep(0.05)


async def test_two_wiped_nodes_found_no_cluster_of_their_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    """With one that remembers, they would be three again: an acknowledged write would be gone."""
    await cluster.control.put("key", "value", timeout_s=10)
    remembers, *others = cluster.nodes
    # it must not be active with one of them gone: it would put the other's return into its log
    await crash(remembers)
    for node in others:
        await wipe(node, tmp_path / f"kept {node.name}")
    await asyncio.sleep(TIMEOUTS_S)
    remembers.start()
    for node in others:
        await wait_said(node, "this node's data directory is new")
    await asyncio.sleep(TIMEOUTS_S)
    statuses = await cluster.statuses()
    assert [name for name, s in statuses.items() if s is not None and s.active] == []
    for node in others:
        await crash(node)
        node.plan.data.rename(tmp_path / f"new {node.name}")
        (tmp_path / f"kept {node.name}").rename(node.plan.data)
        node.start()
    await cluster.wait_in_step()
    found = await cluster.control.get("key", timeout_s=10)
    assert found is not None
    assert found.value == b"value"


async def test_every_disk_is_lost_one_after_the_other(cluster: Cluster, tmp_path: Path) -> None:
    """Those that came back recognize the next one: what they know of it is in the log."""
    async with writing(cluster, timeout_s=2) as writers:
        for node in cluster.nodes:
            await writers.flow()
            await wipe(node, tmp_path / f"kept {node.name}")
            await wait_said(node, "it joins as a new member")
            await cluster.wait_in_step()
            await wait_voters(cluster, len(cluster.nodes))
        await writers.flow()
    await writers.verify(cluster)
