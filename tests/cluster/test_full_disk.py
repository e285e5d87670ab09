"""A node whose disk is full says so, stops serving and tries again; the others go on."""

import pytest
from support.cluster import UNLIMITED, data_file, limit_files, wait_said, wait_until, writing

from kvbench.cluster import Cluster, Node

pytestmark = pytest.mark.cluster


async def fill_disk_of(node: Node, cluster: Cluster) -> None:
    """Writes go on all the time; in the end the node has room again."""
    async with writing(cluster) as writers:
        await writers.flow()
        # what a file takes already may be written again, as on a full disk
        files = (each for each in data_file(node).parent.rglob("*") if each.is_file())
        limit_files(node, max(each.stat().st_size for each in files))
        await wait_said(node, "writing to the ")
        await wait_said(node, "see whether the disk of --data-dir is full")
        await wait_said(node, "node.restart")
        await writers.flow()
        starts = node.log.read_text().count("node.ready")
        await wait_until(
            lambda: node.log.read_text().count("node.ready") > starts, "it tries again"
        )
        await writers.flow()
        limit_files(node, UNLIMITED)
        await cluster.wait_in_step()
        await writers.flow()
    await writers.verify(cluster)
    assert "Traceback" not in node.log.read_text()


async def test_a_standby_without_room_harms_nobody_and_comes_back(cluster: Cluster) -> None:
    active = await cluster.active()
    term = (await cluster.statuses())[active.name]
    await fill_disk_of(cluster.others(active)[0], cluster)
    after = (await cluster.statuses())[active.name]
    assert after is not None
    assert term is not None
    assert (after.active, after.term) == (True, term.term)


async def test_an_active_without_room_is_followed_by_another(cluster: Cluster) -> None:
    active = await cluster.active()
    await fill_disk_of(active, cluster)
    assert "role=standby" in active.log.read_text()
