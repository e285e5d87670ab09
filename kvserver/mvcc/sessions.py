"""Sessions: what numbered writes were answered, so that none is applied twice. Deterministic.

A session is a lease with a row of its own here. A write in it carries a number; when it comes again
it gets the answer of the first time, errors included, until its client is done with it.

Invariants, of each session:
- a number is applied once at most: only if it is above `done_to` and has no answer yet;
- `done_to` never falls, and no answer is kept that it covers;
- a session ends with its lease, and only with it; no write begins one.
"""

import struct
import zlib
from collections.abc import Collection, Mapping
from typing import Final

from google.protobuf.message import Message

from kvpb.raft_pb2 import Command, KeptAnswer, SessionRow
from kvpb.rpc_pb2 import DeleteRangeResponse, PutResponse, TxnResponse
from kvserver.errors import (
    ERROR_NUMBERS,
    AnswerTooLargeError,
    CompactedError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseNotFoundError,
    RequestError,
    SessionNotFoundError,
    WindowFullError,
    WriteForgottenError,
    WriteIdReusedError,
)
from kvserver.mvcc.leases import Leases
from kvserver.storage.contract import ReadTxn, WriteTxn
from kvserver.storage.schema import SESSION

WINDOW: Final = 1024
"""Numbers that may be in use, from the oldest that its client is not done with."""

KEPT_BYTES_MAX: Final = 8 << 10
"""Of one response."""

SESSION_BYTES_MAX: Final = 128 << 10
"""Of all responses of a session. Its row is read and written whole, perhaps those of a thousand
sessions in one batch; enough for a full window of answers to puts."""

_ID: Final = struct.Struct(">q")

Answer = PutResponse | DeleteRangeResponse | TxnResponse

_RESPONSES: Final[dict[str, type[Answer]]] = {
    "put": PutResponse, "delete_range": DeleteRangeResponse, "txn": TxnResponse,
}  # fmt: skip
"""What the writes that may be numbered are answered with."""

_NAMES: Final[Mapping[str, type[RequestError]]] = {
    "KeyNotFoundError": KeyNotFoundError,
    "LeaseNotFoundError": LeaseNotFoundError,
    "CompactedError": CompactedError,
    "FutureRevisionError": FutureRevisionError,
}
"""What answers name that were kept below the level of numbers: on disks for ever, whatever the
classes are called. No other error of a numbered write was kept by name."""

_NAME_OF: Final = {kind: name for name, kind in _NAMES.items()}
_NUMBER_OF: Final = {kind: number for number, kind in ERROR_NUMBERS.items()}


class _Session:
    """A row while a batch uses it."""

    def __init__(self, row: SessionRow) -> None:
        self.done_to = row.done_to
        self.answers = {kept.sequence: kept for kept in row.answers}
        self.bytes = sum(len(kept.response) for kept in row.answers)

    def done(self, up_to: int) -> None:
        if up_to > self.done_to:
            self.done_to = up_to
            self.answers = {n: kept for n, kept in self.answers.items() if n > up_to}
            self.bytes = sum(len(kept.response) for kept in self.answers.values())

    def row(self) -> SessionRow:
        kept = (self.answers[number] for number in sorted(self.answers))
        return SessionRow(done_to=self.done_to, answers=kept)


