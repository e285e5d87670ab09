"""Clock and disk of a simulated node: time is a number, and a commit may take its time."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.memory_storage import MemoryLog, MemoryStorage, MemoryTxn, Undo
from support.memory_table import Name

from kvserver.errors import DiskError
from kvserver.storage.contract import LogEntry
from kvserver.storage.digest import DIGESTED
from kvserver.storage.schema import Database


class SimClock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class SimDisk(MemoryStorage):
    """Commits and syncs take their time. What they write is not durable, nor seen, before they end.

    A crash of the process loses what is under way, or not; one of the machine may take the newest
    commit back besides.
    """

    def __init__(self, clock: SimClock, rng: random.Random) -> None:
        super().__init__()
        self._clock = clock
        self._rng = rng
        self._syncing: MemoryTxn | None = None
        self._log_syncing: list[Callable[[], None]] = []
        """What undoes the syncs of the log that are under way."""
        self._trimmed: list[Callable[[], None]] = []
        """What undoes that the log was trimmed while a commit is under way: it comes after it."""
        self._before_newest: list[Undo] = []
        """What undoes the commit before the one under way: its end makes that one durable."""
        self.commit_s = 0.0
        self.sync_ends = 0.0
        self.fresh = True
        """No process has ended that had it."""
        self.damaged: tuple[Database, Name] | None = None
        """A row that is gone, though nobody has deleted it."""

    def lose_row(self) -> bool:
        """A bit flips in the structure: a row can't be found any more. False if there is none."""
        tables = [(db, self._tables[db]) for db in DIGESTED if self._tables[db].order]
        if not tables:
            return False
        db, table = self._rng.choice(tables)
        name = table.order.pop(self._rng.randrange(len(table.order)))
        del table.rows[name]
        self.damaged = (db, name)
        return True

    @property
    def sound(self) -> bool:
        """What a verification finds."""
        return all(self._tables[db].digest == self._tables[db].counted() for db in DIGESTED)

    @property
    def syncing(self) -> bool:
        return self._syncing is not None or bool(self._log_syncing)

    def commit(self, *, durable: bool = False) -> bool:
        txn, before, commits = self._open, self._newest, self.commits
        try:
            committed = super().commit(durable=durable)
        except DiskError:
            if self.commits > commits:  # it is on the disk: so is all that was written before it
                self.end_sync()
            raise
        if committed and self._wait():
            self._syncing, self._before_newest = txn, before
        return committed

    def after_sync(self, undo: Callable[[], None]) -> None:
        super().after_sync(undo)
        if self._wait():
            self._log_syncing.append(undo)

    def after_trim(self, undo: Callable[[], None]) -> None:
        if self._syncing is not None:
            self._trimmed.append(undo)

    def _wait(self) -> bool:
        if not self.commit_s:
            return False
        took = self.commit_s * self._rng.uniform(0.5, 1.5)
        self.sync_ends = max(self.sync_ends, self._clock.now) + took
        return True

    def end_sync(self) -> None:
        self._syncing = None
        self._log_syncing.clear()
        self._trimmed.clear()

    def crash(self, *, back: bool = False) -> None:
        """Of what is under way the log's part comes first: the state has nothing that it lacks."""
        self.fresh = False
        came_through = self._rng.random() < 0.5
        if self._syncing is not None and not (came_through and self._rng.random() < 0.5):
            if self._open is not None:
                self._open.roll_back()
                self._open = None
            self._syncing.roll_back()
            self._newest = self._before_newest
            for undo in reversed(self._trimmed):
                undo()
        super().crash(back=back)
        if not came_through:
            for undo in reversed(self._log_syncing):
                undo()
        self.end_sync()
        self.sync_ends = 0.0

    def become(self, fresh: MemoryStorage) -> None:
        super().become(fresh)
        self.damaged = None
        self.end_sync()

    @contextmanager
    def read(self) -> Iterator[MemoryTxn]:
        """What the last commit left; what is open, or being committed, is put aside meanwhile."""
        aside = [txn for txn in (self._open, self._syncing) if txn is not None and txn.dirty]
        changes = []
        for txn in aside:
            rows = [(db, key, self._tables[db].rows.get(key)) for db, key, _ in txn.undo]
            changes.append((txn, list(txn.undo), rows))
            txn.roll_back()
        try:
            yield MemoryTxn(self._tables)
        finally:
            for txn, undo, rows in reversed(changes):
                for db, key, value in rows:
                    if value is not None:
                        self._tables[db].put(key, value)
                    elif key in self._tables[db].rows:
                        self._tables[db].delete(key)
                txn.undo = undo

    def durable_term(self, index: int) -> int | None:
        """Term of the entry that is on the disk at `index`; None if there is none."""
        if self._log is None:
            return None
        entry = self._on_disk(self._log).get(index)
        return None if entry is None else entry[2]

    def _on_disk(self, log: MemoryLog) -> dict[int, LogEntry]:
        """Of the log, without what is under way."""
        now = (log.entries, log._synced_last, log.state)
        for undo in reversed(self._log_syncing):
            undo()
        found = log.entries
        log.entries, log._synced_last, log.state = now
        return found

    def oldest_index(self) -> int:
        """Of the log, 0 if there is none."""
        return self._log.first_index if self._log is not None else 0
