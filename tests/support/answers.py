"""What a store answers, compared with what is true. The first wrong answer is raised."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from random import Random

from support.reading import holds, read_range
from support.served import Machine, Sound, batch_of
from support.truth import Event, Truth

from kvpb.kv_pb2 import KeyValue
from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import Compare, PutRequest, PutResponse, RangeRequest, RequestOp, TxnRequest
from kvserver.mvcc.history import DELETE, changes_since, compacted_revision
from kvserver.mvcc.keyvalue import Row
from kvserver.mvcc.leases import find_lease, keys_of, leases_after
from kvserver.mvcc.store import Writer, current_revision
from kvserver.pipeline.features import FEATURE_LEVEL
from kvserver.raft.identity import load_identity
from kvserver.raft.journal import load_configuration
from kvserver.storage.contract import ReadTxn
from kvserver.storage.env import LmdbStorage

FIRST, END = b"\0", b"\0"
PAGE_KEYS = 700


class WrongError(Exception):
    """A client would be told what is not true."""


def expect(found: object, true: object, what: str) -> None:
    if found != true:
        raise WrongError(f"{what}: {str(found)[:200]} instead of {str(true)[:200]}")


def row_of(kv: KeyValue) -> Row:
    return Row(kv.create_revision, kv.mod_revision, kv.version, kv.lease, kv.value)


def absent_keys(truth: Truth) -> list[bytes]:
    """Keys that were deleted, and some that never were, between those that are."""
    never = [key + b"?" for key in islice(sorted(truth.rows), 0, None, 50)]
    return [*sorted(truth.gone), *never]


def check_state(txn: ReadTxn, truth: Truth) -> None:
    expect(current_revision(txn), truth.revision, "the revision")
    expect(compacted_revision(txn), truth.compacted, "the compacted revision")


def check_gets(txn: ReadTxn, truth: Truth, keys: Iterable[bytes]) -> None:
    for key in keys:
        found = read_range(txn, RangeRequest(key=key), truth.revision)
        expect([row_of(kv) for kv in found.kvs], [truth.rows[key]], f"get {key!r}")
    for key in absent_keys(truth):
        found = read_range(txn, RangeRequest(key=key), truth.revision)
        expect(found.count, 0, f"get of the absent {key!r}")


def check_lists(txn: ReadTxn, truth: Truth, revision: int = 0) -> None:
    """All keys page by page, in one list, and counted; at a revision of the past too."""
    rows = truth.moments[revision] if revision else truth.rows
    true = sorted(rows.items())
    found: list[tuple[bytes, Row]] = []
    key = FIRST
    while True:
        request = RangeRequest(key=key, range_end=END, limit=PAGE_KEYS, revision=revision)
        page = read_range(txn, request, truth.revision)
        expect(page.count, len(true) - len(found), f"the count from {key!r} on at {revision}")
        found += [(kv.key, row_of(kv)) for kv in page.kvs]
        if not page.more:
            break
        key = found[-1][0] + b"\0"
    _same_rows(found, true, f"the list at {revision}")
    everything = RangeRequest(key=FIRST, range_end=END, count_only=True, revision=revision)
    expect(read_range(txn, everything, truth.revision).count, len(true), "the count")


def _same_rows(found: list[tuple[bytes, Row]], true: list[tuple[bytes, Row]], what: str) -> None:
    for one, other in zip(found, true, strict=False):
        expect(one, other, what)
    expect(len(found), len(true), f"{what}: how many")


def check_history(txn: ReadTxn, truth: Truth) -> None:
    """What a watch from the compacted revision on would be told, and single keys of the past."""
    since = max(1, truth.compacted)
    true = [each for each in truth.events if each.revision >= since]
    found = [
        Event(each.revision, each.sub, each.key, None if each.kind == DELETE else each.row())
        for each in changes_since(txn, since)
    ]
    found = [each for each in found if each.revision >= since]
    for one, other in zip(found, true, strict=False):
        expect(one, other, "the history")
    expect(len(found), len(true), "changes in the history")
    for revision, rows in truth.moments.items():
        for key in islice(sorted(rows), 0, None, 97):
            reply = read_range(txn, RangeRequest(key=key, revision=revision), truth.revision)
            expect([row_of(kv) for kv in reply.kvs], [rows[key]], f"get {key!r} at {revision}")


def check_compares(txn: ReadTxn, truth: Truth, keys: Iterable[bytes]) -> None:
    for key in keys:
        row = truth.rows[key]
        for compare in (
            Compare(key=key, target=Compare.MOD, mod_revision=row.mod_revision),
            Compare(key=key, target=Compare.VALUE, value=row.value),
            Compare(key=key, target=Compare.LEASE, lease=row.lease),
            Compare(key=key, target=Compare.VERSION, result=Compare.GREATER, version=0),
        ):
            expect(holds(txn, compare), true=True, what=f"compare {compare}")
    for key in absent_keys(truth):
        compare = Compare(key=key, target=Compare.CREATE, create_revision=0)
        expect(holds(txn, compare), true=True, what=f"compare {compare}")


def check_leases(txn: ReadTxn, truth: Truth) -> None:
    expect(dict(leases_after(txn, None)), truth.leases, "the leases")
    for lease, row in truth.leases.items():
        expect(find_lease(txn, lease), row, f"lease {lease}")
        expect(list(keys_of(txn, lease)), truth.keys_of(lease), f"the keys of lease {lease}")


@contextmanager
def undone(storage: LmdbStorage) -> Iterator[None]:
    """Forget what is changed meanwhile, and that it was counted."""
    storage.commit()
    sums = dict(storage._ledger.sums)
    yield
    if storage._open is not None:
        storage._open.abort()
        storage._open = None
    storage._ledger.sums = sums


def check_creates(storage: LmdbStorage, truth: Truth, keys: Iterable[bytes]) -> None:
    """Create-if-absent of keys that are there does nothing, of others it does. All is undone."""
    with undone(storage):
        writer = Writer(storage.writer(), truth.revision, truth.log_time_ms)
        for key in keys:
            reply = writer.txn(_create_if_absent(key))
            expect(reply.succeeded, true=False, what=f"create-if-absent of {key!r}")
            kvs = reply.responses[0].response_range.kvs
            expect([row_of(kv) for kv in kvs], [truth.rows[key]], f"get of {key!r} in a txn")
        expect(writer.revision, truth.revision, "the revision after nothing was created")
        for key in absent_keys(truth):
            made = writer.txn(_create_if_absent(key)).succeeded
            expect(made, true=True, what=f"create-if-absent of the absent {key!r}")


def _create_if_absent(key: bytes) -> TxnRequest:
    return TxnRequest(
        compare=[Compare(key=key, target=Compare.CREATE, create_revision=0)],
        success=[RequestOp(request_put=PutRequest(key=key, value=b"created"))],
        failure=[RequestOp(request_range=RangeRequest(key=key))],
    )


def check_sessions(storage: LmdbStorage, truth: Truth) -> None:
    """Numbered writes that come again get the answer of the first time, and change nothing."""
    with undone(storage):
        machine = Machine(storage)
        for answered in truth.answered.values():
            commands: list[Command] = [each.command for each in answered.values()]
            results = machine.apply(batch_of(commands, machine.applier.log_time_ms))
            for result, told in zip(results, answered.values(), strict=True):
                found = result.header.revision if isinstance(result, PutResponse) else result
                expect(found, told.revision, f"the answer to {told.command.sequence} once more")
        expect(machine.applier.revision, truth.revision, "the revision after nothing new")


def check_node(txn: ReadTxn, machine: Machine, sound: Sound) -> None:
    """Who the node is, who the members are, what they have told and what is raised."""
    expect(machine.applier.log_time_ms, sound.truth.log_time_ms, "log time")
    found = load_identity(txn)
    expect(found and found.SerializeToString(deterministic=True), sound.identity, "the identity")
    expect(load_configuration(txn).payload(), sound.configuration, "the members")
    published = {
        member: told.SerializeToString(deterministic=True)
        for member, told in machine.roster.all_published.items()
    }
    expect(published, sound.published, "what members have told")
    expect(machine.applier.feature_level, FEATURE_LEVEL, "the feature level")
    expect(dict(machine.applier.alarms.raised), {sound.alarm: False}, "the alarms")


def sample(truth: Truth, count: int) -> list[bytes]:
    """Some of the keys that are there."""
    keys = sorted(truth.rows)
    return Random(truth.revision).sample(keys, min(count, len(keys)))
