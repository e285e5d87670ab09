"""Damage in the state that is served: after a restart of all, and under a running active."""

import shutil
from pathlib import Path
from random import Random

import pytest
from support.cluster import crash, wait_said, wait_until
from support.damage import Damages

from kvbench.cluster import Cluster, Node
from kvserver.errors import ExitCode

pytestmark = pytest.mark.cluster

KEYS = 1_500
KINDS = ("lie: a separator moved", "lie: a row is missing, file sound")
"""All rows that are there have a right checksum: only a verification finds it."""


async def fill(cluster: Cluster) -> None:
    for number in range(KEYS):
        await cluster.control.put(b"%06d" % number, b"value %d" % number, timeout_s=10)
    await cluster.wait_in_step()


async def check(cluster: Cluster) -> None:
    for number in range(KEYS):
        found = await cluster.control.get(b"%06d" % number, timeout_s=10)
        assert found is not None, number
        assert found.value == b"value %d" % number


async def ends_damaged(node: Node) -> None:
    assert await node.wait_exit(60) == ExitCode.DATA_DIR
    log = node.log.read_text()
    assert "empty its --data-dir and start it again" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("kind", KINDS)
async def test_after_a_restart_of_all_the_hurt_one_ends_and_the_others_serve(
    tmp_path: Path, kind: str
) -> None:
    async with Cluster(tmp_path) as cluster:
        await fill(cluster)
        for node in cluster.nodes:
            await crash(node)
        hurt, *others = cluster.nodes
        Damages(hurt.plan.data).draw(Random(kind), kind).apply(hurt.plan.data)
        for node in cluster.nodes:
            node.start()
        await ends_damaged(hurt)
        await wait_until(lambda: all(each.running for each in others), "the others run")
        await check(cluster)
        assert (await cluster.active()) in others
        for node in others:
            assert "Traceback" not in node.log.read_text()


async def test_one_that_is_alone_ends_too_and_does_not_begin_anew(tmp_path: Path) -> None:
    """Better nobody than one that has forgotten something."""
    async with Cluster(tmp_path, nodes=1) as cluster:
        await fill(cluster)
        (node,) = cluster.nodes
        await crash(node)
        Damages(node.plan.data).draw(Random(1), KINDS[0]).apply(node.plan.data)
        for _ in range(2):
            node.start()
            await ends_damaged(node)


async def test_an_active_that_is_hurt_while_it_runs_hands_over(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    async with Cluster(tmp_path / "nodes", options=["--scrub-interval-s=1"]) as cluster:
        await fill(cluster)
        hurt = await cluster.active()
        await wait_said(hurt, "verify.done")
        copy = tmp_path / "copy"
        shutil.copytree(hurt.plan.data, copy)
        damage = Damages(copy).draw(Random(1), KINDS[0])
        before = (copy / damage.file).read_bytes()
        after = damage.change(before)
        assert after is not None
        with (hurt.plan.data / damage.file).open("r+b") as file:
            for at in (at for at in range(len(before)) if before[at] != after[at]):
                file.seek(at)
                file.write(after[at : at + 1])
        await ends_damaged(hurt)
        assert 'reason="its data is damaged"' in hurt.log.read_text()
        await check(cluster)
        for node in cluster.others(hurt):
            assert node.running
            assert "Traceback" not in node.log.read_text()
