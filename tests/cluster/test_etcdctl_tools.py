"""What etcdctl does with whole stores: defragment them, save them, follow one with another.

On a cluster of ours and on one of etcd's.
"""

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.etcd import Etcd, binary
from support.etcdctl import masked, said

from kvbench.cluster import Cluster
from kvbench.flavor import FLAVORS
from kvbench.process import end, spawn

pytestmark = pytest.mark.cluster

KEYS = 200
MIRRORED_WITHIN_S = 30.0
DIGEST_BYTES = hashlib.sha256().digest_size


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Cluster]]:
    """An etcd and a kvserver of three nodes each, with the same keys."""
    async with (
        Cluster(tmp_path / "etcd", flavor=FLAVORS["etcd"]) as etcd,
        Cluster(tmp_path / "kvserver") as ours,
    ):
        await ours.wait_in_step()
        for cluster in (etcd, ours):
            for number in range(KEYS):
                await cluster.control.put(f"key/{number:04}", f"value {number}", timeout_s=20)
        yield etcd, ours


def etcdctl(endpoints: tuple[str, ...], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return Etcd(endpoints, ()).etcdctl(*arguments)


async def test_all_members_are_defragmented(both: tuple[Cluster, Cluster]) -> None:
    answers = []
    for cluster in both:
        answers.append(await asyncio.to_thread(said, cluster.endpoints, "defrag", ""))
        kept = await cluster.control.range("key/", prefix=True, count_only=True, timeout_s=20)
        assert kept.count == KEYS
    assert answers[0] == answers[1]
    assert answers[1][0] == 0


async def test_a_snapshot_is_saved_whole(both: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    answers = []
    for number, cluster in enumerate(both):
        active = await cluster.active()
        file = tmp_path / f"{number}.snapshot"
        done = await asyncio.to_thread(etcdctl, (active.client,), "snapshot", "save", str(file))
        answers.append((done.returncode, masked(done.stdout.replace(str(file), "FILE"))))
        content, digest = file.read_bytes()[:-DIGEST_BYTES], file.read_bytes()[-DIGEST_BYTES:]
        assert hashlib.sha256(content).digest() == digest
        assert len(content) % 512 == 0, "so etcd's tools know that there is a digest"
    assert answers[0] == answers[1]
    assert answers[1][0] == 0


@pytest.mark.parametrize("source", [0, 1], ids=["etcd", "kvserver"])
async def test_one_is_the_mirror_of_the_other(
    both: tuple[Cluster, Cluster], source: int, tmp_path: Path
) -> None:
    here, there = both[source], both[1 - source]
    target = (await there.active()).client
    await there.control.delete("", prefix=True, timeout_s=20)
    command = [str(binary("etcdctl")), f"--endpoints={','.join(here.endpoints)}"]
    command += ["make-mirror", "--prefix", "key/", "--dest-prefix", "mirror/", target]
    process = spawn(command, tmp_path / "mirror.log")

    async def mirrored() -> dict[bytes, bytes]:
        found = await there.control.range("mirror/", prefix=True, timeout_s=20)
        return {each.key.removeprefix(b"mirror/"): each.value for each in found.kvs}

    async def same() -> bool:
        found = await here.control.range("key/", prefix=True, timeout_s=20)
        return await mirrored() == {e.key.removeprefix(b"key/"): e.value for e in found.kvs}

    async def mirror() -> None:
        async with asyncio.timeout(MIRRORED_WITHIN_S):
            while not await same():
                await asyncio.sleep(0.05)

    try:
        await mirror()
        await here.control.put("key/new", "later", timeout_s=20)
        await here.control.delete("key/0007", timeout_s=20)
        await mirror()
        assert b"new" in await mirrored()
        assert b"0007" not in await mirrored()
    finally:
        end(process)
