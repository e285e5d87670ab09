"""Leases on a real etcd and on this server: the same answers to the same calls, field by field.

Times that are left differ by what passes between the calls, so they are compared within a second.

`KV_TEST_EXAMPLES=20000 pytest --timeout=7200 tests/compat/test_leases_against_etcd.py`: a long run.
"""

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.etcd import running_etcd
from support.kv_requests import deletes, flags, keys, rarely, safe_txns, values, wide_ranges
from support.node import CHANNEL_OPTIONS, running_node

from kvpb.kv_pb2 import Event
from kvpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from kvpb.rpc_pb2_grpc import KVStub, LeaseStub, WatchStub

pytestmark = pytest.mark.cluster

EXAMPLES = int(os.environ.get("KV_TEST_EXAMPLES", "0"))
CALL_S_MAX = 30.0
LEASES = (1, -1, 1 << 62)
"""As `kv_requests` names them in puts and compares."""

TTL_S_MAX = 9_000_000_000
ALL = RangeRequest(key=b"\0", range_end=b"\0")


class Refusal(NamedTuple):
    """An error as clients see it."""

    code: grpc.StatusCode
    text: str


class Server:
    """One of the two, asked with bare stubs."""

    def __init__(self, channel: grpc.Channel) -> None:
        kv, lease = KVStub(channel), LeaseStub(channel)
        self._watch = WatchStub(channel)
        self._methods: dict[type, Callable[..., Any]] = {
            PutRequest: kv.Put,
            RangeRequest: kv.Range,
            DeleteRangeRequest: kv.DeleteRange,
            TxnRequest: kv.Txn,
            CompactionRequest: kv.Compact,
            LeaseGrantRequest: lease.LeaseGrant,
            LeaseRevokeRequest: lease.LeaseRevoke,
            LeaseTimeToLiveRequest: lease.LeaseTimeToLive,
            LeaseLeasesRequest: lease.LeaseLeases,
            LeaseKeepAliveRequest: lambda request, timeout: next(
                lease.LeaseKeepAlive(iter([request]), timeout=timeout)
            ),
        }

    def ask(self, request: Any) -> Any:
        """Reply or refusal, without what names the server."""
        try:
            reply = self._methods[type(request)](request, timeout=CALL_S_MAX)
        except grpc.RpcError as error:
            return Refusal(error.code(), error.details() or "")
        assert reply.header.cluster_id
        assert reply.header.member_id
        for name in ("cluster_id", "member_id", "raft_term"):
            reply.header.ClearField(name)
        return reply

    @property
    def revision(self) -> int:
        return int(self.ask(ALL).header.revision)

    def clear(self) -> None:
        for lease in self.ask(LeaseLeasesRequest()).leases:
            self.ask(LeaseRevokeRequest(ID=lease.ID))
        self.ask(DeleteRangeRequest(key=b"\0", range_end=b"\0"))

    def fill_and_empty(self, revisions: int) -> None:
        """Let an empty store go on by two revisions or more."""
        for _ in range(revisions - 1):
            self.ask(PutRequest(key=b"any"))
        self.ask(DeleteRangeRequest(key=b"any"))

    def changes_since(self, revision: int) -> list[Event]:
        """What a watch from there is sent until the newest revision."""
        newest = self.revision
        create = WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=revision + 1)
        stream = self._watch.Watch(iter([WatchRequest(create_request=create)]), timeout=CALL_S_MAX)
        seen: list[Event] = []
        for response in stream:
            seen += response.events
            if newest == revision or (seen and seen[-1].kv.mod_revision >= newest):
                stream.cancel()
                return seen
        raise AssertionError("the watch ended")


def compared(reply: Any) -> Any:
    """Without what may differ: the order of a lease's keys, and that of leases."""
    reply = copy.deepcopy(reply)
    if hasattr(reply, "keys"):
        found = sorted(reply.keys)
        del reply.keys[:]
        reply.keys.extend(found)
    if hasattr(reply, "leases"):
        found = sorted(each.ID for each in reply.leases)
        del reply.leases[:]
        for number in found:
            reply.leases.add(ID=number)
    if hasattr(reply, "grantedTTL") and reply.TTL >= 0:
        reply.ClearField("TTL")
    return reply


