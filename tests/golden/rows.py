"""Rows of every database, as they lie in LMDB: key, and content with its checksum."""

import contextlib
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest.mock import patch

from golden.form import Form, Parts
from golden.row import content_of, read_in, row_form, row_of, written
from golden.sessions import session_forms
from support.applying import Replica, delete, founded, put
from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import ChangeAlarm, Command, Identity, Member, PublishMember, SetFeatureLevel
from kvpb.rpc_pb2 import (
    CORRUPT,
    NOSPACE,
    AlarmRequest,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
)
from kvserver.mvcc.history import Change, changes_since, compacted_revision, row_at
from kvserver.mvcc.keyvalue import Row, decode_row
from kvserver.mvcc.leases import LeaseRow, find_lease, keys_of
from kvserver.mvcc.store import Writer, current_revision
from kvserver.pipeline.alarms import Alarm, Alarms
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.identity import load_identity, store_identity
from kvserver.raft.journal import load_configuration, store_configuration
from kvserver.raft.membership import Configuration
from kvserver.storage.contract import ReadTxn
from kvserver.storage.digest import DIGESTED, DIGESTS_KEY, decode_digests, encode_digests
from kvserver.storage.env import LmdbStorage
from kvserver.storage.rows import seal
from kvserver.storage.schema import (
    ALARM,
    CLUSTER,
    HISTORY,
    IDENTITY,
    KEY_HISTORY,
    KV,
    LEASE,
    LEASE_KEY,
    MEMBER,
    META,
)

LEASE_ID: Final = 0x1122334455667788


# ---------------------------------------------------------------------- keys and their history


@cache
def _keys() -> MemoryStorage:
    """Revision 2 puts a, 3 puts it again with a lease, 4 deletes b and c that 3 has put too."""
    storage = MemoryStorage()
    writer = Writer(storage.writer(), 1, log_time_ms=5000)
    writer.grant(LeaseGrantRequest(ID=LEASE_ID, TTL=60))
    writer.put(PutRequest(key=b"a", value=b"first"))
    writer.put(PutRequest(key=b"a", value=b"second\x00", lease=LEASE_ID))
    writer.put(PutRequest(key=b"b"))
    writer.put(PutRequest(key=b"c\xff", value=b"v"))
    writer.delete_range(DeleteRangeRequest(key=b"b", range_end=b"d"))
    writer.flush()
    storage.commit()
    return storage


def _moment(revision: int, sub: int) -> bytes:
    return struct.pack(">QI", revision, sub)


PLAIN: Final = Row(2, 2, 1, 0, b"first")
LEASED: Final = Row(2, 3, 2, LEASE_ID, b"second\x00")


def _kv_forms() -> list[Form]:
    def plain() -> MemoryStorage:
        storage = MemoryStorage()
        writer = Writer(storage.writer(), 1)
        writer.put(PutRequest(key=b"a", value=b"first"))
        writer.flush()
        storage.commit()
        return storage

    def row(txn: ReadTxn) -> Row:
        stored = txn.get(KV, b"a")
        assert stored is not None
        return decode_row(stored)

    def changes(txn: ReadTxn) -> list[Change]:
        return list(changes_since(txn, 0))

    put_again = struct.pack(">QQQq", *LEASED[:4]) + LEASED.value
    forms = [
        row_form(KV, "a put", b"a", plain, row, PLAIN),
        row_form(KV, "a second put, with a lease", b"a", _keys, row, LEASED),
        row_form(
            HISTORY, "a put", _moment(3, 0), _keys, changes, [Change(3, 0, 0, b"a", put_again)]
        ),
        row_form(
            HISTORY, "a deletion, the second change of its revision", _moment(6, 1), _keys, changes,
            [Change(6, 1, 1, b"c\xff", b"")],
        ),
    ]  # fmt: skip

    def at_the_end(txn: ReadTxn) -> object:
        """The row of the key, found by its history; the row in `history` is put beside it."""
        return [row_at(txn, key, 1 << 40) for key in (b"a", b"b")]

    def with_history() -> MemoryStorage:
        storage = MemoryStorage()
        for at in (_moment(2, 0), _moment(3, 0), _moment(6, 0)):
            with _keys().read() as txn:
                stored = txn.get(HISTORY, at)
            assert stored is not None
            storage.writer().put(HISTORY, at, stored)
        storage.commit()
        return storage

    for what, key, means in (("a put", b"a", [LEASED, None]), ("a deletion", b"b", [None, None])):
        read = read_in(KEY_HISTORY, with_history, at_the_end)
        forms.append(Form(f"key_history: {what}", read, means, row_of(KEY_HISTORY, key, _keys)))
    return forms