class Sessions:
    """The sessions as the commands of a batch see and change them."""

    def __init__(self, txn: WriteTxn, leases: Leases) -> None:
        self._txn = txn
        self._leases = leases
        self._known: dict[int, _Session | None] = {}
        """Sessions that were looked at; None for one that does not exist."""
        self._changed: set[int] = set()
        """Invariant: written when the batch ends, and all of them are known to exist."""

    def expect(self, sessions: Collection[int]) -> None:
        """Read the rows of these in one call (`Writer.expect` tells why)."""
        keys = {_ID.pack(session): session for session in sessions}
        self._known |= dict.fromkeys(sessions)
        for key, row in self._txn.get_many(SESSION, keys).items():
            self._known[keys[key]] = _Session(SessionRow.FromString(row))

    def begin(self, session: int) -> None:
        """Open the session of a lease that was just granted."""
        self._known[session] = _Session(SessionRow())
        self._changed.add(session)

    def end(self, session: int) -> None:
        """Its lease has ended."""
        self._known[session] = None
        self._changed.discard(session)
        self._txn.delete(SESSION, _ID.pack(session))

    def answered(self, command: Command) -> Answer | None:
        """The answer that a numbered write had before; None: it is to be applied.

        Raises:
            RequestError: it is not to be applied. That of the first time, or what is wrong.
        """
        session = self._find(command.session)
        if command.done_to > session.done_to:
            session.done(command.done_to)
            self._changed.add(command.session)
        if command.sequence <= session.done_to:
            raise WriteForgottenError
        kept = session.answers.get(command.sequence)
        if kept is not None:
            return _repeated(kept, command)
        if command.sequence > session.done_to + WINDOW:
            raise WindowFullError
        return None

    def keep(
        self,
        command: Command,
        answer: Message | RequestError,
        *,
        numbered_errors: bool,
    ) -> None:
        """What a numbered write was answered, now that it is applied.

        Args:
            command: the write.
            answer: its response, or the error with which it changed nothing. A response that was
                cut holds more than KEPT_BYTES_MAX all the same (`Writer.answer_bytes_max`).
            numbered_errors: whether an error is kept by number; all members must read that.
        """
        session = self._find(command.session)
        kept = KeptAnswer(sequence=command.sequence, digest=_digest(command))
        if isinstance(answer, RequestError) and numbered_errors:
            kept.error_number = _NUMBER_OF[type(answer)]
        elif isinstance(answer, RequestError):
            kept.error = _NAME_OF[type(answer)]
        else:
            room = min(KEPT_BYTES_MAX, SESSION_BYTES_MAX - session.bytes)
            if answer.ByteSize() <= room:
                kept.response = answer.SerializeToString(deterministic=True)
                session.bytes += len(kept.response)
            else:
                kept.too_large = True
        session.answers[command.sequence] = kept
        self._changed.add(command.session)

    def flush(self) -> None:
        """Write what was changed: one row for each session, for all commands of a batch."""
        if self._changed:
            rows = []
            for session in sorted(self._changed):
                row = self._find(session).row().SerializeToString(deterministic=True)
                rows.append((_ID.pack(session), row))
                self._leases.live_on(session)
            self._txn.put_many(SESSION, rows)
            self._changed.clear()

    def _find(self, number: int) -> _Session:
        if number not in self._known:
            self.expect([number])
        session = self._known[number]
        if session is None:
            raise SessionNotFoundError
        return session


def _repeated(kept: KeptAnswer, command: Command) -> Answer:
    kind = command.WhichOneof("request")
    assert kind is not None
    if kept.digest != _digest(command):
        raise WriteIdReusedError
    match kept.WhichOneof("answer"):
        case "response":
            return _RESPONSES[kind].FromString(kept.response)
        case "error":
            raise _NAMES[kept.error]
        case "error_number":
            raise ERROR_NUMBERS[kept.error_number]
        case _:
            raise AnswerTooLargeError


def is_settled(txn: ReadTxn, command: Command) -> bool:
    """Whether a numbered write changes nothing any more, as far as a transaction sees.

    It was applied before, or its client has said that it is done with it. Neither is ever undone.
    """
    row = txn.get(SESSION, _ID.pack(command.session))
    if row is None:
        return False
    session = _Session(SessionRow.FromString(row))
    return command.sequence <= session.done_to or command.sequence in session.answers


def _digest(command: Command) -> int:
    """Of what is written, without its number and what else is done."""
    kind = command.WhichOneof("request")
    assert kind is not None
    request = getattr(command, kind).SerializeToString(deterministic=True)
    return zlib.crc32(request, zlib.crc32(kind.encode()))
