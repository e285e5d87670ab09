"""The verifier: a state that was there before is read at once, then now and then, by a process."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.sim_disk import SimClock

from kvserver.clock import SystemClock
from kvserver.errors import DataDirError, NodeError, ShortageError
from kvserver.pipeline import verifier as module
from kvserver.pipeline.rest import BUSY_PART_MAX, OwnLoad, pause_s
from kvserver.pipeline.verifier import (
    VerificationFailedError,
    Verified,
    Verifier,
    verify_once,
)
from kvserver.storage.env import LmdbStorage
from kvserver.storage.rows import damaged
from kvserver.storage.schema import KV
from kvserver.storage.verification import CALM

ROWS = 3_000


def filled(folder: Path) -> LmdbStorage:
    """A state that was there before, with a log."""
    storage = LmdbStorage(folder)
    storage.keep_digests()
    storage.writer().put_many(KV, [(b"%06d" % n, b"value") for n in range(ROWS)])
    storage.begin_log(b"", [(b"", 1, 1)])
    storage.commit()
    storage.close()
    return LmdbStorage(folder)


def damage(folder: Path) -> None:
    """The last page that is in use by rows becomes zeros."""
    with (folder / "data.mdb").open("r+b") as file:
        data = file.read()
        at = data.rindex(b"%06d" % (ROWS // 2)) // 4096 * 4096
        file.seek(at)
        file.write(bytes(4096))


class Watched:
    """A verifier that runs, and what it said."""

    def __init__(self, storage: LmdbStorage) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.sound: list[tuple[int, Verified]] = []
        self.damage: list[NodeError] = []
        self.news = asyncio.Event()
        self.stop = asyncio.Event()
        self.verifier = Verifier(
            storage, SystemClock(), verified=storage.fresh, urgent=lambda: True,
            on_sound=lambda *found: self._note(self.sound, found),
            on_damage=lambda error: self._note(self.damage, error),
            on_event=lambda name, **fields: self._note(self.told, (name, fields)),
        )  # fmt: skip

    def _note(self, notes: list[Any], what: object) -> None:
        notes.append(what)
        self.news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def watching(storage: LmdbStorage, interval_s: float = 0.0) -> AsyncIterator[Watched]:
    watched = Watched(storage)
    running = asyncio.create_task(watched.verifier.run(interval_s, watched.stop))
    try:
        yield watched
    finally:
        watched.stop.set()
        await asyncio.wait_for(running, 30)
        storage.close()


async def test_what_was_there_before_is_read_at_once(tmp_path: Path) -> None:
    async with watching(filled(tmp_path)) as watched:
        assert not watched.verifier.verified
        await watched.until(lambda: bool(watched.told))
        assert watched.verifier.verified
    ((generation, found),) = watched.sound
    assert generation == 0
    assert found.rows >= ROWS
    ((name, fields),) = watched.told
    assert name == "verify.done"
    assert fields["rows"] == found.rows


async def test_what_this_process_has_begun_is_verified_from_the_start(tmp_path: Path) -> None:
    async with watching(LmdbStorage(tmp_path)) as watched:
        assert watched.verifier.verified
        await asyncio.sleep(0)
    assert watched.told == []


async def test_it_is_read_again_and_again(tmp_path: Path) -> None:
    async with watching(filled(tmp_path), interval_s=0.001) as watched:
        await watched.until(lambda: len(watched.told) == 2)
        assert [name for name, _ in watched.told] == ["verify.done"] * 2


async def test_without_an_interval_it_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    async with watching(filled(tmp_path)) as watched:
        await watched.until(lambda: bool(watched.told))
        await asyncio.sleep(0.1)
    assert len(watched.told) == 1


async def test_damage_is_told_once_and_ends_it(tmp_path: Path) -> None:
    storage = filled(tmp_path)
    damage(tmp_path)
    async with watching(storage, interval_s=0.001) as watched:
        await watched.until(lambda: bool(watched.damage))
        await asyncio.sleep(0.1)
        assert not watched.verifier.verified
    (error,) = watched.damage
    assert isinstance(error, DataDirError)
    assert "structure is damaged" in str(error)
    assert watched.sound == []


async def test_another_state_is_read_anew(tmp_path: Path) -> None:
    async with watching(filled(tmp_path)) as watched:
        await watched.until(lambda: bool(watched.told))
        watched.verifier.replaced(1)
        assert not watched.verifier.verified
        await watched.until(lambda: len(watched.told) == 2)
        assert watched.verifier.verified
    assert [generation for generation, _ in watched.sound] == [0, 1]


async def test_what_was_found_of_another_state_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(filled(tmp_path))

    async def once(*_: object, **__: object) -> Verified:
        if not watched.sound and watched.verifier.generation == 0:
            watched.verifier.replaced(1)
        return Verified(1, tmp_path, 1, {})

    monkeypatch.setattr(module, "verify_once", once)
    running = asyncio.create_task(watched.verifier.run(0.0, watched.stop))
    await watched.until(lambda: bool(watched.sound))
    watched.stop.set()
    await running
    assert [generation for generation, _ in watched.sound] == [1]


async def test_a_pass_that_can_not_be_made_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    failures: list[NodeError] = [VerificationFailedError("no process"), ShortageError("no file")]
    real = module.verify_once

    async def once(*given: Any, **more: Any) -> Verified | None:
        if failures:
            raise failures.pop(0)
        return await real(*given, **more)

    monkeypatch.setattr(module, "verify_once", once)
    async with watching(filled(tmp_path)) as watched:
        await watched.until(lambda: len(watched.told) == 3)
    assert [name for name, _ in watched.told] == ["verify.failed", "verify.failed", "verify.done"]
    assert watched.damage == []


@pytest.mark.parametrize("sound", [True, False])
async def test_where_no_process_can_do_it_the_node_does_it_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    """Else it would never serve again."""
    monkeypatch.setattr(module, "RETRY_S", 0.001)

    async def no_process(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
    storage = filled(tmp_path)
    if not sound:
        damage(tmp_path)
    async with watching(storage) as watched:
        await watched.until(lambda: bool(watched.sound or watched.damage))
    failed = [name for name, _ in watched.told if name == "verify.failed"]
    assert len(failed) == module.FAILURES_MAX
    assert bool(watched.sound) is sound
    if sound:
        with_digests = watched.sound[0][1].digests
        assert with_digests[KV]


# ---------------------------------------------------------------------------- the process


class Process:
    """One that says these lines and ends with this code."""

    def __init__(self, lines: list[object], code: int) -> None:
        self._lines = lines
        self.code = code
        self.killed = False

    @property
    def stdin(self) -> "Process":
        return self

    def write(self, word: bytes) -> None:
        raise AssertionError(f"nobody is calm here: {word!r}")

    @property
    def stdout(self) -> AsyncIterator[bytes]:
        return self._said()

    async def _said(self) -> AsyncIterator[bytes]:
        for line in self._lines:
            yield json.dumps(line).encode() + b"\n"

    def kill(self) -> None:
        raise ProcessLookupError

    async def wait(self) -> int:
        return self.code


async def outcome(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[object], code: int
) -> Verified | None:
    async def start(*_: object, **__: object) -> Process:
        return Process(lines, code)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    storage = LmdbStorage(folder)
    try:
        return await verify_once(storage, stop=asyncio.Event(), on_progress=lambda part: None)
    finally:
        storage.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
async def test_a_reader_that_dies_of_what_it_reads_shows_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with pytest.raises(DataDirError, match=f"ended by the signal {number.name}"):
        await outcome(tmp_path, monkeypatch, [{"rows": 1, "total": 2}], -number)


@pytest.mark.parametrize(
    ("lines", "code"),
    [([], -signal.SIGKILL), ([{"rows": 1, "total": 2}], 1), ([{"failed": "no file is left"}], 0)],
    ids=["killed", "crashed", "short"],
)
async def test_one_that_could_not_go_on_says_nothing_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[object], code: int
) -> None:
    with pytest.raises(VerificationFailedError):
        await outcome(tmp_path, monkeypatch, lines, code)


async def test_told_to_stop_it_ends_the_process(tmp_path: Path) -> None:
    storage = filled(tmp_path)
    stop = asyncio.Event()
    stop.set()
    found = await verify_once(storage, stop=stop, on_progress=lambda part: None)
    assert found is None
    storage.close()


async def test_it_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[float] = []
    lines: list[object] = [{"rows": 0, "total": 0}, {"rows": 1, "total": 4}, {"failed": ""}]

    async def start(*_: object, **__: object) -> Process:
        return Process(lines, 0)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    storage = LmdbStorage(tmp_path)
    with pytest.raises(VerificationFailedError):
        await verify_once(storage, stop=asyncio.Event(), on_progress=parts.append)
    assert parts == [0.0, 0.25]
    storage.close()


async def test_a_file_that_grows_too_much_meanwhile_is_read_in_a_hurry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page is used again while it is read: that must not fill the disk."""
    monkeypatch.setattr(module, "GROWTH_BYTES_CALM", 1 << 20)
    storage = filled(tmp_path)
    watched = Watched(storage)
    watched.verifier._urgent = lambda: False
    before, _ = storage.size()
    assert watched.verifier._calm(before, busy=True)
    storage.writer().put(KV, b"x", bytes(2 << 20))
    storage.commit()
    assert not watched.verifier._calm(before, busy=True)
    storage.close()


