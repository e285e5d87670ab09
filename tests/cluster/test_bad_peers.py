"""Strangers at the peer port: each is cut off, and the cluster goes on."""

import asyncio
import secrets
from pathlib import Path

import pytest
from support.cluster import (
    address_of,
    closed_by_peer,
    crash,
    memory_bytes,
    wait_said,
    writing,
)

from kvbench import clock
from kvbench.cluster import Cluster, Node
from kvpb.raft_pb2 import Hello, PeerMessage, RequestVote
from kvserver.raft.frames import HELLO_BYTES_MAX, encode_frame

pytestmark = pytest.mark.cluster

GROWTH_BYTES_MAX = 64 << 20
FLOOD_S_MAX = 30.0

HELLO = encode_frame(PeerMessage(hello=Hello(protocol=1, member_id=7)).SerializeToString())
VOTE = encode_frame(PeerMessage(request_vote=RequestVote(term=1000)).SerializeToString())
SIGN_OF_LIFE = encode_frame(b"")


async def flood(node: Node, chunk: bytes) -> None:
    """Send the same again and again, reading nothing, until the node ends the connection."""
    deadline = clock.monotonic() + FLOOD_S_MAX
    _, writer = await asyncio.open_connection(*address_of(node.plan.peer))
    try:
        with pytest.raises(ConnectionError):
            while clock.monotonic() < deadline:
                writer.write(chunk)
                await asyncio.wait_for(writer.drain(), FLOOD_S_MAX)
    finally:
        writer.transport.abort()


async def say(node: Node, words: bytes) -> None:
    """Say something, then nothing more, until the node ends the connection."""
    reader, writer = await asyncio.open_connection(*address_of(node.plan.peer))
    try:
        writer.write(words)
        await closed_by_peer(reader)
    finally:
        writer.transport.abort()


async def test_strangers_of_all_kinds_are_cut_off(cluster: Cluster) -> None:
    active = await cluster.active()
    status = await cluster.status(active)
    async with writing(cluster, writers=4) as writers:
        await asyncio.gather(
            *(
                say(node, words)
                for node in cluster.nodes
                for words in (
                    b"", b"GET / HTTP/1.1\r\n\r\n", HELLO, HELLO[: len(HELLO) // 2], VOTE,
                    SIGN_OF_LIFE * 3, encode_frame(b"\xff" * 100), HELLO[:8] + b"?" * len(HELLO),
                )
            )
        )  # fmt: skip
        await writers.flow()
    await writers.verify(cluster)
    after = await cluster.status(active)
    assert after is not None
    assert status is not None
    assert (after.active, after.term) == (True, status.term), "nobody was disturbed"
    log = active.log.read_text()
    assert "garbage: a frame of" in log
    assert "garbage: a frame with a wrong checksum" in log
    assert "a message before the hello" in log
    assert "it belongs to cluster 0" in log


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(secrets.token_bytes(1 << 16), id="noise"),
        pytest.param(HELLO_BYTES_MAX.to_bytes(4, "little") + b"\0" * 65000, id="largest frame"),
        pytest.param(SIGN_OF_LIFE * 8000, id="signs of life"),
        pytest.param(HELLO * 1000, id="hellos"),
        pytest.param(encode_frame(b"\xfa\x3f\x40" + b"\0" * 64), id="unknown messages"),
    ],
)
async def test_endless_floods_end_and_fill_no_memory(cluster: Cluster, chunk: bytes) -> None:
    active = await cluster.active()
    before = memory_bytes(active)
    async with writing(cluster, writers=4) as writers:
        await asyncio.gather(*(flood(active, chunk) for _ in range(8)))
        await writers.flow()
        assert memory_bytes(active) < before + GROWTH_BYTES_MAX
    await writers.verify(cluster)


async def test_a_node_with_the_data_of_another_cluster_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    ids = {node: (await cluster.control.status(node.client)).member_id for node in cluster.nodes}
    stray = max(cluster.nodes, key=ids.__getitem__)  # the others dial it
    other = Cluster(tmp_path / "other")
    try:
        other.node(stray.name).start()
        await wait_said(other.node(stray.name), "node.ready")
    finally:
        await other.close()
    await crash(stray)
    stray.plan.data.rename(tmp_path / "kept")
    other.node(stray.name).plan.data.rename(stray.plan.data)
    stray.start()
    await wait_said(stray, "the data directory belongs to a cluster with other members")
    for node in cluster.others(stray):
        await wait_said(node, "--initial-cluster-token must be the same on all members")
    async with writing(cluster) as writers:
        await writers.flow()
    status = await cluster.control.status(stray.client)
    assert (status.leader, status.revision) == (0, 1)
    await crash(stray)
    stray.plan.data.rename(tmp_path / "foreign")
    (tmp_path / "kept").rename(stray.plan.data)
    stray.start()
    await writers.verify(cluster)
