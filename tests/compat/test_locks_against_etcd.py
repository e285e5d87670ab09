"""Locks and elections on a real etcd and on this server: the same stories, the same answers.

A story makes calls and tells what came back. Revisions are told from its start on, and ids that the
server chose by a name.
"""

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from support.etcd import running_etcd
from support.node import CHANNEL_OPTIONS, running_node

from kvpb.election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    ProclaimRequest,
    ResignRequest,
)
from kvpb.election_pb2_grpc import ElectionStub
from kvpb.lock_pb2 import LockRequest, UnlockRequest
from kvpb.lock_pb2_grpc import LockStub
from kvpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
)
from kvpb.rpc_pb2_grpc import KVStub, LeaseStub

pytestmark = pytest.mark.cluster

CALL_S_MAX = 20.0
SHORT_S = 0.5
LEASES = (7, 8, 255, -5)
TTL_S = 500
REVISIONS = re.compile(r"((?:revision|rev): )(\d+)")


class Teller:
    """One server, and what its story tells."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.kv = KVStub(channel)
        self.leases = LeaseStub(channel)
        self.locks = LockStub(channel)
        self.elections = ElectionStub(channel)
        self.told: list[str] = []
        self._start = 0

    def begin(self) -> None:
        for granted in self.leases.LeaseLeases(LeaseLeasesRequest()).leases:
            self.leases.LeaseRevoke(LeaseRevokeRequest(ID=granted.ID))
        self.kv.DeleteRange(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        for lease in LEASES:
            self.leases.LeaseGrant(LeaseGrantRequest(ID=lease, TTL=TTL_S))
        self.told = []
        self._start = self.kv.Range(RangeRequest(key=b"any")).header.revision

    def _masked(self, reply: Any) -> str:
        for name in ("cluster_id", "member_id", "raft_term"):
            reply.header.ClearField(name)
        text = " ".join(str(reply).split())
        return REVISIONS.sub(lambda found: f"{found[1]}{int(found[2]) - self._start}", text)

    def tell(self, name: str, call: Callable[[], Any]) -> Any:
        """Make a call, tell its end, return the reply."""
        try:
            reply = call()
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)  # noqa: PT017
            self.told.append(f"{name}: {error.code()} {error.details()}")
            return None
        self.told.append(f"{name}: {self._masked(reply)}")
        return reply

    def tell_state(self) -> None:
        """All keys."""
        everything = RangeRequest(key=b"\0", range_end=b"\0")
        self.tell("state", lambda: self.kv.Range(everything))

    # ------------------------------------------------------------------ verbs

    def lock(self, name: bytes, lease: int = 0) -> Any:
        request = LockRequest(name=name, lease=lease)
        return self.tell("lock", lambda: self.locks.Lock(request, timeout=CALL_S_MAX))

    def lock_later(self, name: bytes, lease: int) -> Any:
        return self.queued(
            self.locks.Lock.future(LockRequest(name=name, lease=lease), timeout=CALL_S_MAX),
            name + b"/%x" % lease,
        )

    def campaign(self, name: bytes, lease: int, value: bytes = b"v") -> Any:
        request = CampaignRequest(name=name, lease=lease, value=value)
        return self.tell("campaign", lambda: self.elections.Campaign(request, timeout=CALL_S_MAX))

    def campaign_later(self, name: bytes, lease: int, value: bytes = b"v") -> Any:
        request = CampaignRequest(name=name, lease=lease, value=value)
        return self.queued(
            self.elections.Campaign.future(request, timeout=CALL_S_MAX), name + b"/%x" % lease
        )

    def queued(self, call: Any, key: bytes) -> Any:
        """Return once its key is there."""
        self.wait_keys(lambda keys: key in keys)
        assert not call.done()
        return call

    def wait_keys(self, wanted: Callable[[list[bytes]], bool]) -> None:
        everything = RangeRequest(key=b"\0", range_end=b"\0", keys_only=True)
        for _ in range(2_000):
            if wanted([kv.key for kv in self.kv.Range(everything).kvs]):
                return
        raise AssertionError("the keys did not become as wanted")

    def unlock(self, key: bytes) -> None:
        self.tell("unlock", lambda: self.locks.Unlock(UnlockRequest(key=key)))

    def leader(self, name: bytes) -> Any:
        return self.tell("leader", lambda: self.elections.Leader(LeaderRequest(name=name)))

    def proclaim(self, leader: LeaderKey | None, value: bytes) -> None:
        request = ProclaimRequest(leader=leader, value=value)
        self.tell("proclaim", lambda: self.elections.Proclaim(request))

    def resign(self, leader: LeaderKey | None) -> None:
        self.tell("resign", lambda: self.elections.Resign(ResignRequest(leader=leader)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Teller, Teller]]:
    with (
        running_etcd(tmp_path_factory.mktemp("etcd")) as etcd,
        running_node(tmp_path_factory.mktemp("node")) as node,
        grpc.insecure_channel(etcd.endpoint, options=CHANNEL_OPTIONS) as to_etcd,
        grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as to_node,
    ):
        yield Teller(to_etcd), Teller(to_node)


def held_and_let_go(t: Teller) -> None:
    t.lock(b"a", 7)
    t.lock(b"a", 7)
    t.lock(b"b", -5)
    t.lock(b"", 255)
    t.tell_state()
    t.unlock(b"a/7")
    t.unlock(b"a/7")
    t.unlock(b"")
    t.lock(b"a", 8)
    t.tell_state()


def refused(t: Teller) -> None:
    t.lock(b"a", 99)
    t.campaign(b"a", 99)
    t.leader(b"a")
    t.proclaim(None, b"v")
    t.resign(None)
    t.proclaim(LeaderKey(lease=7), b"v")
    t.resign(LeaderKey(lease=7))
    t.tell_state()


def one_after_the_other(t: Teller) -> None:
    t.lock(b"a", 7)
    second, third = t.lock_later(b"a", 8), t.lock_later(b"a", 255)
    t.unlock(b"a/7")
    t.tell("second", second.result)
    assert not third.done()
    t.leases.LeaseRevoke(LeaseRevokeRequest(ID=8))
    t.tell("third", third.result)
    t.tell_state()


def from_the_middle(t: Teller) -> None:
    """The end of who waits before moves nobody past the holder."""
    t.lock(b"a", 7)
    second, third = t.lock_later(b"a", 8), t.lock_later(b"a", 255)
    second.cancel()
    t.wait_keys(lambda keys: b"a/8" not in keys)
    assert not third.done()
    t.unlock(b"a/7")
    t.tell("third", third.result)
    t.tell_state()


def place_lost(t: Teller) -> None:
    t.lock(b"a", 7)
    waiting = t.lock_later(b"a", 8)
    t.leases.LeaseRevoke(LeaseRevokeRequest(ID=8))
    t.unlock(b"a/7")
    t.tell("waiting", waiting.result)


def out_of_time(t: Teller) -> None:
    t.lock(b"a", 7)
    request = LockRequest(name=b"a", lease=8)
    t.tell("impatient", lambda: t.locks.Lock(request, timeout=SHORT_S))
    t.wait_keys(lambda keys: keys == [b"a/7"])
    t.tell_state()


def campaigns(t: Teller) -> None:
    first = t.campaign(b"e", 7, b"one")
    t.campaign(b"e", 7, b"other")
    t.campaign(b"e", 7, b"other")
    t.leader(b"e")
    second = t.campaign_later(b"e", 8, b"two")
    t.proclaim(first.leader, b"third")
    t.proclaim(LeaderKey(name=b"e", key=b"e/7", rev=1, lease=7), b"stale")
    t.resign(LeaderKey(name=b"e", key=b"e/7", rev=1, lease=7))
    t.leader(b"e")
    t.resign(first.leader)
    t.tell("second", second.result)
    t.proclaim(first.leader, b"late")
    t.leader(b"e")
    t.resign(second.result().leader)
    t.leader(b"e")
    t.tell_state()


def another_lease(t: Teller) -> None:
    first: CampaignResponse = t.campaign(b"e", 7)
    leader = first.leader
    leader.lease = 8
    t.proclaim(leader, b"moved")
    leader.lease = 99
    t.proclaim(leader, b"refused")
    t.leader(b"e")
    t.tell_state()


def observed(t: Teller) -> None:
    call = t.elections.Observe(LeaderRequest(name=b"e"))
    seen: list[str] = []
    arrived = threading.Condition()

    def listen() -> None:
        try:
            for response in call:
                with arrived:
                    seen.append(f"{response.kv.key!r} {response.kv.value!r}")
                    arrived.notify()
        except grpc.RpcError:
            return

    def see(count: int) -> None:
        with arrived:
            assert arrived.wait_for(lambda: len(seen) == count, CALL_S_MAX), seen

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        t.kv.Put(PutRequest(key=b"e"))
        first = t.campaign(b"e", 7, b"one")
        see(1)
        second = t.campaign_later(b"e", 8, b"two")
        t.proclaim(first.leader, b"more")
        see(2)
        t.resign(first.leader)
        see(3)
        t.resign(second.result().leader)
        t.campaign(b"e", 255, b"three")
        see(4)
    finally:
        call.cancel()
        thread.join()
    t.told += seen


STORIES = (
    held_and_let_go, refused, one_after_the_other, from_the_middle, place_lost, out_of_time,
    campaigns, another_lease, observed,
)  # fmt: skip


def same_whoever_is_first(words: str) -> str:
    """A call whose time is up is ended by its client, or by the server a moment earlier."""
    return words.replace("UNKNOWN context deadline exceeded", "DEADLINE_EXCEEDED Deadline Exceeded")


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_same_story(pair: tuple[Teller, Teller], story: Callable[[Teller], None]) -> None:
    for teller in pair:
        teller.begin()
        story(teller)
    etcd, ours = (list(map(same_whoever_is_first, teller.told)) for teller in pair)
    assert ours == etcd
    assert len(etcd) > 1


def test_without_a_lease_the_server_grants_one_for_a_minute(pair: tuple[Teller, Teller]) -> None:
    for teller in pair:
        teller.begin()
        key = teller.lock(b"a").key
        (kv,) = teller.kv.Range(RangeRequest(key=key)).kvs
        assert key == b"a/%x" % kv.lease
        left = teller.leases.LeaseTimeToLive(LeaseTimeToLiveRequest(ID=kv.lease, keys=True))
        assert left.grantedTTL == 60
        assert list(left.keys) == [key]


def test_who_has_lost_his_key_is_no_leader(pair: tuple[Teller, Teller]) -> None:
    """etcd tells him that he is, see kvserver/api/COMPAT.md."""
    ends = []
    for teller in pair:
        teller.begin()
        first = teller.campaign(b"e", 7)
        second = teller.campaign_later(b"e", 8)
        teller.leases.LeaseRevoke(LeaseRevokeRequest(ID=8))
        teller.resign(first.leader)
        teller.tell("second", second.result)
        ends.append(teller.told[-1])
    assert "e/8" in ends[0]
    assert ends[1] == "second: StatusCode.UNKNOWN election: not leader"
