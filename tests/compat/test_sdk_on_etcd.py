"""The SDK and `kv` against a real etcd: etcdctl's lines, the same errors, failover of members."""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.etcd import Etcd, running_etcd

from kvclient import AsyncClient, Client, Compare, MemberAdded, Op, OutcomeUnknown, TxnResult
from kvclient.errors import (
    Compacted,
    DuplicateKey,
    EmptyKey,
    FutureRevision,
    KvError,
    LearnerNotReady,
    LeaseNotFound,
    MemberExists,
    MemberNotFound,
    PeerUrlExists,
    RequestTooLarge,
    TooManyLearners,
    TooManyOps,
    UnhealthyCluster,
)

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def keys(etcd: Etcd) -> None:
    """The same few keys for every test; "k2" was changed last."""
    assert etcdctl(etcd, "del", "", "--prefix") is not None
    for key, value in [("k1", "one"), ("k3", "three"), ("k2", "zwö"), ("l", ""), ("k2", "two")]:
        assert etcdctl(etcd, "put", key, "--", value) == (0, "OK\n")


def etcdctl(etcd: Etcd, *arguments: str, stdin: str = "") -> tuple[int, str]:
    done = etcd.etcdctl(*arguments, stdin=stdin)
    return done.returncode, done.stdout


def kv(etcd: Etcd, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run `kv` as a process of its own, as people do."""
    command = [sys.executable, "-m", "kvclient.cli", f"--endpoints={etcd.endpoint}", *arguments]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == "" or done.returncode != 0
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "get k1",
        "get missing",
        "get k --prefix",
        "get k --prefix --keys-only",
        "get k --prefix --print-value-only",
        "get k --prefix --limit=2",
        "get k --prefix --order=DESCEND",
        "get k --prefix --sort-by=MODIFY",
        "get k --prefix --sort-by=VALUE --order=DESCEND",
        "get k --prefix --sort-by=VERSION --order=ASCEND --limit=1",
        "get k --prefix --sort-by=CREATE",
        "get k2 --from-key",
        "del missing",
        "del k1",
        "del k1 --prev-kv",
        "del k --prefix --prev-kv",
        "del k2 --from-key",
        "put k1 new",
        "put k1 new --prev-kv",
        "put fresh new --prev-kv",
    ],
)
def test_kv_prints_what_etcdctl_prints(etcd: Etcd, keys: None, line: str) -> None:
    ours = kv(etcd, *line.split())
    left_by_us = etcdctl(etcd, "get", "", "--prefix")
    etcdctl(etcd, "del", "", "--prefix")
    for key, value in [("k1", "one"), ("k3", "three"), ("k2", "zwö"), ("l", ""), ("k2", "two")]:
        etcdctl(etcd, "put", key, "--", value)
    assert ours == etcdctl(etcd, *line.split())
    assert left_by_us == etcdctl(etcd, "get", "", "--prefix")


def test_kv_get_of_a_range_prints_what_etcdctl_prints(etcd: Etcd, keys: None) -> None:
    assert kv(etcd, "get", "k1", "--range-end", "k3") == etcdctl(etcd, "get", "k1", "k3")
    assert kv(etcd, "del", "k1", "--range-end", "k3") == (0, "2\n")


def test_kv_puts_standard_input_as_etcdctl_does(etcd: Etcd, keys: None) -> None:
    assert kv(etcd, "put", "in", "-", stdin="a\nb\n") == (0, "OK\n")
    assert etcdctl(etcd, "put", "in2", stdin="a\nb\n") == (0, "OK\n")
    values = [etcdctl(etcd, "get", key, "--print-value-only") for key in ("in", "in2")]
    assert values == [(0, "a\nb\n\n")] * 2


def test_kv_reads_an_old_revision(etcd: Etcd, keys: None) -> None:
    revision = json.loads(kv(etcd, "put", "k1", "new", "-o", "json")[1])["revision"]
    assert kv(etcd, "get", "k1", "--rev", str(revision - 1)) == (0, "k1\none\n")
    assert kv(etcd, "get", "k1", "--rev", str(revision + 1)) == (1, "")


def test_kv_json_agrees_with_etcdctl(etcd: Etcd, keys: None) -> None:
    ours = json.loads(kv(etcd, "get", "k", "--prefix", "--keys-only", "-o", "json")[1])
    theirs = json.loads(etcdctl(etcd, "get", "k", "--prefix", "--keys-only", "-w", "json")[1])
    assert (ours["count"], ours["revision"]) == (theirs["count"], theirs["header"]["revision"])
    for name in ("create_revision", "mod_revision", "version"):
        assert [kv[name] for kv in ours["kvs"]] == [kv[name] for kv in theirs["kvs"]]


def test_kv_status_agrees_with_etcdctl(etcd: Etcd, keys: None) -> None:
    (ours,) = json.loads(kv(etcd, "status", "-o", "json")[1])["nodes"]
    (theirs,) = json.loads(etcdctl(etcd, "endpoint", "status", "-w", "json")[1])
    status = theirs["Status"]
    assert ours["id"] == f"{status['header']['member_id']:x}" == ours["leader"]
    assert (ours["name"], ours["role"], ours["lag"]) == ("e0", "active", 0)
    assert ours["revision"] == status["header"]["revision"]
    assert (ours["term"], ours["index"]) == (status["raftTerm"], status["raftIndex"])
    assert (ours["version"], ours["db_size_bytes"]) == (status["version"], status["dbSize"])


def test_kv_member_list_agrees_with_etcdctl(etcd: Etcd) -> None:
    (ours,) = json.loads(kv(etcd, "member", "list", "-o", "json")[1])["members"]
    (theirs,) = json.loads(etcdctl(etcd, "member", "list", "-w", "json")[1])["members"]
    assert ours["id"] == f"{theirs['ID']:x}"
    assert (ours["name"], ours["client_urls"]) == (theirs["name"], theirs["clientURLs"])
    assert ours["peer_urls"] == theirs["peerURLs"]


def test_kv_hash_agrees_with_etcdctl(etcd: Etcd, keys: None) -> None:
    ours = json.loads(kv(etcd, "hash", "-o", "json")[1])
    (theirs,) = json.loads(etcdctl(etcd, "endpoint", "hashkv", "-w", "json")[1])
    assert ours["verdict"] == "equal"
    assert ours["nodes"][0]["hash"] == f"{theirs['HashKV']['hash']:08x}"


async def test_texts_of_etcd_arrive_as_classes(etcd: Etcd, keys: None) -> None:
    async with AsyncClient(etcd.endpoint) as client:
        revision = (await client.put("k1", "1")).revision
        compacted = etcd.etcdctl("compact", str(revision))
        assert compacted.returncode == 0
        twice = [Op.put("a", "1"), Op.put("a", "2")]
        for expected, call in [
            (EmptyKey, client.put("", "v")),
            (EmptyKey, client.get("")),
            (FutureRevision, client.get("k1", revision=revision + 5)),
            (Compacted, client.get("k1", revision=1)),
            (LeaseNotFound, client.put("k1", "v", lease=12345)),
            (DuplicateKey, client.txn(success=twice)),
            (TooManyOps, client.txn(success=[Op.range("a")] * 129)),
            (RequestTooLarge, client.put("k1", b"x" * 1_700_000)),
            (RequestTooLarge, client.put("k1", b"x" * 2_500_000)),
        ]:
            with pytest.raises(KvError) as caught:
                await call
            assert type(caught.value) is expected
        assert await client.get("k1") is not None


async def test_transactions(etcd: Etcd, keys: None) -> None:
    async with AsyncClient(etcd.endpoint) as client:
        create = [Compare.create_revision("new", "==", 0)]
        first = await client.txn(create, [Op.put("new", "1")], [Op.range("new")])
        second = await client.txn(create, [Op.put("new", "2")], [Op.range("new")])
        assert (first.succeeded, second.succeeded) == (True, False)
        (found,) = second.responses
        assert not isinstance(found, TxnResult)
        assert found.revision == first.revision == second.revision
        value = await client.get("new")
        assert value is not None
        assert (value.value, value.create_revision, value.version) == (b"1", first.revision, 1)
        for compare, holds in [
            (Compare.value("new", "==", "1"), True),
            (Compare.value("new", "!=", "1"), False),
            (Compare.version("new", "<", 2), True),
            (Compare.version("new", ">", 1), False),
            (Compare.mod_revision("new", "==", first.revision), True),
            (Compare.lease("new", "==", 0), True),
        ]:
            assert (await client.txn([compare])).succeeded is holds


def test_the_client_for_threads(etcd: Etcd, keys: None) -> None:
    with Client(etcd.endpoint) as client:
        client.put("t", "1")
        found = client.get("t")
        assert found is not None
        assert found.value == b"1"
        assert client.range("k", prefix=True, count_only=True).count == 3
        assert client.delete("t").deleted == 1
        assert client.status(etcd.endpoint).active


async def add_when_settled(client: AsyncClient, peer_url: str) -> MemberAdded:
    """Members that have just met are not changed yet."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(UnhealthyCluster):
                return await client.add_member(peer_url, learner=True)
            await asyncio.sleep(0.2)


async def test_members_and_leadership(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_etcd(tmp_path_factory.mktemp("etcd3"), members=3) as cluster:
        async with AsyncClient(cluster.endpoints, timeout_s=20) as client:
            added = await add_when_settled(client, "127.0.0.1:9")
            assert (added.member.learner, len(added.members)) == (True, 4)
            with pytest.raises((PeerUrlExists, MemberExists)):  # by the second of the day
                await client.add_member("http://127.0.0.1:9")
            with pytest.raises(TooManyLearners):
                await client.add_member("127.0.0.1:10", learner=True)
            with pytest.raises(LearnerNotReady):
                await client.promote_member(added.member.id)
            updated = await client.update_member(added.member.id, "127.0.0.1:10")
            assert ("http://127.0.0.1:10",) in [member.peer_urls for member in updated]
            members = await client.remove_member(added.member.id)
            assert {member.name for member in members} == {"e0", "e1", "e2"}
            with pytest.raises(MemberNotFound):
                await client.remove_member(added.member.id)
            for member in members:
                await client.move_leader(member.id)
                assert {(await client.status(e)).leader for e in cluster.endpoints} == {member.id}
            follower = members[0].client_urls[0]
        # asked of one node only, which does not lead: it knows who does
        async with AsyncClient(follower, timeout_s=20) as client:
            await client.move_leader(members[1].id)
        assert "e2" in kv(cluster, "move-leader", "e2")[1]
        assert kv(cluster, "move-leader")[0] == 0


async def test_writes_go_on_when_members_die_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Kill -9 the member that the client talks to while it writes, with two left for a quorum."""
    acknowledged: list[int] = []
    unknown: list[int] = []
    with running_etcd(tmp_path_factory.mktemp("etcd3"), members=3) as cluster:
        async with AsyncClient(cluster.endpoints, timeout_s=20) as client:
            await client.put("first", "v")
            killed = asyncio.Event()

            async def write() -> None:
                for number in itertools.count():
                    try:
                        await client.put(f"n{number}", str(number))
                        acknowledged.append(number)
                    except OutcomeUnknown:
                        unknown.append(number)
                    if killed.is_set() and len(acknowledged) >= 60:
                        return

            writer = asyncio.create_task(write())
            while len(acknowledged) < 30:
                await asyncio.sleep(0.005)
                assert not writer.done()
            cluster.processes[0].kill()
            killed.set()
            await asyncio.wait_for(writer, 60)
            found = await client.range("n", prefix=True)
    written = {int(kv.value): kv.version for kv in found.kvs}
    assert set(acknowledged) <= written.keys() <= {*acknowledged, *unknown}
    assert set(written.values()) == {1}, "no write is done twice"
    assert len(unknown) < 10
