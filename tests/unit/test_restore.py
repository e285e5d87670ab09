"""A snapshot becomes new members that begin alike; what is damaged becomes nothing."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.limits import no_file_above

from kvpb import raft_pb2
from kvpb.raft_pb2 import Command, CommandBatch, PublishMember
from kvpb.rpc_pb2 import CORRUPT, CompactionRequest, DeleteRangeRequest, PutRequest
from kvserver import restore
from kvserver.__main__ import command
from kvserver.clock import SystemClock
from kvserver.config import Config
from kvserver.errors import ExitCode
from kvserver.mvcc.hashing import HashBuilder
from kvserver.pipeline.alarms import Alarm, Alarms, raising
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.identity import (
    forget_birth,
    load_identity,
    load_plan,
    open_identity,
    plan_cluster,
    refuse_reason,
)
from kvserver.raft.journal import DurableJournal
from kvserver.storage.copies import LmdbCopies
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import ALARM, CLUSTER, DATABASES, IDENTITY, KV, MEMBER
from kvserver.storage.snapshot_file import read_snapshot

OLD = plan_cluster({"old1": "127.0.0.1:1", "old2": "127.0.0.1:2"}, "kvserver")
THREE = "n1=127.0.0.1:11,n2=127.0.0.1:12,n3=127.0.0.1:13"
KEYS = 50


def commands() -> Iterator[Command]:
    for number in range(KEYS):
        yield Command(put=PutRequest(key=b"key %d" % number, value=b"value %d" % number * 30))
    yield Command(delete_range=DeleteRangeRequest(key=b"key 7"))
    yield Command(compact=CompactionRequest(revision=20))
    yield Command(publish_member=PublishMember(id=1, client_urls=["http://127.0.0.1:3"]))


def fill(storage: LmdbStorage) -> None:
    """An old member that has applied some commands, and has more in its log."""
    open_identity(storage, "old1", OLD, incarnation=7)
    applier = Applier(storage, Roster(), on_applied=lambda *_: None)
    for index, each in enumerate(commands(), applier.applied_index + 1):
        batch = CommandBatch(format=1, log_time_ms=index, commands=[each])
        applier.apply(index, 3, batch.SerializeToString())
    alarms = Alarms()
    alarms.change(storage.writer(), raising(Alarm(MemberId(1), CORRUPT)))
    applier.stage()
    storage.writer().put(ALARM, b"\0" * 8 + b"\1", b"\1")
    storage.commit()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a snapshot, without its hash."""
    with DataDir(tmp_path_factory.mktemp("old") / "data") as held:
        storage = LmdbStorage(held.environment())
        fill(storage)
        copies = LmdbCopies(held, storage, SystemClock(), lambda *_, **__: None, lambda _: None)
        backup = copies.backup(threading.Event())
        data = backup.read(0, backup.total)
        backup.close()
        storage.close()
    return data


def hashed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@pytest.fixture
def snapshot(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "backup.db"
    file.write_bytes(hashed(content))
    return file


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments])


def restored(snapshot: Path, folder: Path, name: str, *options: str) -> Result:
    return run(
        "restore", snapshot, "--name", name, "--data-dir", folder / name,
        "--initial-cluster", THREE, *options,
    )  # fmt: skip


class Member:
    """A data directory, opened."""

    def __init__(self, path: Path) -> None:
        with DataDir(path) as held:
            storage = LmdbStorage(held.environment())
            self.applier = Applier(storage, Roster(), on_applied=lambda *_: None)
            self.journal = DurableJournal(storage, self.applier.applied_index)
            with storage.read() as txn:
                found = load_identity(txn)
                assert found is not None
                self.identity: raft_pb2.Identity = found
                self.plan = load_plan(txn)
                self.rows = {
                    each.name: list(txn.scan(each)) for each in DATABASES if each.replicated
                }
                builder = HashBuilder(txn)
                assert builder.step(10_000)
                self.hash = builder.value
            storage.close()


def test_all_members_begin_alike_in_a_new_cluster(snapshot: Path, tmp_path: Path) -> None:
    for name in ("n1", "n2", "n3"):
        done = restored(snapshot, tmp_path, name)
        assert done.exit_code == 0, done.stderr
        assert f"member '{name}'" in done.stdout
        assert "at revision 52" in done.stdout
    members = {name: Member(tmp_path / name) for name in ("n1", "n2", "n3")}
    first = members["n1"]
    for name, each in members.items():
        assert each.rows == first.rows
        assert each.applier.revision == 52
        assert each.applier.applied_index == first.applier.applied_index == KEYS + 5
        journal = each.journal
        assert journal.first_index == journal.last_index == journal.commit_index == KEYS + 5
        assert journal.last_term == journal.term == 3, "terms go on"
        assert journal.voted_for is None
        assert each.plan == first.plan
        assert journal.configuration.members == each.plan.members
        assert each.plan.member_named(name) == each.identity.member_id
        assert not each.identity.established, "born when all have met"
        assert not each.identity.pins
    assert len({each.identity.incarnation for each in members.values()}) == 3
    assert sorted(each.name for each in first.plan.members.values()) == ["n1", "n2", "n3"]
    assert first.rows[MEMBER.name] == first.rows[ALARM.name] == []
    assert not first.plan.members.keys() & OLD.members.keys()