# ---------------------------------------------------------------------- leases and sessions


def _lease_forms() -> list[Form]:
    key = struct.pack(">q", LEASE_ID)
    return [
        row_form(
            LEASE, "granted for 60 s at log time 5,000 ms", key, _keys,
            lambda txn: find_lease(txn, LEASE_ID), LeaseRow(60, 245_000),
        ),
        row_form(
            LEASE_KEY, "a key of a lease", key + b"a", _keys,
            lambda txn: list(keys_of(txn, LEASE_ID)), [b"a"],
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------------- meta


@cache
def _counted() -> MemoryStorage:
    """After some entries: every number of `meta` is there, and they differ."""
    replica = Replica()
    replica.apply(Command(set_feature_level=SetFeatureLevel(level=2)), at_ms=1)
    for number in range(6):
        replica.apply(put(f"k{number}"), at_ms=100 + number)
    replica.apply(delete("k0"), at_ms=10**9, term=5)
    replica.apply(Command(compact=CompactionRequest(revision=4)), at_ms=0x0102030405, term=5)
    while replica.applier.work():
        pass
    replica.turn()
    return replica.storage


def _meta_forms() -> list[Form]:
    def begin() -> MemoryStorage:
        storage = founded()
        for key in (b"applied_index", b"applied_term"):
            storage.writer().put(META, key, (1).to_bytes(8, "big"))
        storage.commit()
        return storage

    def applier(name: str) -> Callable[[Parts], object]:
        def look(parts: Parts) -> object:
            storage = begin()
            storage.writer().put(META, *content_of(META, parts))
            storage.commit()
            found = Applier(storage, Roster(), lambda *_: None)
            with storage.read() as txn:
                index, term = found.applied_of(txn)
            return {
                "applied_index": index, "applied_term": term, "log_time_ms": found.log_time_ms,
                "feature_level": found.feature_level, "compaction_done": found.compacted_to,
            }[name]  # fmt: skip

        return look

    forms = [
        Form(f"meta: {name}", applier(name), means, row_of(META, name.encode(), _counted))
        for name, means in (
            ("applied_index", 10), ("applied_term", 5), ("log_time_ms", 0x0102030405),
            ("feature_level", 2), ("compaction_done", 4),
        )
    ]  # fmt: skip
    forms += [
        row_form(META, "revision", b"revision", _counted, current_revision, 8),
        row_form(
            META, "compacted_revision", b"compacted_revision", _counted, compacted_revision, 4
        ),
    ]
    forms.append(_digests_form())
    return forms


def _digests_form() -> Form:
    sums = {db: 0x0102030405060708 + place for place, db in enumerate(DIGESTED)}

    def read(parts: Parts) -> object:
        _, content = content_of(META, parts)
        return {db.name.decode(): value for db, value in decode_digests(content).items()}

    def make() -> Parts:
        row = seal(DIGESTS_KEY, encode_digests(sums))
        return {"key": DIGESTS_KEY, "row": row}

    means = {db.name.decode(): value for db, value in sums.items()}
    return Form("meta: digests", read, means, make)


# ---------------------------------------------------------------------- members, alarms, the node

MEMBERS: Final = (
    Member(id=0xA1, name="n1", peer_address="127.0.0.1:2380", incarnation=0x1111111111111111),
    Member(
        id=0xFFEE000000000001, name="n2", peer_address="[::1]:2380", learner=True,
        incarnation=0x2222222222222222, promote_in_step=True,
    ),
)  # fmt: skip

IDENTITY_MEANS: Final = Identity(
    cluster_id=0xC1, member_id=0xA1, name="n1", incarnation=0x1111111111111111,
    pins={0xA1: 0x1111111111111111}, established=True, recovered=True,
)  # fmt: skip

JOINING: Final = Identity(name="n1", incarnation=1, joining=True, lost_disk=True)

PUBLISHED: Final = PublishMember(
    id=0xA1, client_urls=["http://127.0.0.1:2379", "http://n1:2379"], version="0.1.0",
    feature_level=2, out_of_space=True,
)  # fmt: skip


PUBLISHED_3: Final = PublishMember(
    id=0xA1, client_urls=["http://127.0.0.1:2379"], version="0.2.0", feature_level=3,
)  # fmt: skip
"""Of a later version."""


def configuration() -> Configuration:
    return Configuration(7, 0xC1, {MemberId(each.id): each for each in MEMBERS})


def _identity_form(what: str, identity: Identity) -> Form:
    def find() -> MemoryStorage:
        storage = MemoryStorage()
        store_identity(storage, identity)
        storage.commit()
        return storage

    return row_form(IDENTITY, what, b"identity", find, load_identity, identity)


def _member_forms() -> list[Form]:
    def load(txn: ReadTxn) -> object:
        roster = Roster()
        roster.load(txn)
        return roster.all_published

    def alarms(txn: ReadTxn) -> object:
        found = Alarms()
        found.load(txn)
        return found.raised

    def raised(by_itself: bool, kind: int) -> Callable[[], MemoryStorage]:
        request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=0xA1, alarm=kind)  # type: ignore[arg-type]
        command = ChangeAlarm(request=request, by_itself=by_itself)
        return written(lambda txn: void(Alarms().change(txn, command)))

    key = (0xA1).to_bytes(8, "big")
    return [
        row_form(
            CLUSTER, "two members, one of them a learner", b"membership",
            written(lambda txn: store_configuration(txn, configuration())),
            load_configuration, configuration(),
        ),
        row_form(
            MEMBER, "what a member publishes", key,
            written(lambda txn: Roster().publish(txn, PUBLISHED)), load, {0xA1: PUBLISHED},
        ),
        row_form(
            MEMBER, "what a member publishes, level 3", key,
            written(lambda txn: Roster().publish(txn, PUBLISHED_3)), load, {0xA1: PUBLISHED_3},
        ),
        row_form(
            ALARM, "NOSPACE, raised by hand", key + b"\1", raised(False, NOSPACE), alarms,
            {Alarm(MemberId(0xA1), NOSPACE): False},
        ),
        row_form(
            ALARM, "CORRUPT, raised by the cluster", key + b"\2", raised(True, CORRUPT), alarms,
            {Alarm(MemberId(0xA1), CORRUPT): True},
        ),
        _identity_form("identity, of a member", IDENTITY_MEANS),
        _identity_form("identity, of a node that waits to be taken in", JOINING),
    ]  # fmt: skip


def void(_: object) -> None:
    """Nothing is done with it."""


LINEAGE: Final = 0x8123456789ABCDEF


def _in_lmdb(
    use: Callable[[LmdbStorage], object], *, then: Callable[[LmdbStorage], object]
) -> object:
    """What `then` says of an environment that was closed after `use`."""
    with TemporaryDirectory() as folder:
        with contextlib.closing(LmdbStorage(Path(folder))) as storage:
            use(storage)
        with contextlib.closing(LmdbStorage(Path(folder))) as storage:
            return then(storage)


def _begin_log(storage: LmdbStorage) -> None:
    with patch("kvserver.storage.env.secrets.randbits", return_value=LINEAGE & ~(1 << 63)):
        storage.begin_log(b"", [(b"\1", 1, 1)])
    storage.commit()


def _node_form(what: str, key: bytes, ask: Callable[[LmdbStorage], object], means: object) -> Form:
    """A row that the environment writes and reads by itself."""

    def found(storage: LmdbStorage) -> bytes:
        with storage.read() as txn:
            row = txn.get(IDENTITY, key)
        assert row is not None
        return row

    def make() -> Parts:
        content = _in_lmdb(_begin_log, then=found)
        assert isinstance(content, bytes)
        return {"key": key, "row": seal(key, content)}

    def read(parts: Parts) -> object:
        def use(storage: LmdbStorage) -> None:
            _begin_log(storage)
            storage.writer().put(IDENTITY, *content_of(IDENTITY, parts))
            storage.commit()

        return _in_lmdb(use, then=ask)

    return Form(f"identity: {what}", read, means, make)


def _node_forms() -> list[Form]:
    return [
        _node_form("format", b"format", lambda storage: storage.log.last_index, 1),
        _node_form("generation", b"generation", lambda storage: storage.log.last_index, 1),
        _node_form(
            "log", b"log", lambda storage: (storage.log.lineage, storage.log.synced), (LINEAGE, 1)
        ),
    ]


FORMS: Final = (
    *_kv_forms(), *_lease_forms(), *session_forms(), *_meta_forms(), *_member_forms(),
    *_node_forms(),
)  # fmt: skip
