"""The log: payloads of entries of every kind, and batches as they lie in its files."""

from typing import Final

from golden.form import Form, Parts
from golden.rows import LINEAGE, MEMBERS, PUBLISHED, PUBLISHED_3, configuration
from golden.sessions import SESSION_ID

from kvpb.raft_pb2 import (
    Caller,
    ChangeAlarm,
    Command,
    CommandBatch,
    ExpireLeases,
    HardState,
    Membership,
    PassTime,
    RenewLeases,
    SetFeatureLevel,
)
from kvpb.rpc_pb2 import (
    NOSPACE,
    AlarmRequest,
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.raft.entry import MEMBERSHIP, NO_OP, REGULAR
from kvserver.raft.membership import configuration_of
from kvserver.storage.contract import LogEntry
from kvserver.storage.log_batch import ENTRY_BYTES, Batch, BatchCodec, decode_entry

_PUT: Final = PutRequest(key=b"k", value=b"v\x00", lease=5, prev_kv=True)
_RANGE: Final = RangeRequest(
    key=b"k", range_end=b"l", limit=3, revision=2, sort_order=RangeRequest.DESCEND,
    sort_target=RangeRequest.MOD, serializable=True, keys_only=True, count_only=True,
    min_mod_revision=4, max_mod_revision=5, min_create_revision=6, max_create_revision=7,
)  # fmt: skip
_DELETE: Final = DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True)
_TXN: Final = TxnRequest(
    compare=[
        Compare(result=Compare.GREATER, target=Compare.VERSION, key=b"a", version=1),
        Compare(result=Compare.LESS, target=Compare.CREATE, key=b"a", create_revision=2),
        Compare(result=Compare.NOT_EQUAL, target=Compare.MOD, key=b"a", mod_revision=3),
        Compare(target=Compare.VALUE, key=b"a", range_end=b"b", value=b"v"),
        Compare(target=Compare.LEASE, key=b"a", lease=-4),
    ],
    success=[RequestOp(request_put=_PUT), RequestOp(request_range=_RANGE)],
    failure=[
        RequestOp(request_delete_range=_DELETE),
        RequestOp(request_txn=TxnRequest(failure=[RequestOp(request_put=_PUT)])),
    ],
)
_ALARM: Final = AlarmRequest(action=AlarmRequest.DEACTIVATE, memberID=0xA1, alarm=NOSPACE)

COMMANDS: Final = {
    "put": Command(put=_PUT),
    "put that keeps value and lease": Command(
        put=PutRequest(key=b"k", ignore_value=True, ignore_lease=True)
    ),
    "delete_range": Command(delete_range=_DELETE),
    "txn": Command(txn=_TXN),
    "compact": Command(compact=CompactionRequest(revision=9, physical=True)),
    "publish_member": Command(publish_member=PUBLISHED),
    "set_feature_level": Command(set_feature_level=SetFeatureLevel(level=2)),
    "lease_grant": Command(lease_grant=LeaseGrantRequest(TTL=60, ID=5)),
    "lease_revoke": Command(lease_revoke=LeaseRevokeRequest(ID=5)),
    "renew_leases": Command(renew_leases=RenewLeases(ids=[5, 1 << 62])),
    "expire_leases": Command(expire_leases=ExpireLeases(term=3, ids=[5, 6])),
    "pass_time": Command(pass_time=PassTime()),
    "change_alarm": Command(change_alarm=ChangeAlarm(request=_ALARM, by_itself=True)),
    "open_session": Command(open_session=LeaseGrantRequest(TTL=60, ID=SESSION_ID)),
    "numbered put": Command(session=SESSION_ID, sequence=300, done_to=299, put=_PUT),
}


CALLED: Final = Command(caller=Caller(user="alice"), put=_PUT)
LEVEL_3: Final = (
    Command(set_feature_level=SetFeatureLevel(level=3)),
    Command(publish_member=PUBLISHED_3),
)


def _regular(name: str, *commands: Command, format: int = 1) -> Form:  # noqa: A002 - as the field
    batch = CommandBatch(format=format, log_time_ms=0x0102030405, commands=commands)
    return Form(
        f"entry: {name}",
        lambda parts: (parts["bytes"][:1] == REGULAR, CommandBatch.FromString(parts["bytes"][1:])),
        (True, batch),
        lambda: {"bytes": REGULAR + batch.SerializeToString()},
    )


def _entry_forms() -> list[Form]:
    forms = [_regular(name, command) for name, command in COMMANDS.items()]
    forms.append(_regular("three commands", *list(COMMANDS.values())[:3]))
    forms.append(_regular("no commands"))
    forms.append(_regular("format 2, put", Command(put=_PUT), format=2))
    forms.append(_regular("format 2, with a caller", CALLED, format=2))
    forms.append(_regular("format 2, level 3", *LEVEL_3, format=2))
    forms.append(
        Form("entry: no operation", lambda p: p["bytes"] == NO_OP, True, lambda: {"bytes": NO_OP})
    )
    forms.append(
        Form(
            "entry: membership",
            lambda parts: (
                parts["bytes"][:1] == MEMBERSHIP,
                configuration_of(7, parts["bytes"]),
                Membership.FromString(parts["bytes"][1:]),
            ),
            (True, configuration(), Membership(cluster_id=0xC1, members=MEMBERS)),
            lambda: {"bytes": configuration().payload()},
        )
    )
    return forms


STATE: Final = HardState(term=7, voted_for=0xA1, commit_index=300)
CHAINED: Final = HardState(term=7, voted_for=0xA1, commit_index=300, chain=0xCAFEF00D)
_BATCHES: Final[dict[str, tuple[int, int | None, list[LogEntry]]]] = {
    "the first one, an entry": (1, None, [(NO_OP, 1, 0)]),
    "term and vote alone": (2, 0xDEADBEEF, []),
    "three entries": (
        1 << 40, 1,
        [(REGULAR + bytes(range(256)), 300, 6), (NO_OP, 301, 7), (REGULAR, 302, 7)],
    ),
}  # fmt: skip
"""What it is -> number, checksum of the one before (None: the seed of the lineage), entries."""


def parse(data: bytes) -> Batch:
    """A recorded batch."""
    batch = BatchCodec(LINEAGE).parse(data, 0)
    assert batch is not None
    assert batch.end == len(data)
    return batch


def _batch_form(
    name: str, state: HardState, number: int, previous: int | None, entries: list[LogEntry]
) -> Form:
    codec = BatchCodec(LINEAGE)
    before = codec.seed if previous is None else previous

    def read(parts: Parts) -> object:
        data = parts["bytes"]
        batch = parse(data)
        found = [
            decode_entry(data[at : at + ENTRY_BYTES + size], index)
            for index, at, size in batch.places
        ]
        return batch.number, batch.previous, HardState.FromString(batch.state), found

    return Form(
        f"batch: {name}", read, (number, before, state, entries),
        lambda: {"bytes": codec.encode(number, before, state.SerializeToString(), entries)[0]},
    )  # fmt: skip


FORMS: Final = (
    *_entry_forms(), *(_batch_form(name, STATE, *batch) for name, batch in _BATCHES.items()),
    _batch_form("with a chain", CHAINED, 3, 0xDEADBEEF, [(NO_OP, 300, 7)]),
)  # fmt: skip