def test_nobody_of_the_old_cluster_is_believed(snapshot: Path, tmp_path: Path) -> None:
    options = ("--initial-cluster", "old1=127.0.0.1:1,old2=127.0.0.1:2")
    done = restored(snapshot, tmp_path, "old1", *options)  # the same names, addresses and token
    assert done.exit_code == 0, done.stderr
    member = Member(tmp_path / "old1")
    old = next(iter(OLD.members))
    hello = raft_pb2.Hello(protocol=1, cluster_id=OLD.cluster_id, member_id=old, incarnation=7)
    reason = refuse_reason(member.identity, member.journal.configuration, hello)
    assert reason is not None
    assert "belongs to cluster" in reason
    assert member.identity.incarnation != 7


def test_ids_follow_from_snapshot_token_and_members(snapshot: Path, content: bytes) -> None:
    config = Config(name="n1", initial_cluster=THREE)
    told = lambda *_: None  # noqa: E731
    file = read_snapshot(snapshot, check_hash=True, on_progress=told)
    plan = restore.plan_restored(config, file)
    assert plan == restore.plan_restored(replace(config, name="n2"), file)
    others = [
        restore.plan_restored(replace(config, initial_cluster_token="other"), file),
        restore.plan_restored(config, replace(file, sha256=b"\1" * 32)),
        plan_cluster(config.members, config.initial_cluster_token),
    ]
    assert len({each.cluster_id for each in [plan, *others]}) == 4
    assert all(not plan.members.keys() & each.members.keys() for each in others)


def test_a_single_member_needs_nobody(snapshot: Path, tmp_path: Path) -> None:
    done = run("restore", snapshot, "--data-dir", tmp_path / "alone")
    assert done.exit_code == 0, done.stderr
    member = Member(tmp_path / "alone")
    assert member.identity.established
    assert list(member.plan.members) == [member.identity.member_id]


