"""Watchers: each gets every change of its keys once, in order, all of a revision together.

A watcher is *live*, then changes are pushed to it as they are applied, or it *catches up*: it reads
the history from where it stands, some changes at a time, until it meets the present. One that does
not take what it is pushed falls back to catching up; so nothing is dropped and nothing piles up.
Main thread.

Invariant: a live watcher was offered every change up to the newest published one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Protocol

from kvserver.mvcc.history import Change, changes_since, compacted_revision
from kvserver.mvcc.interval import Interval, covers
from kvserver.mvcc.store import current_revision
from kvserver.storage.contract import ReadTxn, Storage

SLICE_CHANGES: Final = 1_000
SLICE_BYTES: Final = 2 << 20
"""Read from the history at a time, up to the end of a revision: whichever comes first. Rows before
the changes are not counted, since only some watchers want them: sinks see to that themselves."""

FULL_RETRY_S: Final = 0.02


class Sink(Protocol):
    """Where the events of watchers go: one client's stream."""

    @property
    def full(self) -> bool:
        """True while it takes no more."""
        ...

    def send(self, watcher: "Watcher", changes: list[Change], news: "News") -> int | None:
        """Take changes, at least those of one revision.

        Returns:
            Revision of the first change that it does not take now, None if it takes all.
        """
        ...

    def compacted(self, watcher: "Watcher", revision: int) -> None:
        """What the watcher needs is gone: its end."""
        ...


@dataclass(eq=False, slots=True)
class News:
    """What is handed out to watchers at a time."""

    revision: int
    """They have everything up to it then."""
    txn: ReadTxn | None
    """Shows what was before changes of the past."""
    made: dict[object, tuple[bytes, int | None]] = field(default_factory=dict)
    """What sinks have made of changes, for those who get the same: many watch one key."""


@dataclass(eq=False, slots=True)
class Watcher:
    """One interest of one client."""

    number: int
    """Of the client's choice or the stream's."""
    interval: Interval
    sink: Sink
    next_revision: int
    """Oldest revision that was not offered yet; older ones it does not get."""
    unwanted: frozenset[int] = frozenset()
    """Kinds of changes that are filtered out."""
    prev_kv: bool = False
    fragment: bool = False
    progress: bool = False
    live: bool = False
    idle_since: float = 0.0

    def wants(self, change: Change) -> bool:
        """True if a change of its keys is of its kinds and revisions."""
        return change.revision >= self.next_revision and change.kind not in self.unwanted


