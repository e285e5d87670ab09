"""Rows of sessions: what is kept of numbered writes."""

import struct
from typing import Final

from golden.form import Form
from golden.row import row_form
from support.applying import Replica, put
from support.memory_storage import MemoryStorage, MemoryTxn

from kvpb.raft_pb2 import Command, SetFeatureLevel
from kvpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    TxnRequest,
)
from kvserver.api.status import status_of
from kvserver.errors import ERROR_NUMBERS, RequestError
from kvserver.mvcc.leases import Leases
from kvserver.mvcc.pace import Pace
from kvserver.mvcc.sessions import Sessions
from kvserver.mvcc.store import Writer
from kvserver.storage.contract import ReadTxn
from kvserver.storage.schema import (
    SESSION,
)

SESSION_ID: Final = 0x0102030405060708


def numbered(command: Command, sequence: int, done_to: int = 0) -> Command:
    command.session, command.sequence, command.done_to = SESSION_ID, sequence, done_to
    return command


WRITES: Final = {
    "put": Command(put=PutRequest(key=b"k", value=b"v")),
    "deletion": Command(delete_range=DeleteRangeRequest(key=b"k", prev_kv=True)),
    "transaction": Command(txn=TxnRequest()),
    "error": Command(put=PutRequest(key=b"k", value=b"v", lease=99)),
    "too large": Command(delete_range=DeleteRangeRequest(key=b"large", prev_kv=True)),
}
"""Numbered writes, by what is kept of them."""


ERROR_TEXTS: Final = {
    1: "etcdserver: key not found",
    2: "etcdserver: requested lease not found",
    3: "etcdserver: mvcc: required revision has been compacted",
    4: "etcdserver: mvcc: required revision is a future revision",
    5: "etcdserver: lease already exists",
    6: "kvserver: a write may look at 20000 keys in its compares, ranges and deletions with "
    "prev_kv, and answer with 16 MiB: read before it, or name fewer keys",
}
"""What clients are told of the errors that have a number: the text is part of the wire contract, so
it says what a number means, whatever the class is called."""


def session_of(*writes: Command, level: int = 2) -> MemoryStorage:
    """A session that was opened at log time 0, and what these writes of it leave."""
    replica = Replica()
    if level:
        replica.apply(Command(set_feature_level=SetFeatureLevel(level=level)))
    replica.apply(Command(open_session=LeaseGrantRequest(ID=SESSION_ID, TTL=60)))
    replica.apply(put("large", "x" * 9000), *writes)
    replica.storage.commit()
    return replica.storage


def repeated(txn: ReadTxn, command: Command) -> str:
    """What a numbered write is answered when it comes again."""
    sessions = Sessions(_writable(txn), Leases(_writable(txn), 0, Pace()))
    try:
        answer = sessions.answered(command)
    except RequestError as error:
        return type(error).__name__
    return "not answered yet" if answer is None else f"{type(answer).__name__} {answer}".strip()


def _writable(txn: ReadTxn) -> MemoryTxn:
    assert isinstance(txn, MemoryTxn)
    return txn


def session_forms() -> list[Form]:
    key = struct.pack(">q", SESSION_ID)
    found = {
        "put": "PutResponse header {\n  revision: 3\n}",
        "deletion": "DeleteRangeResponse header {\n  revision: 2\n}",
        "transaction": "TxnResponse header {\n  revision: 2\n}\nsucceeded: true",
        "error": "LeaseNotFoundError",
        "too large": "AnswerTooLargeError",
    }
    forms = [
        row_form(
            SESSION, "just opened", key, session_of,
            lambda txn: repeated(txn, numbered(Command(put=PutRequest(key=b"k")), 1)),
            "not answered yet",
        ),
        row_form(
            SESSION, "two answers, its client is done with the first 3 writes", key,
            lambda: session_of(
                numbered(_copy("put"), 3), numbered(_copy("put"), 4, 3), numbered(_copy("put"), 5)
            ),
            lambda txn: [repeated(txn, numbered(_copy("put"), number)) for number in (3, 4, 5)],
            [
                "WriteForgottenError",
                "PutResponse header {\n  revision: 4\n}",
                "PutResponse header {\n  revision: 5\n}",
            ],
        ),
    ]  # fmt: skip
    for what, means in found.items():
        forms.append(
            row_form(
                SESSION, f"the answer to a write: {what}", key,
                lambda what=what: session_of(numbered(_copy(what), 1)),  # type: ignore[misc]
                lambda txn, what=what: repeated(txn, numbered(_copy(what), 1)),  # type: ignore[misc]
                means,
            )
        )  # fmt: skip
    for number, text in ERROR_TEXTS.items():
        forms.append(
            row_form(
                SESSION, f"the answer to a write: error number {number}", key,
                lambda number=number: _kept_error(number),  # type: ignore[misc]
                lambda txn: status_of(_error_of(txn)).text, text,
            )
        )  # fmt: skip
    return forms


def _kept_error(number: int) -> MemoryStorage:
    """A session whose first write was answered with this error, from level 3 on."""
    storage = session_of()
    writer = Writer(storage.writer(), 2)
    write, error = numbered(_copy("put"), 1), ERROR_NUMBERS[number]()
    writer.sessions.keep(write, error, numbered_errors=True)
    writer.flush()
    storage.commit()
    return storage


def _error_of(txn: ReadTxn) -> RequestError:
    sessions = Sessions(_writable(txn), Leases(_writable(txn), 0, Pace()))
    try:
        sessions.answered(numbered(_copy("put"), 1))
    except RequestError as error:
        return error
    raise AssertionError("it was no error")


def _copy(what: str) -> Command:
    fresh = Command()
    fresh.CopyFrom(WRITES[what])
    return fresh
