"""The scrub: every row is read in bounded slices, at rest most of the time, until damage is met."""

import asyncio
from collections.abc import Iterator

import pytest
from support.memory_storage import MemoryStorage

from kvserver.clock import SystemClock
from kvserver.errors import DataDirError, NodeError, ShortageError
from kvserver.pipeline import scrub as module
from kvserver.pipeline.scrub import BUSY_PART_MAX, pause_s, scrub
from kvserver.storage import check as check_module
from kvserver.storage.check import BYTES_MAX, ROWS_MAX, Check
from kvserver.storage.schema import DATABASES, KEY_HISTORY, KV

FIXED = len(DATABASES) + 1
"""Rows besides those of KV: one of each database, and the name of the log."""


def filled(rows: int, size: int = 1) -> MemoryStorage:
    storage = MemoryStorage()
    for db in DATABASES:
        storage.writer().put(db, b"row", b"v")
    storage.writer().put_many(KV, [(b"%05d" % i, b"x" * size) for i in range(rows)])
    storage.begin_log(b"", [(b"", 1, 1)])
    storage.commit()
    return storage


def slices(check: Check) -> list[int]:
    """Rows of each slice of a pass."""
    found, done = [], False
    while not done:
        before = check.rows
        done = check.step()
        found.append(check.rows - before)
    return found


@pytest.mark.parametrize("rows", [0, 1, ROWS_MAX - 1, ROWS_MAX, 3 * ROWS_MAX + 1])
def test_a_pass_sees_every_row_once_in_short_slices(rows: int) -> None:
    check = Check(filled(rows))
    assert max(slices(check)) <= ROWS_MAX
    assert check.rows == FIXED + rows


def test_a_key_with_many_values_is_no_longer_slice() -> None:
    storage = filled(0)
    values = [i.to_bytes(4, "big") for i in range(3 * ROWS_MAX + 7)]
    storage.writer().put_many(KEY_HISTORY, [(b"key", value) for value in values])
    storage.commit()
    check = Check(storage)
    assert max(slices(check)) <= ROWS_MAX
    assert check.rows == FIXED + len(values)


def test_slices_of_large_rows_are_shorter() -> None:
    check = Check(filled(20, BYTES_MAX // 4))
    assert max(slices(check)) <= 4
    assert check.rows == FIXED + 20


def test_rows_may_come_and_go_meanwhile() -> None:
    storage = filled(2 * ROWS_MAX)
    check = Check(storage)
    while check.rows <= ROWS_MAX:
        assert not check.step()
    storage.writer().clear(KV)
    storage.writer().put(KV, b"z", b"")
    storage.commit()
    seen = check.rows
    slices(check)
    assert check.rows == seen + 1 + len(DATABASES) - 1 - DATABASES.index(KV)


def test_it_rests_most_of_the_time() -> None:
    for busy_s in (0.0005, 0.005, 0.1):
        assert busy_s / (busy_s + pause_s(busy_s)) <= BUSY_PART_MAX + 1e-9
    assert pause_s(0) > 0


class Watched:
    """A scrub that runs, and what it said."""

    def __init__(self, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "FIRST_S_MAX", 0.001)
        self.told: list[tuple[str, dict[str, object]]] = []
        self.damage: list[NodeError] = []
        self.stop = asyncio.Event()
        self.news = asyncio.Event()
        self.task = asyncio.create_task(
            scrub(
                storage, SystemClock(), interval_s=0.001, stop=self.stop,
                on_event=self._event, on_damage=self._damage,
            )
        )  # fmt: skip

    def _event(self, name: str, **fields: object) -> None:
        self.told.append((name, fields))
        self.news.set()

    def _damage(self, error: NodeError) -> None:
        self.damage.append(error)
        self.news.set()


async def test_it_passes_again_and_again_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(filled(3), monkeypatch)
    for _ in range(2):
        await watched.news.wait()
        watched.news.clear()
    watched.stop.set()
    await asyncio.wait_for(watched.task, 10)
    assert {name for name, _ in watched.told} == {"scrub.done"}
    assert watched.told[0][1]["rows"] == FIXED + 3
    assert watched.damage == []


async def test_damage_is_told_once_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    damage = DataDirError("a row is damaged")

    def step(_check: Check) -> bool:
        raise damage

    monkeypatch.setattr(check_module.Check, "step", step)
    watched = Watched(filled(3), monkeypatch)
    await asyncio.wait_for(watched.task, 10)
    assert watched.damage == [damage]
    assert watched.told == []


async def test_a_pass_that_finds_no_file_left_is_begun_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check of the log ends with its first error: what it did not read is not taken as read."""
    storage = filled(3)
    shortages = [ShortageError("no file is left")]

    def check() -> Iterator[int]:
        if shortages:
            raise shortages.pop()
        yield 7

    monkeypatch.setattr(storage.log, "check", check)
    watched = Watched(storage, monkeypatch)
    while len(watched.told) < 2:
        await watched.news.wait()
        watched.news.clear()
    watched.stop.set()
    await asyncio.wait_for(watched.task, 10)
    assert watched.damage == []
    assert watched.told[0] == ("scrub.failed", {"reason": "no file is left"})
    name, fields = watched.told[1]
    assert (name, fields["rows"]) == ("scrub.done", FIXED + 3 + 7)
