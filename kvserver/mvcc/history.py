"""What was: every change since the last compaction, by revision and by key.

A change is one event in `history`; `key_history` says for each key in which revisions it changed.
`kv` holds the newest state by itself, so that nothing here is touched by reads of it.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from kvserver.errors import CompactedError, FutureRevisionError
from kvserver.mvcc.keyvalue import Row, decode_row
from kvserver.storage.contract import ReadTxn, WriteTxn
from kvserver.storage.rows import damaged
from kvserver.storage.schema import HISTORY, KEY_HISTORY, META

_MOMENT: Final = struct.Struct(">QI")
_HEAD: Final = struct.Struct(">BH")

_LAST: Final = b"\xff" * (_MOMENT.size + 1)

PUT: Final = 0
DELETE: Final = 1

_COMPACTED: Final = b"compacted_revision"


class Change(NamedTuple):
    """One key changed in one revision."""

    revision: int
    sub: int
    """Place among the changes of the revision, from 0."""
    kind: int
    """PUT or DELETE."""
    key: bytes
    stored: bytes
    """The new row as in `kv`; empty for a deletion."""
    previous: bytes = b""
    """The row before, if there was one and it is at hand: not in the history."""

    def row(self) -> Row:
        """The new row, of a put."""
        return decode_row(self.stored)


def write_changes(txn: WriteTxn, changes: Iterable[Change]) -> None:
    """Remember changes, in the order in which they were made."""
    moments = [(_MOMENT.pack(each.revision, each.sub), each) for each in changes]
    txn.put_many(
        HISTORY,
        [
            (at, _HEAD.pack(each.kind, len(each.key)) + each.key + each.stored)
            for at, each in moments
        ],
        fresh=True,
    )
    marks = [(each.key, at + bytes([each.kind])) for at, each in moments]
    txn.put_many(KEY_HISTORY, marks, fresh=True)


def compacted_revision(txn: ReadTxn) -> int:
    """Older revisions than this can't be read any more; -1 before the first compaction, as etcd."""
    stored = txn.get(META, _COMPACTED)
    return int.from_bytes(stored, "big") if stored else -1


def set_compacted_revision(txn: WriteTxn, revision: int) -> None:
    """From now on older revisions can't be read."""
    txn.put(META, _COMPACTED, revision.to_bytes(8, "big"))


def check_revision(txn: ReadTxn, wanted: int, current: int) -> None:
    """Raise if `wanted` can't be read.

    Raises:
        FutureRevisionError, CompactedError: as etcd.
    """
    if wanted > current:
        raise FutureRevisionError
    if 0 < wanted < current and wanted < compacted_revision(txn):
        raise CompactedError


def row_at(txn: ReadTxn, key: bytes, revision: int) -> Row | None:
    """The row of a key as it was at a revision, None if there was none."""
    moment = _living_moment(txn, key, revision)
    return None if moment is None else _change(moment, txn.get(HISTORY, moment)).row()


def newest_revision_of(txn: ReadTxn, key: bytes) -> int:
    """Revision of the newest change of a key that is kept, 0 if there is none."""
    last = txn.last_value(KEY_HISTORY, key, _LAST)
    return 0 if last is None else int(_MOMENT.unpack_from(last)[0])


def keys_at(
    txn: ReadTxn, lo: bytes, hi: bytes | None, revision: int
) -> Iterator[tuple[bytes, bytes | None]]:
    """Keys of an interval that ever were; with where to find their rows if they were then."""
    for key in txn.keys(KEY_HISTORY, lo, hi):
        yield key, _living_moment(txn, key, revision)


def row_of_moment(txn: ReadTxn, key: bytes, moment: bytes) -> Row:
    """The row that `keys_at` has found."""
    change = _change(moment, txn.get(HISTORY, moment))
    assert change.key == key
    return change.row()


def _living_moment(txn: ReadTxn, key: bytes, revision: int) -> bytes | None:
    last = txn.last_value(KEY_HISTORY, key, _MOMENT.pack(revision + 1, 0))
    return None if last is None or last[-1] == DELETE else last[:-1]


def previous_row(txn: ReadTxn, change: Change) -> Row | None:
    """The row before a change of the past, None if there was none or it is compacted.

    However far the removal of what is compacted is on this node.
    """
    if change.revision - 1 < compacted_revision(txn):
        return None
    return row_at(txn, change.key, change.revision - 1)


def changes_since(txn: ReadTxn, revision: int) -> Iterator[Change]:
    """All changes from `revision` on, in order."""
    for at, stored in txn.scan(HISTORY, _MOMENT.pack(revision, 0)):
        yield _change(at, stored)


