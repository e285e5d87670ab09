"""Committed entries become state: decode, change, and remember how far, in the turn's transaction.

Step 8 of a put (ARCHITECTURE.md). The same code runs on the active and on every standby, so it is
deterministic: nothing but the entry and the state decides. Raft thread.

Invariant: applied index, revision and log time are written with the effects they belong to.
"""

import contextlib
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from kvpb.raft_pb2 import Command, CommandBatch, ExpireLeases
from kvpb.rpc_pb2 import LeaseRevokeRequest
from kvserver.errors import LeaseNotFoundError, LogNotUnderstoodError, RequestError
from kvserver.mvcc.history import Change, Compactor, compacted_revision
from kvserver.mvcc.leases import LeaseChange
from kvserver.mvcc.pace import Pace
from kvserver.mvcc.sessions import KEPT_BYTES_MAX, Answer
from kvserver.mvcc.store import Writer, current_revision
from kvserver.pipeline.alarms import Alarms
from kvserver.pipeline.features import (
    BATCH_FORMATS,
    DIGESTS_LEVEL,
    ERROR_NUMBER_LEVEL,
    LIMITS_LEVEL,
    check_level,
)
from kvserver.pipeline.moments import Moment, Moments, digests_of
from kvserver.pipeline.outcome import Result
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.journal import load_configuration
from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.schema import META

_APPLIED_INDEX: Final = b"applied_index"
_APPLIED_TERM: Final = b"applied_term"
_LOG_TIME_MS: Final = b"log_time_ms"
_FEATURE_LEVEL: Final = b"feature_level"
_COMPACTION_DONE: Final = b"compaction_done"

COMPACTED_PER_TURN: Final = 500
"""Changes looked at in one turn while old ones are removed."""


