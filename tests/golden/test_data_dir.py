"""A data directory that an older build left is opened, replayed, and served from."""

import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from golden import data_dir
from support.applying import Replica
from support.memory_storage import MemoryStorage
from support.node import CHANNEL_OPTIONS, READY_S_MAX, running_node, start_node

from kvclient import Client
from kvpb.raft_pb2 import HardState, SessionRow
from kvpb.rpc_pb2 import (
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
)
from kvpb.rpc_pb2_grpc import KVStub, LeaseStub, MaintenanceStub
from kvpb.session_pb2 import WriteId
from kvserver.api.session import WRITE_ID
from kvserver.mvcc.history import compacted_revision
from kvserver.mvcc.keyvalue import Row, decode_row
from kvserver.mvcc.store import current_revision
from kvserver.raft.entry import MEMBERSHIP, REGULAR
from kvserver.raft.identity import load_identity
from kvserver.raft.journal import DurableJournal, load_configuration, store_configuration
from kvserver.raft.membership import configuration_of
from kvserver.storage.datadir import DataDir
from kvserver.storage.digest import counts
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import DATABASES, KV, LEASE, LEASE_KEY, META, SESSION

PEAK_KB_MAX = 300_000
"""Of memory: a node takes a quarter of it without data. The answer alone would take more."""

EXPECTED = {
    key: Row(create, mod, version, data_dir.LEASE if key == b"leased" else 0, value)
    for key, (value, create, mod, version) in data_dir.KEYS.items()
}


@pytest.fixture(params=data_dir.RECORDED)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return data_dir.unpack(request.param, tmp_path / "unpacked")


@pytest.fixture
def storage(folder: Path) -> Iterator[LmdbStorage]:
    with DataDir(folder) as locked:
        storage = LmdbStorage(locked.environment())
        yield storage
        storage.close()


def test_the_state_is_there(storage: LmdbStorage) -> None:
    with storage.read() as txn:
        assert {key: decode_row(row) for key, row in txn.scan(KV)} == EXPECTED
        assert current_revision(txn) == data_dir.REVISION
        assert compacted_revision(txn) == data_dir.COMPACTED
        identity = load_identity(txn)
        assert identity is not None
        assert identity.established
        assert identity.member_id in load_configuration(txn).members
        assert len(list(txn.scan(LEASE))) == 2, "one of them is a session's"
        assert len(list(txn.scan(LEASE_KEY))) == 1
        (session,) = (SessionRow.FromString(row) for _, row in txn.scan(SESSION))
        assert session.answers[-1].sequence == data_dir.LAST_NUMBERED[0]


def test_the_log_is_there(storage: LmdbStorage) -> None:
    with storage.read() as txn:
        applied = int.from_bytes(txn.get(META, b"applied_index") or b"", "big")
    journal = DurableJournal(storage, applied)
    assert journal.first_index == 1
    assert journal.last_index > applied, "of the alarm only the log knows"
    assert journal.term == HardState.FromString(storage.log.state).term > 0
    assert list(storage.log.check()) != []


def test_the_log_makes_the_same_rows_again(storage: LmdbStorage) -> None:
    """What this build applies is what the older one did: no upgrade lets nodes diverge."""
    with storage.read() as txn:
        applied = int.from_bytes(txn.get(META, b"applied_index") or b"", "big")
    replica = _replayed(storage, applied)
    with storage.read() as old, replica.storage.read() as new:
        for db in DATABASES:
            if db.replicated:
                rows = [(key, row) for key, row in old.scan(db) if counts(db, key)]
                assert list(new.scan(db)) == rows, db.name
        assert old.digests() in (None, new.digests())
        assert list(new.scan(LEASE_KEY)), "the log was replayed"


def _replayed(storage: LmdbStorage, last: int) -> Replica:
    log = storage.log
    fresh = MemoryStorage()
    store_configuration(fresh.writer(), configuration_of(1, log.read(1)[0]))
    fresh.commit()
    replica = Replica(fresh)
    for index in range(2, last + 1):
        payload, _, term = log.read(index)
        if payload[:1] == MEMBERSHIP:
            store_configuration(fresh.writer(), configuration_of(index, payload))
        replica.applier.apply(index, term, payload[1:] if payload[:1] == REGULAR else None)
    while replica.applier.work():
        pass
    replica.turn()
    return replica


@pytest.mark.cluster
def test_a_node_serves_it(folder: Path, tmp_path: Path) -> None:
    with (
        running_node(tmp_path, [f"--data-dir={folder}"]) as node,
        grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as channel,
    ):
        kv = KVStub(channel)
        found = kv.Range(RangeRequest(key=b"\0", range_end=b"\0"))
        assert found.header.revision == data_dir.REVISION
        for pair in found.kvs:
            row = Row(pair.create_revision, pair.mod_revision, pair.version, pair.lease, pair.value)
            assert row == EXPECTED[pair.key]
        assert len(found.kvs) == len(EXPECTED)
        then = kv.Range(RangeRequest(key=b"gone", revision=4))
        assert then.count == 1, "old revisions are there"
        lease = LeaseStub(channel).LeaseTimeToLive(
            LeaseTimeToLiveRequest(ID=data_dir.LEASE, keys=True)
        )
        assert list(lease.keys) == [b"leased"]
        alarms = MaintenanceStub(channel).Alarm(AlarmRequest(action=AlarmRequest.GET)).alarms
        assert list(alarms) == [AlarmMember(memberID=data_dir.ALARMED, alarm=NOSPACE)]
        _ask_again(kv, folder)
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(30) == 0


def _ask_again(kv: KVStub, folder: Path) -> None:
    """The last numbered write gets the answer of the first time; it is not applied again."""
    session = _session_of(folder)
    number, key, value = data_dir.LAST_NUMBERED
    write_id = WriteId(session=session, sequence=number)
    request = PutRequest(key=key.encode(), value=value.encode())
    answer = kv.Put(request, metadata=((WRITE_ID, write_id.SerializeToString()),))
    assert answer.header.revision == data_dir.REVISION
    after = kv.Range(RangeRequest(key=key.encode()))
    assert after.kvs[0].version == data_dir.KEYS[key.encode()][3]


def _session_of(folder: Path) -> int:
    """Read beside the running node, from the file as it is."""
    (file,) = folder.glob("env-*/data.mdb")
    storage = LmdbStorage(file, read_only=True)
    try:
        with storage.read() as txn:
            ((key, _),) = txn.scan(SESSION)
    finally:
        storage.close()
    return int.from_bytes(key, "big")


@pytest.mark.cluster
def test_a_write_from_before_the_limits_is_survived(tmp_path: Path) -> None:
    """It is committed: each start applies it again, and nobody waits for its answer any more."""
    folder = data_dir.unpack(data_dir.EXPENSIVE, tmp_path / "unpacked")
    for number in range(2):
        node = start_node(tmp_path / f"node{number}", [f"--data-dir={folder}"])
        try:
            with Client(node.endpoint, timeout_s=READY_S_MAX) as client:
                client.put("after", "it")
                found = client.get("poison")
                assert found is not None
                assert found.value == b"1"
            status = Path(f"/proc/{node.process.pid}/status").read_text()
            (peak_kb,) = (int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM"))
            assert peak_kb < PEAK_KB_MAX
            assert node.process.poll() is None
        finally:
            node.process.kill()  # so the next start applies it again
            node.process.wait(30)
