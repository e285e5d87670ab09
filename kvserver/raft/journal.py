"""The durable raft log and hard state, over the log of the storage.

The newest entries are also kept in memory, up to a bound; older ones are read back from disk.

Conflict-only truncation: the library cuts off everything behind the entry a leader names, even if
it agrees with what the leader sends next. Here a cut only hides entries; `add` takes an equal entry
back without writing, a different one removes what it contradicts, and `settle` brings back the
rest.
"""

import struct
from dataclasses import dataclass
from typing import Final

from pysyncobj.journal import Journal

from kvpb import raft_pb2
from kvserver.raft.entry import Entry
from kvserver.raft.membership import Configuration, configuration_of, is_membership
from kvserver.storage.contract import ReadTxn, Storage, WriteTxn
from kvserver.storage.rows import damaged
from kvserver.storage.schema import CLUSTER

_INDEX: Final = struct.Struct(">Q")
_MEMBERSHIP_KEY: Final = b"membership"

CACHE_BYTES_MAX: Final = 32 << 20
CACHE_ENTRIES_MAX: Final = 8192
ENTRY_OVERHEAD_BYTES: Final = 24
"""What an entry takes on disk besides its payload, about."""


@dataclass(frozen=True)
class LogBounds:
    """How much of the log is kept behind what is applied, for peers that are a little behind."""

    keep_entries: int = 10_000
    keep_bytes: int = 64 << 20
    hold_entries: int = 50_000
    """For connected peers the log may grow to this, and not beyond: they get a copy then."""
    hold_bytes: int = 256 << 20
    trimmed_per_turn: int = 256


class SafetyError(AssertionError):
    """A step that would break a promise was about to be taken: the node must stop."""


def load_configuration(txn: ReadTxn) -> Configuration:
    """The configuration as of the applied index."""
    row = txn.get(CLUSTER, _MEMBERSHIP_KEY)
    if row is None:
        raise damaged("the data directory names no members")
    return configuration_of(_INDEX.unpack_from(row)[0], row[_INDEX.size :])


def store_configuration(txn: WriteTxn, configuration: Configuration) -> None:
    """Write the configuration as of the applied index."""
    txn.put(CLUSTER, _MEMBERSHIP_KEY, _INDEX.pack(configuration.index) + configuration.payload())


def begin_log(storage: Storage, state: raft_pb2.HardState, base: Entry) -> None:
    """Begin a log, in place of any other from the next commit on.

    Args:
        storage: of the node.
        state: the hard state.
        base: applied already; all that counts of it is index and term.
    """
    storage.begin_log(state.SerializeToString(), [base])


