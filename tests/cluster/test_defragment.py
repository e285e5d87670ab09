"""`etcdctl defrag` of all nodes while they serve: files shrink, and nobody notices."""

import asyncio
from functools import partial

import grpc
import pytest
from support.cluster import CALL_S_MAX, WAIT_S_MAX, crash, wait_until, writing
from support.etcd import Etcd

from kvbench.cluster import Cluster, Node
from kvpb.rpc_pb2 import WatchCreateRequest, WatchRequest, WatchResponse
from kvpb.rpc_pb2_grpc import WatchStub

pytestmark = pytest.mark.cluster

KEYS = 300
VALUE = b"x" * 50_000


async def size(cluster: Cluster, node: Node) -> int:
    status = await cluster.control.status(node.client, timeout_s=CALL_S_MAX)
    return status.db_size_bytes


def has_one_state(node: Node) -> bool:
    return len(list(node.plan.data.glob("env-*"))) == 1


async def etcdctl(cluster: Cluster, *arguments: str) -> str:
    done = await asyncio.to_thread(Etcd(cluster.endpoints, ()).etcdctl, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def response_of(
    watch: "grpc.aio.StreamStreamCall[WatchRequest, WatchResponse]",
) -> WatchResponse:
    response = await asyncio.wait_for(watch.read(), CALL_S_MAX)
    assert isinstance(response, WatchResponse)
    return response


async def fill_and_forget(cluster: Cluster) -> None:
    """Much is written, deleted and compacted: what it took is free, and still in the file."""
    async with cluster.connect(CALL_S_MAX) as client:
        for number in range(KEYS):
            await client.put(f"big {number}", VALUE)
        gone = await client.delete("big ", prefix=True)
        await client.put("small", "stays")
    await etcdctl(cluster, "compact", str(gone.revision), "--physical")


async def test_files_shrink_while_writes_flow(cluster: Cluster) -> None:
    await fill_and_forget(cluster)
    await cluster.wait_in_step()
    before = [await size(cluster, node) for node in cluster.nodes]
    assert min(before) > KEYS * len(VALUE)
    async with writing(cluster) as writers:
        await writers.flow()
        began = writers.count
        said = await etcdctl(cluster, "defrag", "--command-timeout", f"{WAIT_S_MAX:g}s")
        assert said.count("Finished defragmenting") == len(cluster.nodes)
        assert writers.count > began, "writes went on meanwhile"
        after = [await size(cluster, node) for node in cluster.nodes]
        await writers.flow()
    assert max(after) < min(before) / 3
    await writers.verify(cluster)
    for node in cluster.nodes:
        await wait_until(partial(has_one_state, node), "the old file is removed")
        assert "defragment.done" in node.log.read_text()
    for node in cluster.nodes:  # and all of it is on the disk
        await crash(node)
    for node in cluster.nodes:
        node.start()
    await cluster.wait_in_step()
    await writers.verify(cluster)


async def test_watches_and_reads_go_on_through_it(cluster: Cluster) -> None:
    await fill_and_forget(cluster)
    active = await cluster.active()
    options = (("grpc.enable_http_proxy", 0),)
    async with (
        cluster.connect(CALL_S_MAX) as client,
        grpc.aio.insecure_channel(active.client, options) as channel,
    ):
        watch = WatchStub(channel).Watch()
        await watch.write(WatchRequest(create_request=WatchCreateRequest(key=b"counter")))
        assert (await response_of(watch)).created
        put = await client.put("counter", "0")
        first = seen = put.revision
        defrag = asyncio.create_task(etcdctl(cluster, "defrag"))
        while not defrag.done():
            put = await client.put("counter", "next")
            found = await client.get("counter")
            assert found is not None
            assert found.mod_revision == put.revision > seen, "reads never go back"
            seen = put.revision
        await defrag
        events: list[int] = []
        while not events or events[-1] < seen:
            events += [event.kv.mod_revision for event in (await response_of(watch)).events]
        assert events == list(range(first, seen + 1))
        watch.cancel()
    assert await cluster.active() is active