class Applier:
    """The state machine of one node."""

    def __init__(
        self,
        storage: Storage,
        roster: Roster,
        on_applied: Callable[[int, int, list[Result], list[Change], list[LeaseChange]], None],
        pace: Pace | None = None,
    ) -> None:
        """Go on from what is on disk.

        Args:
            storage: of the node.
            roster: told what members publish.
            on_applied: index, term, results, changed rows and leases of each applied batch.
            pace: shows that an entry which takes long goes on; None for one of its own.
        """
        self.awaited: Callable[[int], bool] = lambda _: True
        """Whether somebody here waits for what is answered to the entry with this index. If nobody
        does the answers are not built."""
        self.pace = pace or Pace()
        self._storage = storage
        self._roster = roster
        self._on_applied = on_applied
        self.alarms = Alarms()
        """That are raised as of the newest applied entry; any thread may look."""
        self.moments = Moments()
        self.reload()

    def reload(self) -> None:
        """Go on from what the storage holds now."""
        with self._storage.read() as txn:
            self.applied_index, self._applied_term = self.applied_of(txn)
            """Invariant: rises by one with every entry."""
            stored_time = txn.get(META, _LOG_TIME_MS)
            self.log_time_ms = _number(stored_time) if stored_time else 0
            """Stamp of the newest applied batch. Invariant: never goes back."""
            self.feature_level = feature_level_of(txn)
            """What the log may hold. Invariant: never falls; every member understands it."""
            self.revision = current_revision(txn)
            """Of the newest applied change; any thread may look."""
            self._roster.load(txn)
            self.alarms.load(txn)
            self._find_compaction(txn)
            self.moments.clear()
            # the members are written behind the effects of their entry, see `apply`
            if load_configuration(txn).index != self.applied_index:
                self._remember(txn)
        check_level(self.feature_level)
        self._keep_digests()
        self._staged_index = self.applied_index

    @property
    def disqualified(self) -> frozenset[MemberId]:
        """Members whose state must not be served."""
        return self.alarms.corrupt

    def shadow(self, storage: Storage) -> "Applier":
        """One like this for a copy of its storage, which tells nobody what it does."""
        shadow = type(self)(storage, Roster(), on_applied=lambda *_: None, pace=self.pace)
        shadow.awaited = lambda _: False
        return shadow

    def moved(self) -> None:
        """The storage holds the same state in another place: what to remove there is found anew."""
        with self._storage.read() as txn:
            self._find_compaction(txn)

    def _find_compaction(self, txn: ReadTxn) -> None:
        stored_done = txn.get(META, _COMPACTION_DONE)
        self.compacted_to = _number(stored_done) if stored_done else 0
        """What lies before this revision is removed from this node's disk."""
        self._compacted = compacted = compacted_revision(txn)
        self._compactor = Compactor(compacted) if compacted > self.compacted_to else None

    def applied_of(self, txn: ReadTxn) -> tuple[int, int]:
        """Index and term of the newest entry whose effects a state holds."""
        index, term = txn.get(META, _APPLIED_INDEX), txn.get(META, _APPLIED_TERM)
        if index is None or term is None:
            return load_configuration(txn).index, 0
        return _number(index), _number(term)

    def apply(self, index: int, term: int, batch: bytes | None) -> None:
        """Apply one entry; None for one that changes no state.

        Raises:
            LogNotUnderstoodError: a newer version wrote it; this one must not guess.
        """
        assert index == self.applied_index + 1, (index, self.applied_index)
        self.applied_index, self._applied_term = index, term
        if batch is not None:
            self._apply_batch(index, term, batch)
        self._remember(self._storage.writer())

    def _remember(self, txn: ReadTxn) -> None:
        """Note what the state is like now: all effects of the newest entry are written.

        But not who the members are, if it is an entry that says so: that is written behind it, on
        every node.
        """
        digests = txn.digests() if self.feature_level >= DIGESTS_LEVEL else None
        told = () if digests is None else digests_of(
            digests, revision=self.revision, compacted=self._compacted,
            log_time_ms=self.log_time_ms, level=self.feature_level,
        )  # fmt: skip
        tidy = self._compactor is None
        self.moments.add(Moment(self.applied_index, self.revision, tidy, told))

    def _apply_batch(self, index: int, term: int, batch: bytes) -> None:
        commands = self._decode(index, batch)
        txn = self._storage.writer()
        writer = Writer(txn, self.revision, commands.log_time_ms, self.pace)
        awaited = self.awaited(index)
        writer.expect([each.put.key for each in commands.commands if each.HasField("put")])
        if sessions := {each.session for each in commands.commands if each.session}:
            writer.sessions.expect(sessions)
        results = []
        for command in commands.commands:
            # limits as of the command: the level may rise within the batch, for all members alike
            writer.limited = self.feature_level >= LIMITS_LEVEL
            if not awaited:
                writer.answer_bytes_max = KEPT_BYTES_MAX if command.session else 0
            results.append(self._result(writer, command, index, term))
        writer.flush()
        self.revision = writer.revision
        self._on_applied(index, term, results, writer.changes, writer.leases.changes)

    def _decode(self, index: int, batch: bytes) -> CommandBatch:
        try:
            commands = CommandBatch.FromString(batch)
        except DecodeError as error:
            raise LogNotUnderstoodError(f"log entry {index} can't be read: {error}") from error
        if commands.format not in BATCH_FORMATS:
            raise LogNotUnderstoodError(
                f"log entry {index} has format {commands.format}, this kvserver knows "
                f"{BATCH_FORMATS[-1]}; start the version that wrote it"
            )
        assert commands.log_time_ms >= self.log_time_ms
        self.log_time_ms = commands.log_time_ms
        return commands

    def _result(self, writer: Writer, command: Command, index: int, term: int) -> Result:
        if not command.session:
            return self._execute(writer, command, index, term)
        try:
            before = writer.sessions.answered(command)
        except RequestError as error:
            return error
        if before is not None:
            return before
        result = self._execute(writer, command, index, term)
        assert isinstance(result, RequestError | Answer)
        numbered_errors = self.feature_level >= ERROR_NUMBER_LEVEL
        writer.sessions.keep(command, result, numbered_errors=numbered_errors)
        return result

    def _execute(self, writer: Writer, command: Command, index: int, term: int) -> Result:
        try:
            match command.WhichOneof("request"):
                case "put":
                    return writer.put(command.put)
                case "delete_range":
                    return writer.delete_range(command.delete_range)
                case "txn":
                    return writer.txn(command.txn)
                case "compact":
                    response = writer.compact(command.compact)
                    self._compacted = command.compact.revision
                    self._compactor = Compactor(self._compacted)
                    return response
                case None:
                    raise LogNotUnderstoodError(
                        f"log entry {index} holds a command of a newer kvserver; start that version"
                    )
                case _:
                    return self._execute_rest(writer, command, term)
        except RequestError as error:
            return error

    def _execute_rest(self, writer: Writer, command: Command, term: int) -> Result:
        """What does not come from the KV service."""
        match command.WhichOneof("request"):
            case "lease_grant":
                return writer.grant(command.lease_grant)
            case "open_session":
                return writer.open_session(command.open_session)
            case "lease_revoke":
                return writer.revoke(command.lease_revoke)
            case "renew_leases":
                writer.leases.renew(command.renew_leases.ids)
            case "expire_leases":
                _expire(writer, command.expire_leases, term)
            case "publish_member":
                self._roster.publish(self._storage.writer(), command.publish_member)
            case "set_feature_level":
                self._raise_level(command.set_feature_level.level)
            case "change_alarm":
                return self.alarms.change(self._storage.writer(), command.change_alarm)
            case "pass_time":
                pass  # the stamp of its batch is all there is to it
            case kind:
                raise AssertionError(f"nobody applies {kind}")
        return None

    def _raise_level(self, level: int) -> None:
        check_level(level)
        self.feature_level = max(self.feature_level, level)
        row = self.feature_level.to_bytes(8, "big")
        self._storage.writer().put(META, _FEATURE_LEVEL, row)
        self._keep_digests()

    def _keep_digests(self) -> None:
        if self.feature_level >= DIGESTS_LEVEL:
            self._storage.keep_digests()

    def work(self) -> bool:
        """Do a little of what is to be done at leisure; True if there was something.

        Each node removes compacted changes at its own pace: nothing that can be read depends on it.
        """
        compactor = self._compactor
        if compactor is None:
            return False
        txn = self._storage.writer()
        if compactor.step(txn, COMPACTED_PER_TURN):
            self._compactor = None
            self.compacted_to = compactor.revision
            txn.put(META, _COMPACTION_DONE, compactor.revision.to_bytes(8, "big"))
        return True

    def stage(self) -> bool:
        """Write how far the state is; False if nothing was applied since the last time."""
        if self.applied_index == self._staged_index:
            return False
        self._staged_index = self.applied_index
        self._storage.writer().put_many(
            META,
            (
                (_APPLIED_INDEX, self.applied_index.to_bytes(8, "big")),
                (_APPLIED_TERM, self._applied_term.to_bytes(8, "big")),
                (_LOG_TIME_MS, self.log_time_ms.to_bytes(8, "big")),
            ),
        )
        return True


def feature_level_of(txn: ReadTxn) -> int:
    """What the log of a state may hold."""
    stored = txn.get(META, _FEATURE_LEVEL)
    return _number(stored) if stored else 0


def _expire(writer: Writer, expiry: ExpireLeases, term: int) -> None:
    """End leases whose time is up, each as a revision of its own.

    Load-bearing: void in another term than that of the active which decided it. It can't know what
    its successor has promised meanwhile.
    """
    if expiry.term != term:
        return
    for lease in expiry.ids:
        with contextlib.suppress(LeaseNotFoundError):  # it was revoked meanwhile
            writer.revoke(LeaseRevokeRequest(ID=lease))


def _number(row: bytes) -> int:
    return int.from_bytes(row, "big")
