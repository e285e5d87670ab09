"""Members come, go and move while writes go on; who was removed neither serves nor disturbs."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from support.cluster import WAIT_S_MAX, crash, raw_call, wait_said, wait_until, writing
from support.etcd import Etcd
from support.joining import (
    addresses,
    at_other_address,
    leave,
    member_of,
    newcomer,
    started_by,
    take,
)

from kvbench.cluster import Cluster, Node
from kvbench.ports import Ports
from kvclient import AsyncClient
from kvclient.errors import LearnerNotReady, MemberNotFound, NotLearner, TooManyLearners
from kvpb import rpc_pb2
from kvserver.api.status import CATALOGUE
from kvserver.errors import MemberNotFoundError, NotActiveError, PeerUrlInvalidError
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.role import REMOVED

pytestmark = pytest.mark.cluster

DISTURB_S = 1.5
"""Some election timeouts."""

CALLS = 4


@pytest.fixture
def ports() -> Iterator[Ports]:
    """For one more node: for its peers and for its clients."""
    held = Ports(2)
    yield held
    held.close()


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with cluster.connect(WAIT_S_MAX) as client:
        yield client


async def promote(client: AsyncClient, member_id: int) -> None:
    """Ask until it is in step; that too is one of the answers."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            with contextlib.suppress(LearnerNotReady):
                await client.promote_member(member_id)
                return
            await asyncio.sleep(0.05)


async def neither_serves_nor_disturbs(cluster: Cluster, removed: Node) -> None:
    """The cluster is in step before, and in the same term under the same active afterwards."""
    active = await cluster.wait_in_step()
    before = await cluster.status(active)
    await asyncio.sleep(DISTURB_S)
    assert removed.running
    put = rpc_pb2.PutRequest(key=b"k", value=b"v").SerializeToString()
    code, _ = await raw_call(removed.client, "/etcdserverpb.KV/Put", put)
    assert code is grpc.StatusCode.UNAVAILABLE
    read = rpc_pb2.RangeRequest(key=b"k").SerializeToString()
    code, _ = await raw_call(removed.client, "/etcdserverpb.KV/Range", read)
    assert code is grpc.StatusCode.UNAVAILABLE
    after = await cluster.status(active)
    assert before is not None
    assert after is not None
    assert (after.term, after.leader) == (before.term, before.leader), removed.tail()


async def knows_that_it_was_removed(client: AsyncClient, removed: Node) -> None:
    """It says so to people, and lets no client wait."""
    await wait_said(removed, "node.removed")
    status = await client.status(removed.client)
    assert f"kvserver: {REMOVED}" in status.errors
    put = rpc_pb2.PutRequest(key=b"k", value=b"v").SerializeToString()
    async with asyncio.timeout(CALLS * Limits.parked_s / 2):
        for _ in range(CALLS):
            answer = await raw_call(removed.client, "/etcdserverpb.KV/Put", put)
            assert answer == CATALOGUE[NotActiveError]


async def test_a_learner_joins_is_promoted_and_is_removed_again(
    cluster: Cluster, client: AsyncClient, ports: Ports
) -> None:
    peer, listen = addresses(ports)
    async with writing(cluster) as writers:
        await writers.reach(500)
        added = await client.add_member(peer, learner=True)
        assert (added.member.learner, added.member.name) == (True, "")
        with pytest.raises(TooManyLearners):
            await client.add_member("127.0.0.1:9", learner=True)
        with pytest.raises(LearnerNotReady):
            await client.promote_member(added.member.id)
        node = newcomer(cluster, "n4", peer, listen, added.members)
        take(cluster, node)
        node.start()
        await wait_until(lambda: "node.ready" in node.log.read_text(), "it is taken in")
        status = await client.status(node.client)
        assert (status.member_id, status.learner) == (added.member.id, True)
        await cluster.wait_in_step()
        await promote(client, added.member.id)
        with pytest.raises(NotLearner):
            await client.promote_member(added.member.id)
        found = await member_of(cluster, node)
        assert (found.id, found.learner, found.client_urls) == (
            added.member.id, False, (f"http://{node.client}",),
        )  # fmt: skip
        await writers.flow()
        members = await client.remove_member(added.member.id)
        assert {member.name for member in members} == {"n1", "n2", "n3"}
        with pytest.raises(MemberNotFound):
            await client.remove_member(added.member.id)
        leave(cluster, node)
        try:
            await neither_serves_nor_disturbs(cluster, node)
            await knows_that_it_was_removed(client, node)
            await writers.flow()
        finally:
            node.end()
    await writers.verify(cluster)


async def test_the_active_itself_is_removed_and_the_rest_starts_again(
    cluster: Cluster, client: AsyncClient
) -> None:
    removed = await cluster.active()
    async with writing(cluster) as writers:
        await writers.reach(500)
        gone = await member_of(cluster, removed)
        members = await client.remove_member(gone.id)
        assert {member.name for member in members} == {
            node.name for node in cluster.others(removed)
        }
        leave(cluster, removed)
        try:
            await writers.flow()
            await neither_serves_nor_disturbs(cluster, removed)
            await knows_that_it_was_removed(client, removed)
        finally:
            removed.end()
        for node in cluster.nodes:
            await crash(node)
        for node in cluster.nodes:
            node.start()
        await cluster.wait_in_step()
        await writers.flow()
        assert len(await client.members()) == 2
    await writers.verify(cluster)