async def test_it_hurries_for_whoever_waits_and_where_nothing_else_is_done(tmp_path: Path) -> None:
    storage = filled(tmp_path)
    watched = Watched(storage)
    before, _ = storage.size()
    assert not watched.verifier._calm(before, busy=True), "somebody waits"
    watched.verifier.verified = True
    assert watched.verifier._calm(before, busy=True), "nobody can wait for what is verified"
    assert not watched.verifier._calm(before, busy=False)
    storage.close()


async def test_a_disk_without_room_ends_a_pass_in_any_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    storage = filled(tmp_path)
    watched = Watched(storage)
    before, _ = storage.size()
    watched.verifier._calm(before - 1, busy=False)
    monkeypatch.setattr(module, "LEFT_FREE_BYTES", 1 << 62)
    with pytest.raises(ShortageError, match="the disk has"):
        watched.verifier._calm(before - 1, busy=False)
    watched.verifier._calm(before, busy=False)

    async def once(*_: object, **given: Any) -> Verified:
        storage.writer().put(KV, b"x", bytes(2 << 20))
        storage.commit()
        given["calm"]()
        monkeypatch.setattr(module, "LEFT_FREE_BYTES", 0)
        return Verified(1, tmp_path, 1, {})

    monkeypatch.setattr(module, "verify_once", once)
    running = asyncio.create_task(watched.verifier.run(0.0, watched.stop))
    await watched.until(lambda: bool(watched.told))
    monkeypatch.setattr(module, "LEFT_FREE_BYTES", 0)
    await watched.until(lambda: bool(watched.sound))
    watched.stop.set()
    await running
    storage.close()
    assert {name for name, _ in watched.told} == {"verify.failed", "verify.done"}
    assert not watched.verifier._failures, "no process was at fault"


