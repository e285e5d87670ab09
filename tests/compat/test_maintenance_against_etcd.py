"""Maintenance on a real etcd and on this server, side by side: the same errors, the same fields."""

from collections.abc import Iterator

import grpc
import pytest
from support.etcd import running_etcd
from support.node import CHANNEL_OPTIONS, running_node

from kvpb.rpc_pb2 import (
    AlarmRequest,
    CompactionRequest,
    DeleteRangeRequest,
    HashKVRequest,
    HashRequest,
    PutRequest,
    SnapshotRequest,
    StatusRequest,
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
