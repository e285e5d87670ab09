"""How a running cluster is watched and backed up, by etcdctl, node by node."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from support.cluster import CALL_S_MAX, writing
from support.etcd import Etcd

from kvbench.cluster import Cluster
from kvclient.errors import Compacted

pytestmark = pytest.mark.cluster

HASH_BYTES = 32


async def etcdctl(endpoint: str, *arguments: str) -> str:
    done = await asyncio.to_thread(Etcd((endpoint,), ()).etcdctl, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_etcdctl_saves_a_snapshot_of_each_node_under_load(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with writing(cluster) as writers:
        await writers.flow()
        for node in cluster.nodes:
            file = tmp_path / f"{node.name}.snapshot"
            said = await etcdctl(node.client, "snapshot", "save", str(file))
            assert f"Snapshot saved at {file}" in said
            data = file.read_bytes()
            assert hashlib.sha256(data[:-HASH_BYTES]).digest() == data[-HASH_BYTES:]
            assert not list(node.plan.data.glob("backup-*"))
            await writers.flow()
    await writers.verify(cluster)


async def test_status_has_all_fields_that_etcds_has(cluster: Cluster) -> None:
    for _ in range(20):
        await cluster.control.put("key", "value", timeout_s=CALL_S_MAX)
    active = await cluster.wait_in_step()
    for node in cluster.nodes:
        (told,) = json.loads(await etcdctl(node.client, "endpoint", "status", "-w", "json"))
        status = told["Status"]
        assert set(status) == {
            "header", "version", "dbSize", "dbSizeInUse", "leader", "raftIndex", "raftTerm",
            "raftAppliedIndex",
        }  # fmt: skip
        assert 0 < status["dbSizeInUse"] <= status["dbSize"]
        assert (status["leader"] == status["header"]["member_id"]) == (node is active)


async def test_all_nodes_have_the_same_hash_at_a_revision_compacted_or_not(
    cluster: Cluster,
) -> None:
    for number in range(100):
        await cluster.control.put(f"key {number % 7}", str(number), timeout_s=CALL_S_MAX)
        if number % 10 == 0:
            await cluster.control.delete(f"key {number % 7}", timeout_s=CALL_S_MAX)
    await cluster.wait_in_step()

    async def hashes(revision: int) -> set[int]:
        found = [
            await cluster.control.hash_kv(node.client, revision=revision, timeout_s=CALL_S_MAX)
            for node in cluster.nodes
        ]
        return {each.hash for each in found}

    before = {revision: await hashes(revision) for revision in (40, 60, 80, 105)}
    assert all(len(found) == 1 for found in before.values()), before
    assert len(set.union(*before.values())) == len(before)
    await etcdctl(",".join(cluster.endpoints), "compact", "60", "--physical")
    await cluster.wait_in_step()
    for revision in (60, 80, 105):
        after = await hashes(revision)
        assert len(after) == 1
        assert after != before[revision], "what is compacted is not kept, so not hashed"
    with pytest.raises(Compacted):
        await hashes(40)
