"""The same requests to a real etcd and to this server: the same answers, field by field.

Both are held at one revision, so that requests and replies can be compared as they are. Requests
name revisions relative to the start of their sequence; `absolute` shifts them.

`KV_TEST_EXAMPLES=20000 pytest --timeout=7200 tests/compat/test_kv_against_etcd.py` runs it long,
with other sequences every time.
"""

import copy
import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.etcd import running_etcd
from support.kv_requests import KEYS, Reply, Request, absolute, fillings, requests
from support.node import CHANNEL_OPTIONS, running_node

from kvpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvpb.rpc_pb2_grpc import KVStub

pytestmark = pytest.mark.cluster

EXAMPLES = int(os.environ.get("KV_TEST_EXAMPLES", "0"))


class Call(Protocol):
    """A request under way."""

    def result(self) -> Reply: ...
    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str: ...


class Refusal(NamedTuple):
    """An error as clients see it."""

    code: grpc.StatusCode
    text: str


class Method(Protocol):
    """A stub's method."""

    def future(self, request: Request, timeout: float) -> Call: ...


class Server:
    """One of the two, asked with bare stubs."""

    def __init__(self, channel: grpc.Channel) -> None:
        stub = KVStub(channel)
        methods = {
            PutRequest: stub.Put,
            RangeRequest: stub.Range,
            DeleteRangeRequest: stub.DeleteRange,
            TxnRequest: stub.Txn,
            CompactionRequest: stub.Compact,
        }
        self._methods = cast("dict[type[Request], Method]", methods)

    def ask(self, request: Request) -> Call:
        return self._methods[type(request)].future(request, timeout=30)

    def revision(self) -> int:
        return int(self.ask(RangeRequest(key=b"any")).result().header.revision)

    def fill_and_empty(self, revisions: int) -> None:
        """Let an empty store go on by two revisions or more."""
        for _ in range(revisions - 1):
            self.ask(PutRequest(key=b"any")).result()
        self.ask(DeleteRangeRequest(key=b"any")).result()


def answer(call: Call) -> Reply | Refusal:
    """What came back, without what names the server."""
    try:
        reply = call.result()
    except grpc.RpcError:
        return Refusal(call.code(), call.details())
    assert reply.header.cluster_id
    assert reply.header.member_id
    assert reply.header.raft_term
    for field in ("cluster_id", "member_id", "raft_term"):
        reply.header.ClearField(field)
    return reply


class Pair:
    """Both servers, at one revision and empty at the start of each sequence."""

    def __init__(self, etcd: Server, ours: Server) -> None:
        self._etcd = etcd
        self._ours = ours
        self._start = 0
        self._revision = 0

    def reset(self) -> None:
        """Empty both; the one that is behind after a failed sequence catches up."""
        servers = (self._etcd, self._ours)
        for server in servers:
            server.ask(DeleteRangeRequest(key=b"\0", range_end=b"\0")).result()
        behind, ahead = sorted(servers, key=Server.revision)
        missing = ahead.revision() - behind.revision()
        if missing:
            ahead.fill_and_empty(2)
            behind.fill_and_empty(missing + 2)
        self._start = self._revision = self._etcd.revision()

    def compare(self, request: Request) -> Reply | Refusal:
        """The answer both give to `request`, its revisions counted from the start."""
        absolute(request, self._start, self._revision)
        calls = (self._etcd.ask(request), self._ours.ask(request))
        theirs, ours = (answer(call) for call in calls)
        assert ours == theirs, f"\n--- asked\n{request}--- etcd\n{theirs}\n--- kvserver\n{ours}"
        if not isinstance(theirs, Refusal):
            self._revision = theirs.header.revision
        return theirs

    def ours(self, request: Request) -> Reply | Refusal:
        """What this server alone answers."""
        return answer(self._ours.ask(request))

    def codes(self, request: Request) -> list[grpc.StatusCode]:
        """Only the codes of both answers."""
        return [server.ask(request).code() for server in (self._etcd, self._ours)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        running_etcd(tmp_path_factory.mktemp("etcd")) as etcd,
        running_node(tmp_path_factory.mktemp("node")) as node,
        grpc.insecure_channel(etcd.endpoint, options=CHANNEL_OPTIONS) as to_etcd,
        grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as to_node,
    ):
        yield Pair(Server(to_etcd), Server(to_node))