def test_a_directory_that_exists_is_refused(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    done = restored(snapshot, tmp_path, "n1")
    assert done.exit_code == ExitCode.DATA_DIR
    assert "is there already: restore makes a new one" in done.stderr
    assert list((tmp_path / "n1").iterdir()) == []


def test_options_are_checked(snapshot: Path, tmp_path: Path) -> None:
    done = restored(snapshot, tmp_path, "n4")
    assert done.exit_code == ExitCode.USAGE
    assert "--initial-cluster does not name this member" in done.stderr


def damaged(content: bytes) -> dict[str, tuple[bytes, str]]:
    whole = hashed(content)
    flipped = bytearray(whole)
    flipped[len(content) // 2] ^= 4
    etcds = bytearray(content)
    etcds[16:20] = bytes.fromhex("edda0ced")
    return {
        "bit flipped": (bytes(flipped), "do not match"),
        "hash flipped": (whole[:-1] + bytes([whole[-1] ^ 1]), "do not match"),
        "chopped": (whole[:-5000], "no snapshot, or was cut off"),
        "chopped by blocks": (whole[:-8192], "do not match"),
        "without its hash": (content, "no sha256 at its end"),
        "empty": (b"", "no snapshot, or was cut off"),
        "of etcd": (hashed(bytes(etcds)), "is a snapshot of etcd's"),
        "something else": (hashed(b"x" * 8192), "is no snapshot of kvserver"),
        "another version": (hashed(of_version(content, 99)), "has format version 99"),
    }


def of_version(content: bytes, version: int) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        file = Path(folder) / "data.mdb"
        file.write_bytes(content)
        storage = LmdbStorage(Path(folder))
        storage.writer().put(IDENTITY, b"format", version.to_bytes(4, "big"))
        storage.commit()
        storage.close()
        return file.read_bytes()


@pytest.mark.parametrize(
    "kind",
    ["bit flipped", "hash flipped", "chopped", "chopped by blocks", "without its hash", "empty",
     "of etcd", "something else", "another version"],
)  # fmt: skip
def test_what_is_damaged_is_refused_and_nothing_is_made(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    data, said = damaged(content)[kind]
    file = tmp_path / "backup.db"
    file.write_bytes(data)
    done = restored(file, tmp_path, "n1")
    assert done.exit_code == ExitCode.DATA_DIR, done.output
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["backup.db"]
    looked = run("snapshot-status", file)
    assert looked.exit_code == ExitCode.DATA_DIR
    assert said in looked.stderr
    assert file.read_bytes() == data


def test_a_damaged_row_is_found_behind_a_right_hash(tmp_path: Path, content: bytes) -> None:
    """The hash tells that the file is as it was sent, not that all was well then."""
    at = content.index(b"value 33value 33")
    file = tmp_path / "backup.db"
    file.write_bytes(hashed(content[:at] + b"V" + content[at + 1 :]))
    for done in (restored(file, tmp_path, "n1"), run("snapshot-status", file)):
        assert done.exit_code == ExitCode.DATA_DIR
        assert "is damaged" in done.stderr
        assert "--data-dir" not in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["backup.db"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = restored(tmp_path / "missing", tmp_path, "n1")
    assert done.exit_code == ExitCode.DATA_DIR
    assert "can't be read: No such file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_copy_is_named_and_not_the_snapshot(
    snapshot: Path, tmp_path: Path
) -> None:
    with no_file_above(snapshot.stat().st_size // 2):
        done = restored(snapshot, tmp_path, "n1")
    assert done.exit_code == ExitCode.DATA_DIR
    assert f"{tmp_path / 'n1'}.restoring can't be written: File too large" in done.stderr
    assert str(snapshot) not in done.stderr
    assert list(tmp_path.iterdir()) == [snapshot]


def test_a_database_copied_by_hand(tmp_path: Path) -> None:
    """Of a node that was stopped: it holds who that node was."""
    with DataDir(tmp_path / "old") as held:
        storage = LmdbStorage(held.environment())
        fill(storage)
        storage.close()
        file = held.environment() / "data.mdb"
        done = restored(file, tmp_path, "n2", "--skip-hash-check")
    assert done.exit_code == 0, done.stderr
    member = Member(tmp_path / "n2")
    assert member.identity.name == "n2"
    assert member.applier.revision == 52
    assert len(member.rows[KV.name]) == KEYS - 1
    assert member.journal.first_index == member.journal.last_index


def test_a_restore_that_is_killed_leaves_nothing_that_starts_with_it(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(restore, "begin_member", killed)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # who is killed clears nothing up
        with pytest.raises(KilledError):
            restored(snapshot, tmp_path, "n1")
    assert not (tmp_path / "n1").exists()
    left = tmp_path / "n1.restoring"
    with DataDir(left) as held:  # even if somebody names it
        storage = LmdbStorage(held.environment())
        with storage.read() as txn:
            assert load_identity(txn) is None
            assert not list(txn.scan(KV))
        storage.close()
    done = restored(snapshot, tmp_path, "n1")
    assert done.exit_code == 0, done.stderr
    assert not left.exists()
    assert Member(tmp_path / "n1").applier.revision == 52


def test_what_a_snapshot_holds_is_told(snapshot: Path, tmp_path: Path, content: bytes) -> None:
    assert restored(snapshot, tmp_path, "n1").exit_code == 0
    expected = Member(tmp_path / "n1").hash
    done = run("snapshot-status", snapshot, "-o", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "hash": expected, "revision": 52, "totalKey": KEYS - 1, "totalSize": len(content),
        "compactRevision": 20, "clusterId": f"{OLD.cluster_id:x}", "members": ["old1", "old2"],
    }  # fmt: skip
    done = run("snapshot-status", snapshot)
    assert done.stdout.startswith(f"{expected:x}, 52, {KEYS - 1}, ")
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["backup.db"]


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (20_480, "20 kB"), (2_100_000, "2.1 MB")]
)
def test_sizes(count: int, said: str) -> None:
    assert restore._size(count) == said


def test_a_restored_member_whose_cluster_knows_an_older_one_forgets_all(
    snapshot: Path, tmp_path: Path
) -> None:
    """It joins anew, and gets what the others have by now."""
    assert restored(snapshot, tmp_path, "n1").exit_code == 0
    with DataDir(tmp_path / "n1") as held:
        storage = LmdbStorage(held.environment())
        forget_birth(storage)
        with storage.read() as txn:
            left = {each.name for each in DATABASES if list(txn.scan(each))}
            found = load_identity(txn)
        storage.close()
    assert left <= {IDENTITY.name}
    assert found is not None
    assert found.joining
    assert CLUSTER.name not in left
