"""Two of three are gone for good: the third goes on alone, and takes others in."""

import asyncio
import contextlib
import subprocess
from pathlib import Path

import grpc
import pytest
from support.cluster import CALL_S_MAX, START_S_MAX, crash, run_kvserver, wait_said

from kvbench.cluster import Cluster, Node
from kvbench.flavor import KVSERVER
from kvclient import Unavailable
from kvpb import rpc_pb2, rpc_pb2_grpc
from kvserver.errors import ExitCode

pytestmark = pytest.mark.cluster

WRITES = 50


def recover(node: Node, *options: str) -> "subprocess.CompletedProcess[str]":
    return run_kvserver("recover", "--name", node.name, "--data-dir", str(node.plan.data), *options)


async def add_and_promote(active: Node, added: Node) -> None:
    """As `member add --learner` and `member promote` do."""
    options = (("grpc.enable_http_proxy", 0),)
    async with grpc.aio.insecure_channel(active.client, options) as channel:
        members = rpc_pb2_grpc.ClusterStub(channel)
        urls = [f"http://{added.plan.peer}"]
        request = rpc_pb2.MemberAddRequest(peerURLs=urls, isLearner=True)
        reply = await members.MemberAdd(request, timeout=CALL_S_MAX)
        added.start()
        promote = rpc_pb2.MemberPromoteRequest(ID=reply.member.ID)
        async with asyncio.timeout(START_S_MAX):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):  # it is not in step yet
                    await members.MemberPromote(promote, timeout=CALL_S_MAX)
                    return
                await asyncio.sleep(0.05)


async def same_state(cluster: Cluster, *nodes: Node) -> None:
    async with cluster.connect(CALL_S_MAX) as client, asyncio.timeout(START_S_MAX):
        while True:
            found = []
            with contextlib.suppress(Unavailable):  # channels pause after they met a closed port
                found = [await client.hash_kv(node.client) for node in nodes]
            if len({each.revision for each in found}) == 1:
                assert len({each.hash for each in found}) == 1
                return
            await asyncio.sleep(0.02)


async def test_the_last_of_three_goes_on_alone_and_takes_others_in(
    cluster: Cluster, tmp_path: Path
) -> None:
    active = await cluster.active()
    last, lost = cluster.others(active)
    for number in range(WRITES):
        await cluster.control.put(f"key {number}", str(number), timeout_s=CALL_S_MAX)
    await cluster.wait_in_step()  # all that was acknowledged is on the one that stays
    used = recover(last, "--yes")
    assert used.returncode == ExitCode.DATA_DIR
    assert "in use by another process" in used.stderr
    for node in cluster.nodes:
        await crash(node)
    done = recover(last, "--yes")
    assert done.returncode == 0, done.stderr
    assert "may be missing" in done.stdout

    last.start()  # with the same options
    assert await cluster.active() is last
    for number in range(WRITES):
        found = await cluster.control.get(f"key {number}", timeout_s=CALL_S_MAX)
        assert found is not None
        assert found.value == str(number).encode()
    await cluster.control.put("after", "recovery", timeout_s=CALL_S_MAX)

    lost.start()  # against all advice
    await wait_said(lost, "it belongs to cluster")
    assert await cluster.active() is last
    await crash(lost)

    members = f"--initial-cluster={last.name}={last.plan.peer},{active.name}={active.plan.peer}"
    active.plan.data.rename(tmp_path / "kept")
    fresh = Node(
        active.plan, KVSERVER, ["--initial-cluster-state=existing", members], tmp_path / "fresh.log"
    )
    try:
        await add_and_promote(last, fresh)
        await cluster.control.put("after", "two", timeout_s=CALL_S_MAX)
        members_now = await cluster.control.members(timeout_s=CALL_S_MAX)
        assert [member.learner for member in members_now] == [False, False]
        await same_state(cluster, last, fresh)
    finally:
        fresh.end()