@settings(
    max_examples=EXAMPLES or 250,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(fillings, st.lists(requests, min_size=1, max_size=8))
def test_any_sequence(pair: Pair, filling: list[PutRequest], sequence: list[Request]) -> None:
    pair.reset()
    for request in (*filling, *sequence):
        # the example may be run again: leave it as it was drawn
        pair.compare(copy.deepcopy(request))
    pair.compare(RangeRequest(key=b"\0", range_end=b"\0"))


# ---------------------------------------------------------------------------- edges

REQUEST_BYTES_MAX = 1_572_864
RECEIVE_BYTES_MAX = 2 << 20
SOME = [PutRequest(key=key, value=b"old") for key in KEYS]


def ops(*requests: Request) -> list[RequestOp]:
    names = {
        PutRequest: "request_put",
        RangeRequest: "request_range",
        DeleteRangeRequest: "request_delete_range",
        TxnRequest: "request_txn",
    }
    return [RequestOp(**{names[type(request)]: request}) for request in requests]  # type: ignore[arg-type]


def nested(depth: int, *requests: Request) -> TxnRequest:
    """`requests` in the success branch of as many transactions within one another."""
    txn = TxnRequest(success=ops(*requests))
    return txn if depth == 0 else nested(depth - 1, txn)


def put(key: bytes, value: bytes = b"v") -> PutRequest:
    return PutRequest(key=key, value=value)


def delete(key: bytes, range_end: bytes = b"") -> DeleteRangeRequest:
    return DeleteRangeRequest(key=key, range_end=range_end)


REFUSED: dict[str, Request] = {
    "put without key": put(b""),
    "range without key": RangeRequest(range_end=b"z"),
    "delete without key": delete(b"", b"\0"),
    "value beside ignore_value": PutRequest(key=b"a", value=b"v", ignore_value=True),
    "lease beside ignore_lease": PutRequest(key=b"a", lease=7, ignore_lease=True),
    "ignore_value of nothing": PutRequest(key=b"nothing", ignore_value=True),
    "ignore_lease of nothing": PutRequest(key=b"nothing", value=b"v", ignore_lease=True),
    "unknown lease": PutRequest(key=b"a", lease=7),
    "unknown lease of nothing": PutRequest(key=b"nothing", lease=7, ignore_value=True),
    "unknown lease of nothing in a txn": TxnRequest(
        success=ops(PutRequest(key=b"nothing", lease=7, ignore_value=True))
    ),
    "future revision": RangeRequest(key=b"a", revision=2),
    "future revision in a txn that makes it": TxnRequest(
        success=ops(put(b"a"), RangeRequest(key=b"a", revision=2))
    ),
    "a range's error before a put's": TxnRequest(
        success=ops(RangeRequest(key=b"a", revision=2), PutRequest(key=b"a", lease=7))
    ),
    "negative revision in a txn, of a store that was compacted": TxnRequest(
        success=ops(RangeRequest(key=b"a", revision=-2))
    ),
    "empty operation": TxnRequest(success=[RequestOp()]),
    "empty operation on the other branch": TxnRequest(failure=[RequestOp()]),
    "compare without key": TxnRequest(compare=[Compare()]),
    "129 operations": TxnRequest(success=ops(*[RangeRequest(key=b"a")] * 129)),
    "129 compares": TxnRequest(compare=[Compare(key=b"a")] * 129),
    "129 on the other branch": TxnRequest(failure=ops(*[RangeRequest(key=b"a")] * 129)),
    "65 in 64": TxnRequest(
        success=ops(*[TxnRequest(success=ops(*[RangeRequest(key=b"a")] * 65))] * 64)
    ),
    "empty key behind too many operations": TxnRequest(success=ops(*[put(b"")] * 129)),
    "a key twice": TxnRequest(success=ops(put(b"a"), put(b"a"))),
    "a key twice on the other branch": TxnRequest(failure=ops(put(b"a"), put(b"a"))),
    "a key twice over levels": nested(2, put(b"a"), nested(2, put(b"a"))),
    "put and deleted": TxnRequest(success=ops(put(b"a"), delete(b"a"))),
    "deleted and put": TxnRequest(success=ops(delete(b"a"), put(b"a"))),
    "put within a deleted range": TxnRequest(success=ops(delete(b"a", b"c"), put(b"b"))),
    "put below a deletion": TxnRequest(success=ops(delete(b"a", b"c"), nested(1, put(b"b")))),
    "put behind a nested deletion": TxnRequest(success=ops(nested(0, delete(b"a")), put(b"a"))),
    "put in a later nested txn": TxnRequest(
        success=ops(nested(0, delete(b"a")), nested(0, put(b"a")))
    ),
    "too large": put(b"a", b"x" * REQUEST_BYTES_MAX),
    "too large txn": TxnRequest(
        success=ops(*[put(b"%d" % i, b"x" * (REQUEST_BYTES_MAX // 4)) for i in range(4)])
    ),
}

ANSWERED: dict[str, Request] = {
    "longest key": put(b"k" * 480),
    "near the limit": put(b"a", b"x" * (REQUEST_BYTES_MAX - 512)),
    "128 operations": TxnRequest(success=ops(*[put(b"%d" % i) for i in range(128)])),
    "128 of each": TxnRequest(
        compare=[Compare(key=b"a")] * 128,
        success=ops(*[RangeRequest(key=b"a")] * 128),
        failure=ops(*[RangeRequest(key=b"a")] * 128),
    ),
    "64 in 64": TxnRequest(
        success=ops(*[TxnRequest(success=ops(*[RangeRequest(key=b"a")] * 64))] * 64)
    ),
    "40 levels": nested(39, put(b"a"), RangeRequest(key=b"a")),
    "nothing at all": TxnRequest(),
    "a key on both branches": TxnRequest(success=ops(put(b"a")), failure=ops(put(b"a"))),
    "a key on both nested branches": TxnRequest(
        success=ops(TxnRequest(success=ops(put(b"a")), failure=ops(put(b"a"))))
    ),
    "deleted twice": TxnRequest(success=ops(delete(b"a", b"c"), delete(b"b"), delete(b"a", b"z"))),
    "nested put, then nested deletion": TxnRequest(
        success=ops(nested(0, put(b"n")), nested(0, delete(b"n")), RangeRequest(key=b"n"))
    ),
    "all deleted, then put": TxnRequest(
        success=ops(delete(b"\0", b"\0"), PutRequest(key=b"a", value=b"n", prev_kv=True))
    ),
    "put, then all deleted": TxnRequest(
        success=ops(
            put(b"a"), DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True), put(b"b")
        )
    ),
    "deletion of nothing in a txn": TxnRequest(success=ops(delete(b"nothing"))),
    "before and after a change": TxnRequest(
        success=ops(
            RangeRequest(key=b"a"),
            put(b"a", b"new"),
            RangeRequest(key=b"a"),
            RangeRequest(key=b"a", revision=1),
            nested(1, delete(b"nothing"), RangeRequest(key=b"a", revision=1)),
        )
    ),
    "deletion of a key nobody can have": delete(b"k" * 600),
    "range of a key nobody can have": RangeRequest(key=b"k" * 2000, range_end=b"k" * 3000),
    "compare of a key nobody can have": TxnRequest(compare=[Compare(key=b"k" * 600)]),
    "negative revision": RangeRequest(key=b"a", revision=-1),
    "negative limit": RangeRequest(key=b"a", range_end=b"z", limit=-1),
    "counted only, with a limit": RangeRequest(
        key=b"a", range_end=b"z", limit=1, count_only=True, keys_only=True
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_alike_and_nothing_changes(pair: Pair, name: str) -> None:
    pair.reset()
    for request in SOME:
        pair.compare(copy.deepcopy(request))
    before = pair.compare(RangeRequest(key=b"\0", range_end=b"\0"))
    assert isinstance(pair.compare(copy.deepcopy(REFUSED[name])), Refusal)
    assert pair.compare(RangeRequest(key=b"\0", range_end=b"\0")) == before


@pytest.mark.parametrize("name", ANSWERED)
def test_answered_alike(pair: Pair, name: str) -> None:
    pair.reset()
    for request in SOME:
        pair.compare(copy.deepcopy(request))
    assert not isinstance(pair.compare(copy.deepcopy(ANSWERED[name])), Refusal)
    pair.compare(RangeRequest(key=b"\0", range_end=b"\0"))


def test_above_the_transport_limit_the_code_is_the_same(pair: Pair) -> None:
    """The text is the gRPC library's own."""
    codes = pair.codes(put(b"a", b"x" * (RECEIVE_BYTES_MAX + 1)))
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2


@pytest.mark.parametrize("levels", [41, 48, 49, 50, 51, 52, 100])
def test_a_transaction_too_deep_for_protobuf_is_refused_and_harms_nobody(
    pair: Pair, levels: int
) -> None:
    """etcd takes 128 levels, see kvserver/api/COMPAT.md."""
    innermost = txn = TxnRequest()
    for _ in range(levels - 1):
        innermost = innermost.success.add().request_txn
    innermost.success.add().request_put.key = b"a"
    refusal = pair.ours(txn)
    assert isinstance(refusal, Refusal)
    if levels > 50:
        assert refusal.code == grpc.StatusCode.UNKNOWN, "the gRPC library can't read it"
    else:
        text = "etcdserver: too many operations in txn request"
        assert refusal == Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)
    pair.reset()
