"""Maintenance on a real etcd and on this server, side by side: the same errors, the same fields."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from support.etcd import running_etcd
from support.node import CHANNEL_OPTIONS, running_node

from kvpb.rpc_pb2 import (
    AlarmRequest,
    CompactionRequest,
    DeleteRangeRequest,
    HashKVRequest,
    HashRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    SnapshotRequest,
    StatusRequest,
    TxnRequest,
)
from kvpb.rpc_pb2_grpc import KVStub, MaintenanceStub

pytestmark = pytest.mark.cluster

WITHIN_S = 30


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[grpc.Channel, ...]]:
    with (
        running_etcd(tmp_path_factory.mktemp("etcd")) as etcd,
        running_node(tmp_path_factory.mktemp("kvserver")) as node,
        grpc.insecure_channel(etcd.endpoint, options=CHANNEL_OPTIONS) as theirs,
        grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as ours,
    ):
        yield theirs, ours


def hash_kv(channel: grpc.Channel, revision: int) -> tuple[object, ...]:
    """What is answered, hashes excepted."""
    try:
        response = MaintenanceStub(channel).HashKV(
            HashKVRequest(revision=revision), timeout=WITHIN_S
        )
    except grpc.RpcError as error:
        return error.code(), error.details()
    return response.header.revision, response.compact_revision


def test_hash_kv_and_its_errors(channels: tuple[grpc.Channel, ...]) -> None:
    for channel in channels:
        kv = KVStub(channel)
        for number in range(10):
            kv.Put(PutRequest(key=b"k%d" % (number % 3), value=b"%d" % number), timeout=WITHIN_S)
        kv.DeleteRange(DeleteRangeRequest(key=b"k1"), timeout=WITHIN_S)
    theirs, ours = channels
    for revision in (0, 1, 2, 5, 12, 13, 1000):
        assert hash_kv(ours, revision) == hash_kv(theirs, revision), revision
    for channel in channels:
        compaction = CompactionRequest(revision=6, physical=True)
        KVStub(channel).Compact(compaction, timeout=WITHIN_S)
    for revision in (0, 1, 5, 7, 12, 13, 1000):
        assert hash_kv(ours, revision) == hash_kv(theirs, revision), revision
    # 3.5.1 refuses the compacted revision itself, later releases do not: it can be read
    assert hash_kv(ours, 6) == (12, 6)


KEYS = (b"a", b"ab", b"b")
puts = st.builds(PutRequest, key=st.sampled_from(KEYS), value=st.sampled_from([b"", b"1", b"2"]))
deletions = st.builds(
    DeleteRangeRequest, key=st.sampled_from(KEYS), range_end=st.sampled_from([b"", b"b"])
)
both_at_once = st.builds(
    lambda deletion, put: TxnRequest(
        success=[
            RequestOp(request_delete_range=deletion),
            RequestOp(request_put=PutRequest(key=b"c", value=put.value)),
        ]
    ),
    deletions, puts,
)  # fmt: skip
compactions = st.integers(0, 8)
"""At a revision so far back."""


def hashes(channel: grpc.Channel) -> list[tuple[int, int, int]]:
    """Revision, compacted revision and hash, of some of the revisions that can be hashed."""
    hash_at = MaintenanceStub(channel).HashKV
    newest = hash_at(HashKVRequest(), timeout=WITHIN_S)
    current, compacted = newest.header.revision, newest.compact_revision
    found = [(current, compacted, newest.hash)]
    for revision in range(max(compacted + 1, current - 5), current):
        response = hash_at(HashKVRequest(revision=revision), timeout=WITHIN_S)
        found.append((revision, response.compact_revision, response.hash))
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(puts | puts | deletions | both_at_once | compactions, min_size=3, max_size=15))
def test_the_hash_changes_when_etcds_does(
    channels: tuple[grpc.Channel, ...], steps: list[Message | int]
) -> None:
    """Of all hashes of all steps the same ones are equal. A key always lives: see COMPAT."""
    pairs: set[tuple[int, int]] = set()
    for channel in channels:
        KVStub(channel).Put(PutRequest(key=b"lives"), timeout=WITHIN_S)
    for step in steps:
        for channel in channels:
            do(KVStub(channel), step)
        theirs, ours = map(hashes, channels)
        assert [each[:2] for each in ours] == [each[:2] for each in theirs]
        pairs |= {(their[2], our[2]) for their, our in zip(theirs, ours, strict=True)}
    assert len(pairs) > 1
    for side in (0, 1):
        assert len({pair[side] for pair in pairs}) == len(pairs), sorted(pairs)


def do(kv: KVStub, step: Message | int) -> None:
    if isinstance(step, PutRequest):
        kv.Put(step, timeout=WITHIN_S)
    elif isinstance(step, DeleteRangeRequest):
        kv.DeleteRange(step, timeout=WITHIN_S)
    elif isinstance(step, TxnRequest):
        kv.Txn(step, timeout=WITHIN_S)
    else:
        assert isinstance(step, int)
        revision = kv.Range(RangeRequest(key=b"lives"), timeout=WITHIN_S).header.revision - step
        with contextlib.suppress(grpc.RpcError):  # it is compacted already
            compaction = CompactionRequest(revision=max(1, revision), physical=True)
            kv.Compact(compaction, timeout=WITHIN_S)


def test_an_empty_store_has_a_hash(tmp_path: Path) -> None:
    found = []
    with running_etcd(tmp_path / "etcd") as etcd, running_node(tmp_path / "node") as node:
        for endpoint in (etcd.endpoint, node.endpoint):
            with grpc.insecure_channel(endpoint, options=CHANNEL_OPTIONS) as channel:
                kv, hash_at = KVStub(channel), MaintenanceStub(channel).HashKV
                told = [hash_at(HashKVRequest(), timeout=WITHIN_S).hash]
                kv.Put(PutRequest(key=b"k"), timeout=WITHIN_S)
                kv.DeleteRange(DeleteRangeRequest(key=b"k"), timeout=WITHIN_S)
                told.append(hash_at(HashKVRequest(), timeout=WITHIN_S).hash)
                told.append(hash_at(HashKVRequest(revision=1), timeout=WITHIN_S).hash)
                found.append((0 in told, told[0] == told[1], told[0] == told[2]))
    assert found == [(False, False, True)] * 2


def fields(message: object) -> set[str]:
    """Names of the fields that are filled, but for the one that came with etcd 3.6."""
    found = {field.name for field, _ in message.ListFields()}  # type: ignore[attr-defined]
    return found - {"dbSizeQuota"}


def test_the_same_fields_are_filled(channels: tuple[grpc.Channel, ...]) -> None:
    found = []
    for channel in channels:
        maintenance = MaintenanceStub(channel)
        status = maintenance.Status(StatusRequest(), timeout=WITHIN_S)
        stored = maintenance.Hash(HashRequest(), timeout=WITHIN_S)
        alarms = maintenance.Alarm(AlarmRequest(), timeout=WITHIN_S)
        assert status.dbSizeInUse <= status.dbSize
        assert status.raftAppliedIndex <= status.raftIndex
        answers = (status, stored, alarms)
        found.append([(fields(each), fields(each.header)) for each in answers])
    assert found[0] == found[1]


def test_snapshots_are_framed_alike(channels: tuple[grpc.Channel, ...]) -> None:
    for channel in channels:
        responses = list(MaintenanceStub(channel).Snapshot(SnapshotRequest(), timeout=WITHIN_S))
        *blobs, last = responses
        left = sum(len(each.blob) for each in blobs)
        assert left % 512 == 0
        for each in blobs:
            left -= len(each.blob)
            assert each.remaining_bytes == left
            assert 0 < len(each.blob) <= 32 << 10
        assert (last.remaining_bytes, len(last.blob)) == (0, 32)
        assert not any(each.HasField("header") for each in responses)
