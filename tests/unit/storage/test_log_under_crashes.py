"""The log's files on a disk that loses what is not synced, from seeds.

Whatever happens to the process, the machine and the disk: all that a sync acknowledged is there
again, what was under way is there as a whole or not at all, and nothing of it is called damage.
More seeds: `--seeds`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from support.crashing_disk import DiedError, Disk

from kvserver.errors import DataDirError, DiskError
from kvserver.storage import log_files
from kvserver.storage.contract import LogEntry
from kvserver.storage.log_files import LogFiles, create_log, open_log

STEPS: Final = 40
SEEDS_PER_RUN: Final = 16
SMALL: Final = (0, 1, 30, 100, 300)
LARGE: Final = (300, 700, 1500, 3000)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first_seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--seeds")
        assert isinstance(count, int)
        metafunc.parametrize("first_seed", range(0, count * SEEDS_PER_RUN, SEEDS_PER_RUN))


@dataclass
class Content:
    """What a log holds after a sync."""

    number: int
    state: bytes
    entries: dict[int, LogEntry]

    @property
    def last(self) -> int:
        return max(self.entries)


@dataclass
class Story:
    """One log over all its lives."""

    rng: random.Random
    disk: Disk
    told: list[str] = field(default_factory=list)
    lineage: int = 1 << 63
    drawn: int = 0
    trimmed: int = 1
    named: tuple[int, int] = (0, 0)
    """Batch that the newest commit of the database names, and the one before it."""

    def __post_init__(self) -> None:
        self.log: LogFiles | None = None
        self.acknowledged = Content(0, b"", {})
        self.under_way: Content | None = None
        """Its sync has neither succeeded nor been taken back."""

    def run(self) -> None:
        while self.log is None:
            self._begin()
        for _ in range(STEPS):
            self._live()
        self._start_again(power=True)

    # ------------------------------------------------------------------ one life

    def _live(self) -> None:
        self._draw_fate(dies=0.2, fails=0.05)
        try:
            self._step()
        except DiedError:
            self.told.append("dies")
            self._start_again(power=self.rng.random() < 0.7)
        except DiskError as error:
            self.told.append(f"fails: {error}")
            self._log.close()
            self._start_again(power=self.rng.random() < 0.3)
        else:
            self.disk.calls_left = self.disk.failures_in = None
            if self.rng.random() < 0.05:
                self._log.close()
                self._start_again(power=self.rng.random() < 0.5)

    def _draw_fate(self, *, dies: float, fails: float) -> None:
        rng = self.rng
        self.disk.calls_left = rng.randint(1, 6) if rng.random() < dies else None
        self.disk.failures_in = rng.randint(1, 3) if rng.random() < fails else None

    @property
    def _log(self) -> LogFiles:
        assert self.log is not None
        return self.log

    def _step(self) -> None:
        step: Callable[[], None] = self.rng.choice(
            [self._write, self._write, self._write, self._write, self._commit, self._trim]
        )
        step()

    def _begin(self) -> None:
        """A log that no commit names yet is worthless: another one is begun then."""
        self._draw_fate(dies=0.15, fails=0.05)
        self.lineage += 1 << 32 | 1
        first = self._entry(1, 0)
        try:
            log = create_log(self.disk.path, self.lineage, b"state 0", [first])
        except DiedError:
            self.disk.restart(power=self.rng.random() < 0.7)
            return
        except DiskError:
            self.disk.restart(power=False)
            return
        self.disk.calls_left = self.disk.failures_in = None
        self.log = log
        self.acknowledged = Content(1, b"state 0", {1: first})
        self.named = (1, 1)

    def _entry(self, index: int, size: int) -> LogEntry:
        self.drawn += 1
        zeros = self.rng.random() < 0.2
        payload = bytes(size) if zeros else self.rng.randbytes(size)
        return payload, index, self.drawn

    def _write(self) -> None:
        log, rng = self._log, self.rng
        entries = dict(self.acknowledged.entries)
        sizes = rng.choice([SMALL, SMALL, LARGE])
        for _ in range(rng.randrange(4)):
            last = max(entries)
            back = rng.randrange(1, 5) if rng.random() < 0.2 else 0
            index = max(self.trimmed + 1, last + 1 - back)
            entry = self._entry(index, rng.choice(sizes))
            log.append(entry)
            entries = {i: each for i, each in entries.items() if i < index} | {index: entry}
        self.drawn += 1
        state = b"state %d" % self.drawn
        self.under_way = Content(self.acknowledged.number + 1, state, entries)
        self.told.append(f"writes {self.under_way.number} up to {self.under_way.last}")
        log.sync(state)
        self.acknowledged, self.under_way = self.under_way, None

    def _commit(self) -> None:
        self.named = (self._log.synced, self.named[0])
        self.told.append(f"names {self.named[0]}")

    def _trim(self) -> None:
        first = self.rng.randint(self.trimmed, self.acknowledged.last)
        self.trimmed = first
        self.told.append(f"trims {first}")
        self._log.trim(first)

    # ------------------------------------------------------------------ the next life

    def _start_again(self, *, power: bool) -> None:
        for attempt in range(5):
            self.told.append("power is lost" if power else "starts over")
            self.disk.restart(power=power)
            if power and self.rng.random() < 0.5:  # the newest commit may be taken back
                self.named = (self.named[1], self.named[1])
            if attempt < 4:
                self._draw_fate(dies=0.1, fails=0.6)
            power = self.rng.random() < 0.3
            try:
                log = open_log(self.disk.path, self.lineage, self.named[0])
            except (DiedError, DiskError) as error:
                self.told.append(f"does not get up: {type(error).__name__}")
                continue
            self.disk.calls_left = self.disk.failures_in = None
            self._take(log)
            return
        raise AssertionError("nothing has befallen it, and it does not get up")

    def _take(self, log: LogFiles) -> None:
        """What it shows counts from now on."""
        under_way = self.under_way
        found = self.acknowledged
        if under_way is not None and log.state == under_way.state:
            found = under_way
        self.told.append(f"has {log.synced} up to {log.last_index}")
        assert log.state == found.state, "an acknowledged hard state is lost"
        assert log.synced == found.number >= self.named[0]
        assert log.first_index <= self.trimmed
        assert log.last_index == found.last
        for index in range(self.trimmed, found.last + 1):
            assert log.read(index) == found.entries[index], index
        assert sum(log.check()) > 0
        assert [*self.disk.path.iterdir()] == [log.folder], "logs that nobody names go"
        self.log, self.acknowledged, self.under_way = log, found, None


def run(seed: int, patch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    disk = Disk(rng)
    disk.install(log_files, patch)
    patch.setattr(log_files, "SEGMENT_BYTES", rng.choice([1024, 2048, 4096, 16384]))
    patch.setattr(log_files, "GROWN_BYTES", rng.choice([512, 1024, 4096, 16384]))
    story = Story(rng, disk)
    try:
        story.run()
    except Exception as error:
        error.add_note(f"seed {seed}: " + "\n".join(story.told[-30:]))
        raise


def test_what_was_acknowledged_is_there_after_every_crash(
    first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(first_seed, first_seed + SEEDS_PER_RUN):
        run(seed, monkeypatch)


def no_file_is_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Disk, "fdatasync", lambda self, file: None)


def no_folder_is_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(log_files, "_sync_folder", lambda folder: None)


def nothing_is_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Disk, "pwrite", lambda self, file, data, at: len(data))


@pytest.mark.parametrize("broken", [no_file_is_synced, no_folder_is_synced, nothing_is_written])
def test_a_story_notices(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses nothing, or a story that looks at nothing, would prove nothing."""
    broken(monkeypatch)
    with pytest.raises((AssertionError, DataDirError)):
        for seed in range(SEEDS_PER_RUN):
            run(seed, monkeypatch)