def entries_of(txn: ReadTxn, key: bytes, since: bytes, revision: int) -> Iterator[bytes]:
    """What the index has of a key up to `revision`, in order, from the entry `since` on."""
    return txn.values(KEY_HISTORY, key, since, _MOMENT.pack(revision + 1, 0))


def moment_of(entry: bytes) -> bytes:
    """Where `history` has the change of an entry of the index."""
    return entry[: _MOMENT.size]


def is_newer(entry: bytes, revision: int) -> bool:
    """True for an entry of a change after `revision`."""
    changed_in: int = _MOMENT.unpack_from(entry)[0]
    return changed_in > revision


def is_kept(txn: ReadTxn, key: bytes, entry: bytes, compacted: int, revision: int) -> bool:
    """True for a change that a compaction at `compacted` leaves, as seen from a later revision.

    Of what is not newer than the compaction that is only what is part of the state at `revision`.
    It does not depend on how far a node has come with the removal of the rest.

    Args:
        txn: what to look at.
        key: that was changed.
        entry: of the change in the index of the key.
        compacted: revision of the newest compaction.
        revision: not before it.
    """
    if is_newer(entry, compacted):
        return True
    newest = txn.last_value(KEY_HISTORY, key, _MOMENT.pack(revision + 1, 0))
    return entry == newest and entry[-1] == PUT


def stored_change(txn: ReadTxn, key: bytes, entry: bytes) -> bytes:
    """The stored form of a change, looked up as reads of its revision do.

    Raises:
        DataDirError: the index does not lead to it.
    """
    revision, sub = _MOMENT.unpack_from(entry)
    found = txn.last_value(KEY_HISTORY, key, _MOMENT.pack(revision, sub + 1))
    stored = txn.get(HISTORY, moment_of(entry))
    if found != entry or stored is None:
        raise damaged(f"a change of revision {revision} can't be found by its key {key!r}")
    return stored


def stored_changes(
    txn: ReadTxn, since: int | bytes, revision: int
) -> Iterator[tuple[bytes, bytes]]:
    """Moments and stored forms of all changes up to `revision`, in order.

    Args:
        txn: what to look at.
        since: first revision, or the moment of the first change.
        revision: last one.
    """
    lo = since if isinstance(since, bytes) else _MOMENT.pack(since, 0)
    return txn.scan(HISTORY, lo, _MOMENT.pack(revision + 1, 0))


def _change(at: bytes, stored: bytes | None) -> Change:
    if stored is None:
        raise damaged(f"the history lacks a change of revision {_MOMENT.unpack(at)[0]}")
    revision, sub = _MOMENT.unpack(at)
    kind, key_bytes = _HEAD.unpack_from(stored)
    key_end = _HEAD.size + key_bytes
    return Change(revision, sub, kind, stored[_HEAD.size : key_end], stored[key_end:])


class Compactor:
    """Removes what lies behind the compacted revision, a little at a time.

    Each node does it at its own pace; nobody can see how far it is.
    """

    def __init__(self, revision: int) -> None:
        """Remove what can't be read any more after a compaction at `revision`."""
        self.revision = revision
        self._kept_from = _MOMENT.pack(revision, 0)
        """Changes of the compacted revision itself stay, deletions too, until the next compaction:
        a watch may begin there."""
        self._at = b""

    def step(self, txn: WriteTxn, values_max: int) -> bool:
        """Look at up to `values_max` changes; True once everything was looked at.

        A key keeps the newest of its changes up to the compacted revision, unless that deleted it
        before that revision.
        """
        left = values_max
        end = _MOMENT.pack(self.revision + 1, 0)
        while left > 0:
            key = next(txn.keys(KEY_HISTORY, self._at), None)
            if key is None:
                return True
            seen = list(islice(txn.values(KEY_HISTORY, key, b"", end), left + 1))
            older = [value for value in seen if value < self._kept_from]
            # of a key with more than could be looked at the newest one seen is not its newest
            whole = len(older) <= left
            left -= len(older) + 1
            useless = whole and _is_useless(older, seen)
            for value in older if useless else older[:-1]:
                txn.delete_value(KEY_HISTORY, key, value)
                txn.delete(HISTORY, value[:-1])
            self._at = key + b"\0" if whole else key
        return False


def _is_useless(older: list[bytes], seen: list[bytes]) -> bool:
    """True if nobody reads the newest of the older changes of a key: it is gone, or replaced."""
    return bool(older) and (older[-1] != seen[-1] or older[-1][-1] == DELETE)