@pytest.mark.parametrize("calm", [True, False])
async def test_the_process_is_told_when_to_be_calm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: bool
) -> None:
    """The process that is started here says what it was told."""
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    start = asyncio.create_subprocess_exec
    words: list[bytes] = []

    async def listen(*given: Any, **named: Any) -> asyncio.subprocess.Process:
        process = await start(*given, **named)
        assert process.stdin is not None
        write = process.stdin.write

        def note(word: bytes) -> None:
            words.append(word)
            write(word)

        monkeypatch.setattr(process.stdin, "write", note)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", listen)
    storage = filled(tmp_path)
    found = await verify_once(storage, stop=asyncio.Event(), calm=lambda: calm)
    assert found is not None
    assert words == ([CALM] if calm else [])
    storage.close()


async def test_a_state_that_took_the_place_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(filled(tmp_path))
    passes = 0

    async def once(*_: object, **__: object) -> Verified:
        nonlocal passes
        passes += 1
        return Verified(1, tmp_path, 1, {})

    monkeypatch.setattr(module, "verify_once", once)
    running = asyncio.create_task(watched.verifier.run(0.0, watched.stop))
    await watched.until(lambda: len(watched.sound) == 1)
    watched.verifier.replaced(1)
    await watched.until(lambda: len(watched.sound) == 2)
    await asyncio.sleep(0.1)
    watched.stop.set()
    await running
    assert passes == 2


async def test_damage_to_a_state_that_was_replaced_meanwhile_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    watched = Watched(filled(tmp_path))
    passes = 0

    async def once(*_: object, **__: object) -> Verified:
        nonlocal passes
        passes += 1
        if passes == 1:
            watched.verifier.replaced(1)
            raise damaged("a page of the old one")
        return Verified(1, tmp_path, 1, {})

    monkeypatch.setattr(module, "verify_once", once)
    running = asyncio.create_task(watched.verifier.run(0.0, watched.stop))
    await watched.until(lambda: bool(watched.sound))
    watched.stop.set()
    await running
    assert not watched.damage
    assert watched.verifier.verified


async def test_a_state_whose_digests_nobody_knows_is_read_though_it_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read before it was opened; or a copy without them has taken its place."""
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    storage = LmdbStorage(tmp_path)
    storage.writer().put(KV, b"key", b"value")
    storage.begin_log(b"", [(b"", 1, 1)])
    storage.commit()
    storage.close()
    storage = LmdbStorage(tmp_path)
    assert not storage.digests_known
    watched = Watched(storage)
    watched.verifier.verified = True
    running = asyncio.create_task(watched.verifier.run(3600.0, watched.stop))
    await watched.until(lambda: bool(watched.sound))
    watched.stop.set()
    await running
    storage.close()


@pytest.mark.parametrize("stopped", [True, False])
async def test_a_pass_within_the_process_ends_when_it_is_told_to(
    tmp_path: Path, stopped: bool
) -> None:
    storage = filled(tmp_path)
    stop = asyncio.Event()

    def between() -> None:
        if not stopped:
            raise ShortageError("the file must not grow any more")
        stop.set()

    verifying = module.verify_inside(
        storage, stop=stop, on_progress=lambda _: None, between=between
    )
    if stopped:
        assert await verifying is None
    else:
        with pytest.raises(ShortageError):
            await verifying
    storage.close()


def test_a_node_is_busy_by_what_it_uses_of_a_core() -> None:
    clock, used = SimClock(), [0.0]
    load = OwnLoad(clock, lambda: used[0])
    for took, busy in ((0.005, False), (0.02, True), (0.0, False)):
        clock.now += 0.1
        used[0] += took
        assert load.busy() is busy


def test_it_rests_most_of_the_time() -> None:
    for busy_s in (0.0005, 0.005, 0.1):
        assert busy_s / (busy_s + pause_s(busy_s)) <= BUSY_PART_MAX + 1e-9
    assert pause_s(0) > 0