async def test_a_node_moves_to_another_address(
    cluster: Cluster, client: AsyncClient, ports: Ports
) -> None:
    """And all of them start again there, though their command lines name the old one."""
    peer, _ = addresses(ports)
    active = await cluster.active()
    node, _ = cluster.others(active)
    async with writing(cluster) as writers:
        await writers.flow()
        member = await member_of(cluster, node)
        await client.update_member(member.id, peer)
        await crash(node)
        node = at_other_address(cluster, node, peer)
        node.start()
        await cluster.wait_in_step()
        assert (await member_of(cluster, node)).peer_urls == (f"http://{peer}",)
        for each in cluster.nodes:
            await crash(each)
        for each in cluster.nodes:
            each.start()
        await cluster.wait_in_step()
        await cluster.wait_verified(*cluster.nodes)
        await client.move_leader(member.id)
        assert await cluster.wait_in_step() is node
        await writers.flow()
    await writers.verify(cluster)


async def test_urls_that_nobody_can_be_reached_at_are_refused(
    cluster: Cluster, client: AsyncClient
) -> None:
    active = await cluster.active()
    before = await client.members()
    for urls in ([], ["nonsense"], ["https://127.0.0.1:9"], ["http://127.0.0.1:9/path"]):
        add = rpc_pb2.MemberAddRequest(peerURLs=urls)
        update = rpc_pb2.MemberUpdateRequest(ID=before[0].id, peerURLs=urls)
        unknown = rpc_pb2.MemberUpdateRequest(ID=1, peerURLs=urls)
        for method, request, error in (
            ("MemberAdd", add, PeerUrlInvalidError),
            ("MemberUpdate", update, PeerUrlInvalidError),
            ("MemberUpdate", unknown, MemberNotFoundError),
        ):
            body = request.SerializeToString()
            answer = await raw_call(active.client, f"/etcdserverpb.Cluster/{method}", body)
            assert answer == CATALOGUE[error], urls
    assert await client.members() == before


def kv(cluster: Cluster, *arguments: str) -> str:
    """Run `kv`, asking a single node; what it prints."""
    command = [sys.executable, "-m", "kvclient.cli", "--timeout", "20"]
    command += ["--endpoints", cluster.nodes[0].client, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_kv_says_how_to_start_a_node_and_makes_it_the_active(
    cluster: Cluster, ports: Ports
) -> None:
    peer, listen = addresses(ports)
    added = json.loads(
        await asyncio.to_thread(
            kv, cluster, "member", "add", "n4", peer, "--learner", "--client", listen, "-o", "json"
        )
    )
    _, *options = added["start"]
    node = started_by([sys.executable, "-m", "kvserver", *options], cluster, "n4", listen, peer)
    take(cluster, node)
    node.start()
    await cluster.wait_in_step()
    await asyncio.to_thread(kv, cluster, "member", "promote", "n4")
    await asyncio.to_thread(kv, cluster, "move-leader", "n4")
    assert await cluster.wait_in_step() is node
    said = await asyncio.to_thread(kv, cluster, "move-leader")
    assert await cluster.wait_in_step() is not node
    assert "is the active now" in said
    assert "n4 (" in await asyncio.to_thread(kv, cluster, "member", "remove", "n4")
    leave(cluster, node)
    try:
        await cluster.wait_in_step()
    finally:
        node.end()


async def test_etcdctl_changes_the_members_and_moves_the_leader(
    cluster: Cluster, ports: Ports
) -> None:
    peer, listen = addresses(ports)

    async def etcdctl(*arguments: str) -> str:
        done = await asyncio.to_thread(Etcd(cluster.endpoints, ()).etcdctl, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = await etcdctl("member", "add", "n4", f"--peer-urls=http://{peer}", "--learner")
    assert 'ETCD_INITIAL_CLUSTER_STATE="existing"' in said
    found = json.loads(await etcdctl("member", "list", "-w", "json"))["members"]
    (new,) = (member for member in found if "name" not in member)
    assert new["isLearner"]
    members = await cluster.control.members()
    node = newcomer(cluster, "n4", peer, listen, members)
    take(cluster, node)
    node.start()
    await cluster.wait_in_step()
    member_id = f"{new['ID']:x}"
    assert "promoted" in await etcdctl("member", "promote", member_id)
    assert "Leadership transferred" in await etcdctl("move-leader", member_id)
    assert await cluster.wait_in_step() is node
    assert f"started, n4, http://{peer}, http://{listen}, false" in await etcdctl("member", "list")
    assert "removed" in await etcdctl("member", "remove", member_id)  # hands over first
    leave(cluster, node)
    try:
        await cluster.wait_in_step()
    finally:
        node.end()
    assert len((await etcdctl("member", "list")).splitlines()) == 3
