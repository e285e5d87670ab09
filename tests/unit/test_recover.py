"""One survivor becomes a cluster of one: all its log holds stays, nobody old is believed."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from support.memory_storage import MemoryStorage

from kvpb import raft_pb2
from kvpb.raft_pb2 import Command, CommandBatch, PublishMember
from kvpb.rpc_pb2 import PutRequest
from kvserver.__main__ import command
from kvserver.errors import DataDirError, ExitCode, UsageError
from kvserver.mvcc.keyvalue import decode_row
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import REGULAR, MemberId
from kvserver.raft.identity import (
    ClusterPlan,
    load_identity,
    open_identity,
    plan_cluster,
    refuse_reason,
    store_identity,
)
from kvserver.raft.journal import DurableJournal
from kvserver.raft.membership import Configuration
from kvserver.recover import inspect, recover
from kvserver.storage.contract import Storage
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import ALARM, KV, MEMBER

PLAN = plan_cluster({f"n{i}": f"127.0.0.1:{i}" for i in (1, 2, 3)}, "token")
ME = PLAN.member_named("n3") or MemberId(0)
RANDOM = 99


def batch(key: str) -> bytes:
    put = Command(put=PutRequest(key=key.encode(), value=b"v"))
    commands = CommandBatch(format=1, log_time_ms=0, commands=[put])
    return REGULAR + commands.SerializeToString()


def fill(storage: Storage, plan: ClusterPlan = PLAN) -> None:
    """A member of three that has applied two writes of five; a third is known to be committed."""
    identity, _ = open_identity(storage, "n3", plan, incarnation=7)
    identity.pins.update(dict.fromkeys(plan.members, 1))
    identity.established = True
    store_identity(storage, identity)
    storage.commit()
    applier = Applier(storage, Roster(), on_applied=lambda *_: None)
    journal = DurableJournal(storage, applier.applied_index)
    journal.setCurrentTerm(4, ME)
    for index in range(2, 7):
        journal.add(batch(f"k{index}"), index, 3)
    fewer = {member: PLAN.members[member] for member in list(PLAN.members)[1:]}
    journal.add(Configuration(0, plan.cluster_id, fewer).payload(), 7, 3)
    journal.setRaftCommitIndex(4)
    for index in (2, 3):
        applier.apply(index, 3, journal.entry(index).payload[1:])
    applier.stage()
    journal.sync()
    storage.writer().put(ALARM, bytes(8) + b"\1", b"\1")
    storage.writer().put(MEMBER, b"old", PublishMember(id=1).SerializeToString())
    storage.commit()


@pytest.fixture
def storage() -> MemoryStorage:
    filled = MemoryStorage()
    fill(filled)
    return filled


def recovered(storage: Storage, peer_address: str = "") -> raft_pb2.Identity:
    return recover(storage, inspect(storage, "n3"), peer_address=peer_address, random=RANDOM)


def test_what_is_there_is_told(storage: MemoryStorage) -> None:
    told = inspect(storage, "n3").describe()
    assert "member 'n3'" in told
    assert "revision 3, applied index 3, last index 7 of term 3, term 4" in told
    assert "3 entries at the end are not known to be committed here" in told


def test_all_that_the_log_holds_is_applied_committed_or_not(storage: MemoryStorage) -> None:
    recovered(storage)
    with storage.read() as txn:
        rows = {key: decode_row(row).mod_revision for key, row in txn.scan(KV)}
    assert rows == {b"k2": 2, b"k3": 3, b"k4": 4, b"k5": 5, b"k6": 6}


def test_it_is_alone_and_may_vote_in_the_term_it_knew(storage: MemoryStorage) -> None:
    mine = recovered(storage)
    storage.crash()  # nothing of it waits in memory
    applier = Applier(storage, Roster(), on_applied=lambda *_: None)
    journal = DurableJournal(storage, applier.applied_index)
    assert applier.applied_index == journal.commit_index == journal.last_index == 8
    assert (journal.first_index, journal.term, journal.voted_for) == (8, 4, None)
    (member,) = journal.configuration.members.values()
    assert (member.id, member.name, member.peer_address) == (mine.member_id, "n3", "127.0.0.1:3")
    assert (member.incarnation, mine.incarnation) == (RANDOM, RANDOM)
    assert journal.configuration.voters == {mine.member_id}
    assert mine.established
    with storage.read() as txn:
        assert load_identity(txn) == mine
        assert list(txn.scan(MEMBER)) == list(txn.scan(ALARM)) == []


def test_nobody_of_the_old_cluster_is_believed(storage: MemoryStorage) -> None:
    with storage.read() as txn:
        old = load_identity(txn)
    assert old is not None
    mine = recovered(storage)
    assert mine.cluster_id != old.cluster_id
    assert mine.member_id not in PLAN.members
    for member in PLAN.members:
        hello = raft_pb2.Hello(
            protocol=1, cluster_id=old.cluster_id, member_id=member, incarnation=1,
            established=True, pins=old.pins,
        )  # fmt: skip
        alone = Configuration(8, mine.cluster_id, {})
        assert "it belongs to cluster" in (refuse_reason(mine, alone, hello) or "")


def test_two_survivors_do_not_become_one_cluster(storage: MemoryStorage) -> None:
    other = MemoryStorage()
    fill(other)
    mine = recovered(storage)
    theirs = recover(other, inspect(other, "n3"), peer_address="", random=RANDOM + 1)
    assert mine.cluster_id != theirs.cluster_id


def test_it_may_have_another_address(storage: MemoryStorage) -> None:
    recovered(storage, "127.0.0.1:77")
    (member,) = DurableJournal(storage, 8).configuration.members.values()
    assert member.peer_address == "127.0.0.1:77"


def test_one_that_was_removed_needs_an_address(storage: MemoryStorage) -> None:
    survivor = inspect(storage, "n3")
    survivor.identity.member_id = 5
    with pytest.raises(UsageError, match="--listen-peer"):
        recover(storage, survivor, peer_address="", random=RANDOM)


def test_what_can_not_be_recovered() -> None:
    with pytest.raises(DataDirError, match="never part of a running cluster"):
        inspect(MemoryStorage(), "n3")
    unborn = MemoryStorage()
    open_identity(unborn, "n3", PLAN, incarnation=7)
    with pytest.raises(DataDirError, match="never part of a running cluster"):
        inspect(unborn, "n3")
    filled = MemoryStorage()
    fill(filled)
    with pytest.raises(DataDirError, match="belongs to member 'n3'"):
        inspect(filled, "n1")


# ---------------------------------------------------------------------- the command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with DataDir(tmp_path / "data") as held:
        storage = LmdbStorage(held.environment())
        fill(storage)
        storage.close()
    return tmp_path / "data"


def run(*options: str) -> tuple[int, str]:
    found = CliRunner().invoke(command, ["recover", "--name", "n3", *options])
    return found.exit_code, found.output


def alone(data: Path) -> bool:
    with DataDir(data) as held:
        storage = LmdbStorage(held.environment())
        with storage.read() as txn:
            identity = load_identity(txn)
        storage.close()
    assert identity is not None
    return identity.recovered


def test_the_command(data: Path) -> None:
    code, said = run("--data-dir", str(data), "--yes")
    assert (code, "last index 7" in said, "alone in the new cluster" in said) == (0, True, True)
    assert alone(data)


def test_nothing_is_done_without_a_yes(data: Path) -> None:
    code, said = run("--data-dir", str(data))
    assert code == ExitCode.USAGE
    assert "last index 7" in said
    assert "--yes" in said
    assert not alone(data)


def test_nothing_is_done_to_a_directory_in_use_or_to_none(data: Path, tmp_path: Path) -> None:
    with DataDir(data):
        code, said = run("--data-dir", str(data), "--yes")
    assert code == ExitCode.DATA_DIR
    assert "in use by another process" in said
    assert not alone(data)
    code, said = run("--data-dir", str(tmp_path / "none"), "--yes")
    assert code == ExitCode.DATA_DIR
    assert "is no data directory" in said
    assert not (tmp_path / "none").exists()


def test_a_damaged_survivor_is_refused(data: Path) -> None:
    (file,) = data.glob("env-*/data.mdb")
    content = file.read_bytes().replace(b"k3", b"k8")
    file.write_bytes(content)
    code, said = run("--data-dir", str(data), "--yes")
    assert code == ExitCode.DATA_DIR
    assert "damaged" in said