class Pair:
    """Both servers, empty and at one revision at the start of each sequence."""

    def __init__(self, etcd: Server, ours: Server) -> None:
        self.etcd = etcd
        self.ours = ours
        self.start = 0

    def reset(self) -> None:
        servers = (self.etcd, self.ours)
        for server in servers:
            server.clear()
        behind, ahead = sorted(servers, key=lambda server: server.revision)
        missing = ahead.revision - behind.revision
        if missing:  # after a sequence that failed
            ahead.fill_and_empty(2)
            behind.fill_and_empty(missing + 2)
        self.start = ahead.revision

    def compare(self, request: Any) -> Any:
        """The answer that both give."""
        theirs, ours = self.etcd.ask(request), self.ours.ask(request)
        assert compared(ours) == compared(theirs), (
            f"\n--- asked {type(request).__name__}\n{request}--- etcd\n{theirs}\n--- ours\n{ours}"
        )
        if hasattr(theirs, "grantedTTL"):
            assert abs(ours.TTL - theirs.TTL) <= 1
        return ours

    def compare_all(self) -> None:
        """The state, and how it came about."""
        self.compare(ALL)
        self.compare(LeaseLeasesRequest())
        for lease in LEASES:
            self.compare(LeaseTimeToLiveRequest(ID=lease, keys=True))
        assert self.ours.changes_since(self.start) == self.etcd.changes_since(self.start)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        running_etcd(tmp_path_factory.mktemp("etcd")) as etcd,
        running_node(tmp_path_factory.mktemp("node")) as node,
        grpc.insecure_channel(etcd.endpoint, options=CHANNEL_OPTIONS) as to_etcd,
        grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as to_node,
    ):
        yield Pair(Server(to_etcd), Server(to_node))


leases = st.sampled_from([*LEASES, *LEASES, 0, 8])
ids = st.sampled_from([*LEASES, *LEASES, *LEASES, 8])
ttls = st.one_of(
    st.integers(1000, 1100),
    st.integers(1000, 1100),
    st.sampled_from([TTL_S_MAX, TTL_S_MAX + 1, 1 << 62]),
)
grants = st.builds(LeaseGrantRequest, ID=st.sampled_from(LEASES), TTL=ttls)
revokes = st.builds(LeaseRevokeRequest, ID=ids)
looks = st.builds(LeaseTimeToLiveRequest, ID=ids, keys=flags)
keepalives = st.builds(LeaseKeepAliveRequest, ID=ids)
puts = st.builds(
    PutRequest, key=keys, value=values, lease=leases, prev_kv=flags, ignore_lease=rarely
)
keeping = st.builds(PutRequest, key=keys, value=values, ignore_lease=st.just(True))
branches = st.lists(
    st.one_of(
        st.builds(RequestOp, request_put=puts),
        st.builds(RequestOp, request_put=keeping),
        st.builds(RequestOp, request_delete_range=deletes),
        st.builds(RequestOp, request_range=wide_ranges),
    ),
    max_size=3,
)
compares = st.builds(
    Compare,
    key=keys,
    range_end=st.sampled_from([b"", b"", b"\0"]),
    lease=leases,
    target=st.just(Compare.LEASE),
    result=st.sampled_from(Compare.CompareResult.values()),
)
txns = st.builds(
    TxnRequest, compare=st.lists(compares, max_size=2), success=branches, failure=branches
)
calls = st.one_of(
    grants, puts, puts, keeping, revokes, looks, keepalives, txns, deletes, safe_txns()
)


def kills_etcd(request: Any) -> bool:
    """A put that keeps the lease of a key which the same transaction has deleted."""
    if not isinstance(request, TxnRequest):
        return False
    ops = [*request.success, *request.failure]
    return any(op.HasField("request_delete_range") for op in ops) and any(
        op.request_put.ignore_lease for op in ops
    )


@settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(grants, min_size=1, max_size=3),
    st.lists(calls.filter(lambda request: not kills_etcd(request)), min_size=1, max_size=10),
)
def test_any_sequence(pair: Pair, first: list[Any], sequence: list[Any]) -> None:
    pair.reset()
    for request in (*first, *sequence):
        pair.compare(copy.deepcopy(request))
    pair.compare_all()


# ---------------------------------------------------------------------------- edges


def put(key: bytes, lease: int = 0, **more: bool) -> PutRequest:
    return PutRequest(key=key, value=b"v", lease=lease, **more)


def refusal(code: grpc.StatusCode, text: str) -> Refusal:
    return Refusal(code, f"etcdserver: {text}")


NOT_FOUND = refusal(grpc.StatusCode.NOT_FOUND, "requested lease not found")


def test_the_errors_of_a_grant(pair: Pair) -> None:
    pair.reset()
    pair.compare(LeaseGrantRequest(ID=1, TTL=1000))
    taken = refusal(grpc.StatusCode.FAILED_PRECONDITION, "lease already exists")
    assert pair.compare(LeaseGrantRequest(ID=1, TTL=1000)) == taken
    too_long = refusal(grpc.StatusCode.OUT_OF_RANGE, "too large lease TTL")
    for number in (0, 1, 2):
        assert pair.compare(LeaseGrantRequest(ID=number, TTL=TTL_S_MAX + 1)) == too_long
    pair.compare(LeaseGrantRequest(ID=-1, TTL=TTL_S_MAX))


def test_a_server_chooses_an_id_that_is_positive_and_free(pair: Pair) -> None:
    pair.reset()
    for server in (pair.etcd, pair.ours):
        granted = [server.ask(LeaseGrantRequest(TTL=1000)).ID for _ in range(3)]
        assert len(set(granted)) == 3
        assert min(granted) > 0


@pytest.mark.parametrize("ttl_s", [1, 0, -1, -(1 << 62)])
def test_a_time_that_is_too_short_is_made_longer(pair: Pair, ttl_s: int) -> None:
    """By as much as on etcd as long as the cluster is a single node."""
    pair.reset()
    assert pair.compare(LeaseGrantRequest(ID=1, TTL=ttl_s)).TTL == 2


def test_unknown_leases(pair: Pair) -> None:
    pair.reset()
    for number in (0, 5, -5):
        assert pair.compare(LeaseRevokeRequest(ID=number)) == NOT_FOUND
        assert pair.compare(LeaseTimeToLiveRequest(ID=number, keys=True)).TTL == -1
        assert pair.compare(LeaseKeepAliveRequest(ID=number)).TTL == 0


def test_a_revoked_lease_takes_its_keys_along_in_order_and_at_once(pair: Pair) -> None:
    pair.reset()
    pair.compare(LeaseGrantRequest(ID=1, TTL=1000))
    pair.compare(LeaseGrantRequest(ID=-1, TTL=1000))
    for key in (b"b", b"\xff", b"a", b"\0", b"ab"):
        pair.compare(put(key, 1))
    pair.compare(put(b"b", -1))
    pair.compare(put(b"ab"))
    pair.compare(put(b"a", ignore_lease=True))
    pair.compare_all()
    before = pair.ours.revision
    assert pair.compare(LeaseRevokeRequest(ID=1)).header.revision == before + 1
    pair.compare_all()
    events = pair.ours.changes_since(before)
    assert [event.kv.key for event in events] == [b"\0", b"a", b"\xff"]


def test_the_end_of_an_empty_lease_is_no_revision(pair: Pair) -> None:
    pair.reset()
    pair.compare(LeaseGrantRequest(ID=1, TTL=1000))
    pair.compare(put(b"a", 1))
    pair.compare(DeleteRangeRequest(key=b"a"))
    before = pair.ours.revision
    assert pair.compare(LeaseRevokeRequest(ID=1)).header.revision == before


def test_an_expired_lease_takes_its_keys_along(pair: Pair) -> None:
    pair.reset()
    pair.compare(LeaseGrantRequest(ID=1, TTL=2))
    pair.compare(put(b"a", 1))
    pair.compare(put(b"b", 1))
    for server in (pair.etcd, pair.ours):
        while server.ask(ALL).kvs:
            pass
    pair.compare_all()