class DurableJournal(Journal):  # type: ignore[misc] # the library has no types
    """PySyncObj's journal over `Storage`. Begun by identity.py, opened here."""

    def __init__(self, storage: Storage, applied_index: int) -> None:
        """Open the log of a node whose state is that of `applied_index`."""
        self._storage = storage
        self._log = log = storage.log
        if not log.first_index <= applied_index <= log.last_index:
            raise damaged(
                f"the state is that of log entry {applied_index}, but the log holds entries "
                f"{log.first_index} to {log.last_index}"
            )
        with storage.read() as txn:
            base = load_configuration(txn)
        hard_state = raft_pb2.HardState.FromString(log.state)
        self._bytes = log.size
        self._first = Entry(*log.read(log.first_index))
        newest = Entry(*log.read(log.last_index))
        self._cache: list[Entry] = [newest]
        self._cache_bytes = len(newest.payload)
        self._stored_last = newest.index
        self._last: Entry = newest
        """Newest visible entry. Invariant: `_last.index <= _stored_last`, equal but while an
        append is being delivered."""
        self.term: int = hard_state.term
        """Invariant: never goes back, and at least the term of every entry."""
        self.voted_for: int | None = hard_state.voted_for or None
        """Invariant: changes from a member to another only together with `term`."""
        self.commit_index: int = max(hard_state.commit_index, applied_index)
        """Invariant: never goes back; `applied index <= commit_index <= last_index`. On disk it is
        written with entries, term or vote only: what was applied tells the rest."""
        self.durable_index: int = newest.index
        """Entries up to here are on disk. Invariant: this node counts itself no further."""
        self._hard_state_changed = False
        self._configurations = [base, *self._tail_configurations(applied_index)]
        """In force as of the applied index, and every later one. In order, never empty."""
        assert self.term >= newest.term
        assert self.commit_index <= newest.index

    def _tail_configurations(self, applied_index: int) -> list[Configuration]:
        tail = (self.entry(index) for index in range(applied_index + 1, self._stored_last + 1))
        return [configuration_of(each.index, each.payload) for each in tail if is_membership(each)]

    # ------------------------------------------------------------------ reading

    @property
    def configuration(self) -> Configuration:
        """The newest one in the log. To be asked when nothing is hidden."""
        return self._configurations[-1]

    @property
    def possible_configurations(self) -> tuple[Configuration, ...]:
        """As of the applied index, and all after it: a later one may yet be cut off."""
        return tuple(self._configurations)

    @property
    def first_index(self) -> int:
        """Index of the oldest entry kept."""
        return self._first.index

    @property
    def last_index(self) -> int:
        """Index of the newest visible entry."""
        return self._last.index

    @property
    def last_term(self) -> int:
        """Term of the newest visible entry."""
        return self._last.term

    def entry(self, index: int) -> Entry:
        """The entry at `index`, which must be in `[first_index, last_index]`."""
        offset = index - self._cache[0].index
        return self._cache[offset] if offset >= 0 else Entry(*self._log.read(index))

    def holds(self, entry: Entry) -> bool:
        """True if that very entry is in the log, and with it all before it."""
        within = self.first_index <= entry.index <= self.last_index
        return within and self.entry(entry.index).term == entry.term

    def entries(self, lo: int, *, count_max: int, bytes_max: int) -> list[Entry]:
        """Entries from `lo` on within both bounds, at least one if there is one."""
        found: list[Entry] = []
        size = 0
        for index in range(lo, min(self._last.index, lo + count_max - 1) + 1):
            entry = self.entry(index)
            size += len(entry.payload)
            if found and size > bytes_max:
                break
            found.append(entry)
        return found

    def __getitem__(self, position: int) -> Entry:
        """Entry by position, as the library asks: 0 for the oldest, -1 for the newest."""
        if position == -1:
            return self._last
        if position == 0:
            return self._first
        return self.entry(self._first.index + position)

    def __len__(self) -> int:
        return self._last.index - self._first.index + 1

    # ------------------------------------------------------------------ writing

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append an entry, or take an equal hidden one back."""
        assert idx == self._last.index + 1, (idx, self._last.index)
        if idx <= self._stored_last:
            hidden = self.entry(idx)
            if hidden.term == term:
                self._last = hidden
                return
            self._remove_from(idx)
        entry = Entry(command, idx, term)
        self._log.append(entry)
        if is_membership(entry):
            self._configurations.append(configuration_of(idx, command))
        self._cache.append(entry)
        self._cache_bytes += len(command)
        self._bytes += len(command) + ENTRY_OVERHEAD_BYTES
        self._stored_last = idx
        self._last = entry
        if self._cache_bytes > CACHE_BYTES_MAX or len(self._cache) > CACHE_ENTRIES_MAX:
            self._shrink_cache()

    def _remove_from(self, index: int) -> None:
        if index <= self.commit_index:
            raise SafetyError(f"truncation of the committed entry {index}")
        while self._configurations[-1].index >= index:
            self._configurations.pop()
        cut = (self.entry(each) for each in range(index, self._stored_last + 1))
        self._bytes -= sum(len(entry.payload) + ENTRY_OVERHEAD_BYTES for entry in cut)
        keep = index - self._cache[0].index
        if keep > 0:
            del self._cache[keep:]
        else:
            self._cache = [self.entry(index - 1)]
        self._cache_bytes = sum(len(entry.payload) for entry in self._cache)
        self._stored_last = index - 1
        self.durable_index = min(self.durable_index, index - 1)

    def configuration_applied(self, index: int) -> None:
        """The membership entry at `index` is applied: it is the base from now on."""
        while len(self._configurations) > 1 and self._configurations[1].index <= index:
            del self._configurations[0]
        writer = self._storage.writer()
        store_configuration(writer, self._configurations[0])

    def trim(self, limit: int, bounds: LogBounds) -> None:
        """Drop the oldest entries that the bounds do not keep, a bounded number at a time.

        Args:
            limit: entries from here on stay. Its effects must be on disk for certain: a commit of
                them that a crash can take back needs the entries again.
            bounds: what to keep besides.
        """
        assert limit <= self.commit_index, (limit, self.commit_index)
        index, stop = self._first.index, min(limit, self._first.index + bounds.trimmed_per_turn)
        while index < stop and (
            self._last.index - index >= bounds.keep_entries or self._bytes > bounds.keep_bytes
        ):
            self._bytes = max(0, self._bytes - self._log.entry_bytes(index))
            index += 1
        if index != self._first.index:
            self._first = self.entry(index)
            self._log.trim(index)

    @property
    def size(self) -> tuple[int, int]:
        """Entries, and bytes they take, about."""
        return len(self), self._bytes

    def _shrink_cache(self) -> None:
        """Keep the newer half: what is dropped is read back from storage when asked for."""
        keep = max(1, len(self._cache) // 2)
        del self._cache[:-keep]
        self._cache_bytes = sum(len(entry.payload) for entry in self._cache)

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 - the library's names
        """Hide entries from this position on until `settle` or a contradicting `add`."""
        self._last = self.entry(self._first.index + entryFrom - 1)

    def settle(self) -> None:
        """End of one append: what was hidden and not contradicted stays."""
        if self._last.index < self._stored_last:
            self._last = self.entry(self._stored_last)

    # ------------------------------------------------------------------ hard state

    def setCurrentTerm(self, term: int, votedForNodeId: int | None) -> None:  # noqa: N802, N803
        """Adopt a term and the vote cast in it."""
        if term < self.term or (
            term == self.term
            and self.voted_for is not None
            and votedForNodeId not in (None, self.voted_for)
        ):
            raise SafetyError(
                f"term {self.term} vote {self.voted_for} -> term {term} vote {votedForNodeId}"
            )
        if term == self.term and votedForNodeId is None:
            return
        self.term, self.voted_for = term, votedForNodeId
        self._hard_state_changed = True

    def getCurrentTerm(self) -> int:  # noqa: N802
        """Latest term this node has seen."""
        return self.term

    def getVotedForNodeId(self) -> int | None:  # noqa: N802
        """Member voted for in that term."""
        return self.voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Raise the commit index; a lower one is ignored."""
        self.commit_index = max(self.commit_index, raftCommitIndex)

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """Highest index known to be committed."""
        return self.commit_index

    # ------------------------------------------------------------------ the turn

    @property
    def unsynced(self) -> bool:
        """True if entries, term or vote wait for the sync."""
        return self._hard_state_changed or self._stored_last > self.durable_index

    def hard_state(self) -> raft_pb2.HardState:
        """As it goes to disk with every sync."""
        return raft_pb2.HardState(
            term=self.term, voted_for=self.voted_for or 0, commit_index=self.commit_index
        )

    def sync(self) -> bool:
        """Make entries, term and vote durable, the commit index with them; False if none changed.

        Raises:
            DiskError: this journal must not be used any more.
        """
        if not self.unsynced:
            return False
        self._log.sync(self.hard_state().SerializeToString())
        self.durable_index = self._stored_last
        self._hard_state_changed = False
        return True

    def _destroy(self) -> None:
        """The storage is closed by who opened it."""