class WatcherIndex:
    """Finds the watchers of a key without looking at those of others.

    Single keys are looked up; so are prefixes, once for each length that occurs. Only other ranges
    are compared one by one.
    """

    def __init__(self) -> None:
        self._keys: dict[bytes, set[Watcher]] = {}
        self._prefixes: dict[int, dict[bytes, set[Watcher]]] = {}
        self._ranges: dict[Interval, set[Watcher]] = {}

    def add(self, watcher: Watcher) -> None:
        """Find it from now on."""
        where, key = self._place(watcher.interval)
        where.setdefault(key, set()).add(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Forget it."""
        where, key = self._place(watcher.interval)
        found = where.get(key, set())
        found.discard(watcher)
        if not found:
            where.pop(key, None)
            self._prefixes = {n: each for n, each in self._prefixes.items() if each}

    def count(self) -> int:
        """How many there are; counted when asked."""
        return sum(map(len, self._sets()))

    def all(self) -> Iterator[Watcher]:
        """Each of them once."""
        return chain.from_iterable(self._sets())

    def _sets(self) -> Iterator[set[Watcher]]:
        prefixes = (each.values() for each in self._prefixes.values())
        return chain(self._keys.values(), self._ranges.values(), *prefixes)

    def _place(self, interval: Interval) -> tuple[dict[object, set[Watcher]], object]:
        lo, hi = interval
        place: tuple[object, object] = (self._ranges, interval)
        if hi == lo + b"\0":
            place = (self._keys, lo)
        elif hi is not None and hi == prefix_end(lo):
            place = (self._prefixes.setdefault(len(lo), {}), lo)
        return place  # type: ignore[return-value] # three dicts of different keys

    def of(self, key: bytes) -> Iterator[Watcher]:
        """Watchers whose interval holds `key`."""
        yield from self._keys.get(key, ())
        for length, prefixes in self._prefixes.items():
            yield from prefixes.get(key[:length], ())
        for interval, watchers in self._ranges.items():
            if covers(interval, key):
                yield from watchers


def prefix_end(prefix: bytes) -> bytes | None:
    """The end of the range of all keys with a prefix; None if it has none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


class WatchHub:
    """All watchers of a node."""

    def __init__(
        self,
        storage: Storage,
        visible_index: Callable[[], int],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Begin without any.

        Args:
            storage: whose history is read.
            visible_index: newest entry whose effects a read transaction opened now sees.
            on_failure: told what ended the reading of the history; the node must not go on.
        """
        self._storage = storage
        self._on_failure = on_failure
        self._visible_index = visible_index
        self._index = WatcherIndex()
        self._behind: set[Watcher] = set()
        self._recent: deque[tuple[int, list[Change]]] = deque()
        """Published, but maybe not visible in the storage yet."""
        self._task: asyncio.Task[None] | None = None
        self.revision = 0
        """Newest one published; live watchers have been offered everything up to it."""

    def activate(self, revision: int) -> None:
        """This node serves from now on; everything up to `revision` is visible."""
        self.revision = max(self.revision, revision)

    def add(self, watcher: Watcher, newest: int) -> None:
        """Serve a watcher; `newest` is the revision of the newest applied change."""
        if watcher.next_revision > newest:
            self._enliven(watcher)
        else:
            self._fall_behind(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Its client does not want it any more."""
        if watcher.live:
            self._index.remove(watcher)
            watcher.live = False
        self._behind.discard(watcher)

    @property
    def count(self) -> int:
        """Watchers that are served."""
        return self._index.count() + len(self._behind)

    @property
    def count_behind(self) -> int:
        """Those of them that read the history."""
        return len(self._behind)

    def close(self) -> None:
        """Nobody is served here any more.

        A node that still leads goes on publishing: watchers whose streams have not ended yet must
        not be told that they have what comes now.
        """
        for watcher in self._index.all():
            watcher.live = False
        self._index = WatcherIndex()
        self._behind.clear()
        self._recent.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _enliven(self, watcher: Watcher) -> None:
        self._behind.discard(watcher)
        watcher.live = True
        self._index.add(watcher)

    def _fall_behind(self, watcher: Watcher) -> None:
        if watcher.live:
            self._index.remove(watcher)
            watcher.live = False
        self._behind.add(watcher)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._catch_up())

    # ------------------------------------------------------------------ live

    def publish(self, index: int, changes: list[Change]) -> None:
        """Changes were applied, up to the entry `index`."""
        self._recent.append((index, changes))
        visible = self._visible_index()
        while self._recent and self._recent[0][0] <= visible:
            self._recent.popleft()
        self.revision = max(self.revision, changes[-1].revision)
        shares: dict[Watcher, list[Change]] = {}
        for change in changes:
            for watcher in self._index.of(change.key):
                if watcher.wants(change):
                    shares.setdefault(watcher, []).append(change)
        news = News(self.revision, None)
        for watcher, left_from in _hand_out(shares, news).items():
            watcher.next_revision = left_from
            self._fall_behind(watcher)

    # ------------------------------------------------------------------ catching up

    async def _catch_up(self) -> None:
        try:
            while self._behind:
                group = [watcher for watcher in self._behind if not watcher.sink.full]
                if group:
                    self._catch_up_slice(group)
                    await asyncio.sleep(0)
                else:
                    await asyncio.sleep(FULL_RETRY_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, the node must know
            self._on_failure(error)

    def _catch_up_slice(self, group: list[Watcher]) -> None:
        """Read on from the oldest need of a group; no waiting inside."""
        with self._storage.read() as txn:
            newest, compacted = current_revision(txn), compacted_revision(txn)
            for watcher in [w for w in group if w.next_revision < compacted]:
                group.remove(watcher)
                self.remove(watcher)
                watcher.sink.compacted(watcher, compacted)
            if not group:
                return
            start = min(watcher.next_revision for watcher in group)
            changes, reached = _slice(changes_since(txn, start), newest)
            met = reached == newest
            if met:  # what is published but not visible yet belongs to the same past
                changes += [c for _, each in self._recent for c in each if c.revision > newest]
                reached = newest = max(newest, changes[-1].revision if changes else 0)
            left = self._share_out(group, changes, newest, txn)
        for watcher in group:
            if watcher in left:
                watcher.next_revision = left[watcher]
                continue
            watcher.next_revision = max(watcher.next_revision, reached + 1)
            if met:
                self._enliven(watcher)

    def _share_out(
        self, group: Iterable[Watcher], changes: list[Change], newest: int, txn: ReadTxn
    ) -> dict[Watcher, int]:
        """Hand out changes of the past; for those who have not taken all, where to go on."""
        finder = WatcherIndex()
        for watcher in group:
            finder.add(watcher)
        shares: dict[Watcher, list[Change]] = {}
        for change in changes:
            for watcher in finder.of(change.key):
                if watcher.wants(change):
                    shares.setdefault(watcher, []).append(change)
        return _hand_out(shares, News(newest, txn))


def _hand_out(shares: dict[Watcher, list[Change]], news: News) -> dict[Watcher, int]:
    """Give each its share; for those who have not taken all, the revision to go on from."""
    left = {}
    for watcher, share in shares.items():
        full = watcher.sink.full
        from_here = share[0].revision if full else watcher.sink.send(watcher, share, news)
        if from_here is not None:
            left[watcher] = from_here
    return left


def _slice(changes: Iterator[Change], newest: int) -> tuple[list[Change], int]:
    """Some changes, whole revisions only, and the revision up to which that is all."""
    found: list[Change] = []
    size = 0
    for change in changes:
        full = len(found) >= SLICE_CHANGES or size >= SLICE_BYTES
        if full and change.revision != found[-1].revision:
            return found, found[-1].revision
        found.append(change)
        size += len(change.key) + len(change.stored)
    return found, newest
