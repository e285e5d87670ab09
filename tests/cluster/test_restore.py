"""A cluster is saved under load, lost, and made again out of the file; old members are refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.cluster import CALL_S_MAX, crash, run_kvserver, wait_said, writing
from support.etcd import Etcd

from kvbench.cluster import Cluster, Node
from kvclient import save_snapshot

pytestmark = pytest.mark.cluster


def restore(file: Path, node: Node) -> None:
    members = ",".join(f"{name}={peer}" for name, peer in node.plan.peers.items())
    done = run_kvserver(
        "restore", str(file), "--name", node.name, "--data-dir", str(node.plan.data),
        "--initial-cluster", members,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def everything(cluster: Cluster, revision: int) -> list[tuple[object, ...]]:
    found = await cluster.control.range("", prefix=True, revision=revision, timeout_s=CALL_S_MAX)
    return [(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) for kv in found.kvs]


def status_of(file: Path) -> dict[str, Any]:
    looked = run_kvserver("snapshot-status", str(file), "-o", "json")
    assert looked.returncode == 0, looked.stderr
    found: dict[str, Any] = json.loads(looked.stdout)
    return found


async def test_saved_under_load_and_restored_into_three_nodes(
    cluster: Cluster, tmp_path: Path
) -> None:
    files = [tmp_path / tool for tool in ("etcdctl", "kv")]
    async with writing(cluster) as writers:
        await writers.flow()
        active = await cluster.active()
        written = writers.count
        etcdctl = Etcd((active.client,), ()).etcdctl
        done = await asyncio.to_thread(etcdctl, "snapshot", "save", str(files[0]))
        assert done.returncode == 0, done.stderr
        await asyncio.to_thread(save_snapshot, active.client, files[1])
        await writers.flow()
    held = []
    for file in files:
        told = status_of(file)
        expected = await everything(cluster, told["revision"])
        hashed = await cluster.control.hash_kv(
            active.client, revision=told["revision"], timeout_s=CALL_S_MAX
        )
        assert told["hash"] == hashed.hash
        assert told["totalKey"] == len(expected) >= written, "all that was acknowledged before"
        assert told["members"] == ["n1", "n2", "n3"]
        held.append((told, expected))
    told, expected = held[-1]
    for node in cluster.nodes:
        await crash(node)

    again = Cluster(tmp_path / "again")
    for node in again.nodes:
        restore(files[-1], node)
    async with again:
        found = await again.control.range("", prefix=True, limit=1, timeout_s=CALL_S_MAX)
        assert found.revision == told["revision"]
        assert await everything(again, 0) == expected
        for node in again.nodes:
            one = await again.control.hash_kv(node.client, timeout_s=CALL_S_MAX)
            assert (one.hash, one.revision) == (told["hash"], told["revision"])
        await again.control.put("after", "it goes on", timeout_s=CALL_S_MAX)
        await crash(await again.active())
        kept = await again.control.get("after", timeout_s=CALL_S_MAX)
        assert kept is not None
        assert kept.mod_revision == told["revision"] + 1
        used = run_kvserver(
            "restore", str(files[-1]), "--name", "n1", "--data-dir", str(again.nodes[0].plan.data)
        )
        assert "is there already" in used.stderr


async def test_an_old_member_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Restored in place, with the same names, addresses and token; one node is forgotten."""
    await cluster.control.put("key", "value", timeout_s=CALL_S_MAX)
    active = await cluster.wait_in_step()
    file = tmp_path / "backup.db"
    await asyncio.to_thread(save_snapshot, active.client, file)
    for node in cluster.nodes:
        await crash(node)
    first, second, forgotten = cluster.nodes
    for node in (first, second):
        node.plan.data.rename(tmp_path / f"lost-{node.name}")
        restore(file, node)
    for node in cluster.nodes:
        node.start()
    await wait_said(forgotten, "it belongs to cluster")
    await crash(forgotten)
    forgotten.plan.data.rename(tmp_path / "lost")
    restore(file, forgotten)
    forgotten.start()
    await cluster.wait_in_step()
    found = await cluster.control.get("key", timeout_s=CALL_S_MAX)
    assert found is not None
    assert found.value == b"value"
