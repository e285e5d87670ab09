"""A disk that does not hold what was written: that node ends and says so, the others go on."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.cluster import crash, data_file, wait_said, wait_until, writing

from kvbench.cluster import Cluster, Node
from kvbench.flavor import KVSERVER
from kvclient import AsyncClient, KvError
from kvserver.errors import ExitCode

pytestmark = pytest.mark.cluster

PAGE = 4096
MARK = b"a value to be found on the disk"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """With a value whose place on the disks is known, and a scrub every second."""
    async with Cluster(tmp_path, options=["--scrub-interval-s=1"]) as started:
        await put_mark(started)
        yield started


async def put_mark(cluster: Cluster) -> None:
    """Until it is in the file of every node: in the log it is at once, in the state a bit later."""
    await cluster.control.put("marked", MARK, timeout_s=10)
    files = [data_file(node) for node in cluster.nodes]
    await wait_until(lambda: all(MARK in file.read_bytes() for file in files), "it is on the disks")
    await cluster.wait_in_step()


def damage(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a page of every copy of the value that the file holds: in the log and in the state."""
    content = file.read_bytes()
    found = content.find(MARK)
    assert found > 0
    with file.open("r+b") as opened:
        while found > 0:
            opened.seek(found)
            opened.write(change(MARK))
            found = content.find(MARK, found + 1)


def flipped(text: bytes) -> bytes:
    return bytes([text[0] ^ 1]) + text[1:]


async def ends_damaged(node: Node, said: str) -> None:
    assert await node.wait_exit(30) == ExitCode.DATA_DIR
    log = node.log.read_text()
    assert said in log
    assert "empty its --data-dir and start it again" in log
    assert "Traceback" not in log


async def replace(node: Node, cluster: Cluster, kept: Path) -> None:
    """What the sentence says: another directory, the same options; nobody does anything else."""
    node.plan.data.rename(kept)
    node.start()
    await wait_said(node, "it joins as a new member")
    await cluster.wait_in_step()


async def test_damage_in_a_stopped_node_is_found_and_the_node_can_be_replaced(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its scrub finds the row; then it comes back in the way that the log says."""
    active = await cluster.active()
    hurt = cluster.others(active)[0]
    async with writing(cluster, writers=4) as writers:
        await crash(hurt)
        damage(data_file(hurt), flipped)
        hurt.start()
        await ends_damaged(hurt, "is damaged")
        await writers.flow()
        await replace(hurt, cluster, tmp_path / "kept")
        await writers.flow()
    await writers.verify(cluster)
    found = await cluster.control.get("marked", timeout_s=10)
    assert found is not None
    assert found.value == MARK


async def test_one_that_was_added_later_can_be_replaced_with_its_own_options_too(
    cluster: Cluster, tmp_path: Path
) -> None:
    active = await cluster.active()
    hurt = cluster.others(active)[0]
    await crash(hurt)
    hurt.plan.data.rename(tmp_path / "kept")
    options = ["--initial-cluster-state=existing"]
    fresh = Node(hurt.plan, KVSERVER, options, tmp_path / "fresh.log")
    fresh.start()
    try:
        await wait_said(fresh, "node.ready")
        await wait_said(active, "member.promoted")
    finally:
        fresh.end()


async def test_an_active_ends_rather_than_serve_a_damaged_row(tmp_path: Path) -> None:
    async with Cluster(tmp_path, options=["--scrub-interval-s=0"]) as cluster:
        await put_mark(cluster)
        active = await cluster.active()
        damage(data_file(active), flipped)
        async with AsyncClient([active.client], timeout_s=1) as client:
            with pytest.raises(KvError):
                await client.get("marked")
        await ends_damaged(active, "'kv' is damaged")
        found = await cluster.control.get("marked", timeout_s=10)  # of the next active
        assert found is not None
        assert found.value == MARK


@pytest.mark.parametrize("hurt", ["cut off", "zeros"])
async def test_a_node_with_a_broken_file_does_not_start_and_harms_nobody(
    cluster: Cluster, hurt: str
) -> None:
    active = await cluster.active()
    node = cluster.others(active)[0]
    await crash(node)
    file = data_file(node)
    if hurt == "cut off":
        os.truncate(file, file.stat().st_size // 2 // PAGE * PAGE)
    else:
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))
    node.start()
    await ends_damaged(node, "cut off" if hurt == "cut off" else "can't be opened")
    async with writing(cluster, writers=4) as writers:
        await writers.flow()
    assert (await cluster.active()) is active


async def test_a_file_cut_off_under_a_running_node_ends_it(cluster: Cluster) -> None:
    """The mapped pages are gone: SIGBUS, or a page of zeros where the file has grown again."""
    active = await cluster.active()
    node = cluster.others(active)[0]
    os.truncate(data_file(node), 2 * PAGE)
    async with writing(cluster, writers=4) as writers:
        await writers.flow()
        code = await node.wait_exit(30)
        await writers.flow()
    assert code in (-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT, ExitCode.DATA_DIR)
    if code < 0:
        assert "Fatal Python error" in node.log.read_text()
        node.start()
        await ends_damaged(node, "data.mdb")


async def test_all_is_well_says_the_scrub(cluster: Cluster) -> None:
    for node in cluster.nodes:
        await wait_said(node, "verify.done rows=")
    active = await cluster.active()
    await wait_until(lambda: active.log.read_text().count("verify.done") > 1, "a second pass")
