"""The verifier: has the state of this node verified, soon after the start and then now and then.

`storage/verification.py` does the work in a process of its own; here it is started, waited for, and
ended. What the log holds is read too, by this process, with long rests. Main thread.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from kvserver.clock import Clock
from kvserver.errors import DamagedError, NodeError, ShortageError, StoppedError
from kvserver.pipeline.rest import OwnLoad, pause_s, stopped
from kvserver.storage.check import Check
from kvserver.storage.digest import DIGESTED, Digests
from kvserver.storage.env import LmdbStorage
from kvserver.storage.rows import damaged
from kvserver.storage.structure import verify_structure
from kvserver.storage.verification import CALM, HURRY

RETRY_S: Final = 10.0
"""From a pass that could not be made to its end, to the next."""

FAILURES_MAX: Final = 2
"""A node whose system starts no process for it, or ends them, must be verified all the same."""

PAGES_BETWEEN: Final = 1_000
"""Between two checks of the growth of the file, within this process."""

LOOK_S: Final = 0.1
"""Interval between checks whether to hurry, and of the growth of the file."""

GROWTH_BYTES_CALM: Final = 256 << 20
"""Once the file has grown by this much, the verification hurries: pages that were given up since it
began are not used again before its end, so the more is written the sooner it must end."""

LEFT_FREE_BYTES: Final = 1 << 30
"""Of the disk, whatever the verification: its growth must not take the room of the log."""

_DAMAGE_SIGNALS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
)
"""What ends a process that reads a damaged file through the engine."""


@dataclass(frozen=True)
class Verified:
    """What a verification that found nothing has counted."""

    rows: int
    folder: Path
    """Of the environment that was read."""
    transaction: int
    """Number of the commit that was read."""
    digests: Digests


class VerificationFailedError(NodeError):
    """It could not be made to its end, for no fault of the data."""


async def verify_once(
    storage: LmdbStorage,
    *,
    stop: asyncio.Event,
    on_progress: Callable[[float], object] = lambda _: None,
    calm: Callable[[], bool] = lambda: False,
) -> Verified | None:
    """Have the newest commit of a storage verified.

    Args:
        storage: in use; it may be written meanwhile, and its file grows by what is.
        stop: ends it early.
        on_progress: told which part of the rows is read, from 0 to 1.
        calm: asked again and again whether it shall leave most of its core to others; it may raise,
            which ends the verification.

    Returns:
        What was counted; None if it was told to stop.

    Raises:
        DamagedError: it is damaged.
        VerificationFailedError: it could not be made.
    """
    reading = storage.read()
    with storage.counting(), reading:  # no page of now is written again while it is open
        folder = reading.environment.folder
        return await verify_folder(folder, stop=stop, on_progress=on_progress, calm=calm)


async def verify_folder(
    folder: Path,
    *,
    stop: asyncio.Event,
    on_progress: Callable[[float], object] = lambda _: None,
    calm: Callable[[], bool] = lambda: False,
) -> Verified | None:
    """The same where nobody writes, or a read transaction is open that keeps what is there now."""
    command = ["-P", "-m", "kvserver.storage.verification", str(folder)]
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
    except OSError as error:
        raise VerificationFailedError(f"no process can be started ({error})") from error
    listening = asyncio.create_task(_listen(process, on_progress))
    try:
        await _attend(process, listening, stop, calm)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # what it has said is read all the same
        told = await listening
        code = await process.wait()
    if told is None and stop.is_set():
        return None
    return _result(told, code, folder)


async def _attend(
    process: Process, listening: "asyncio.Task[Any]", stop: asyncio.Event, calm: Callable[[], bool]
) -> None:
    """Until it has said all, or is to stop."""
    assert process.stdin is not None
    word, stopping = HURRY, asyncio.create_task(stop.wait())
    try:
        while not listening.done() and not stopping.done():
            wanted = CALM if calm() else HURRY
            if wanted != word:
                word = wanted
                process.stdin.write(word)  # one byte: if the process has ended, nobody minds
            waits: set[asyncio.Task[Any]] = {listening, stopping}
            await asyncio.wait(waits, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()


async def verify_inside(
    storage: LmdbStorage,
    *,
    stop: asyncio.Event,
    on_progress: Callable[[float], object],
    between: Callable[[], object],
) -> Verified | None:
    """The same within this process, where no other one can do it: it slows down all that is served.

    Args:
        storage: as for `verify_once`.
        stop: as there.
        on_progress: as there.
        between: called now and then, by any thread; it may raise, which ends the verification.

    Raises:
        DamagedError: it is damaged.
        NodeError: the system does not give what is needed to read it.
    """
    loop = asyncio.get_running_loop()
    reading = storage.read()

    looks = count()

    def look() -> None:
        if stop.is_set():
            raise StoppedError
        if not next(looks) % PAGES_BETWEEN:
            between()

    with storage.counting(), reading as txn, contextlib.suppress(StoppedError):
        path = reading.environment.folder / "data.mdb"
        await loop.run_in_executor(None, verify_structure, path, look)
        check = Check(txn)
        while not await loop.run_in_executor(None, check.step):
            on_progress(check.rows / check.total)
            look()
        return Verified(check.rows, path.parent, txn.number, check.counted)
    return None


async def damage_behind(error: Exception, folder: Path, stop: asyncio.Event) -> None:
    """Look whether an error that nobody foresaw comes from damage; not once told to stop.

    Raises:
        DamagedError: it most likely does: what is on the disk makes no sense.
    """
    with contextlib.suppress(VerificationFailedError):
        try:
            await verify_folder(folder, stop=stop)
        except DamagedError as damage:
            raise damage from error


async def _listen(
    process: Process, on_progress: Callable[[float], object]
) -> dict[str, Any] | None:
    """What it says last; None if it ends before."""
    assert process.stdout is not None
    async for line in process.stdout:
        told: dict[str, Any] = json.loads(line)
        if "total" not in told:
            return told
        on_progress(told["rows"] / told["total"] if told["total"] else 0.0)
    return None


def _result(told: dict[str, Any] | None, code: int, folder: Path) -> Verified:
    if told is None:
        if -code in _DAMAGE_SIGNALS:
            name = signal.Signals(-code).name
            raise damaged(f"{folder}: whoever reads its database is ended by the signal {name}")
        raise VerificationFailedError(f"its process ended with code {code}")
    if "damage" in told:
        raise DamagedError(told["damage"])
    if "failed" in told:
        raise VerificationFailedError(told["failed"])
    digests = {db: told["digests"].get(db.name.decode()) for db in DIGESTED}
    if None in digests.values():
        raise VerificationFailedError("the code on the disk is of another version: start it")
    return Verified(told["rows"], folder, told["transaction"], digests)


class Verifier:
    """Verifies one node's state, again and again."""

    def __init__(  # noqa: PLR0913 - its neighbours, handed in
        self,
        storage: LmdbStorage,
        clock: Clock,
        *,
        verified: bool,
        urgent: Callable[[], bool],
        on_sound: Callable[[int, Verified], object],
        on_damage: Callable[[NodeError], object],
        on_event: Callable[..., None],
    ) -> None:
        """Nothing happens before `run`.

        Args:
            storage: of the node.
            clock: of the node.
            verified: nobody needs to read the state that is there now.
            urgent: whether this node serves, or may have to serve, an unverified state.
            on_sound: told the `generation` that a pass has found to be sound, and what it counted.
            on_damage: told once what is damaged; nothing is done after that.
            on_event: log.
        """
        self._storage = storage
        self._clock = clock
        self._urgent = urgent
        self._on_sound = on_sound
        self._on_damage = on_damage
        self._event = on_event
        self._wanted = asyncio.Event()
        self.generation = 0
        """Rises when another state takes the place of the one there was, from a peer's copy."""
        self.verified = verified
        """The state that is there now was read whole since the last process ended, or is new."""
        self.progress = 0.0
        """Of the pass under way: which part of the rows is read."""
        self._failures = 0
        """Processes in a row that have not come to their end."""

    @property
    def verified_part(self) -> float:
        """Which part of the state that is there now was read, 1 for all of it."""
        return 1.0 if self.verified else self.progress

    def replaced(self, generation: int) -> None:
        """Another state has taken the place: it is unverified."""
        self.generation = generation
        self.verified = False
        self._wanted.set()

    async def run(self, interval_s: float, stop: asyncio.Event) -> None:
        """Make one pass after the other until `stop` is set; nothing is under way after the return.

        Args:
            interval_s: from the end of a pass to the beginning of the next; 0 for none but those of
                states that are unverified.
            stop: ends it.
        """
        wait_s = interval_s if self.verified and self._storage.digests_known else RETRY_S
        if not self.verified:
            self._wanted.set()
        while not await self._wait(wait_s, stop):
            generation = self.generation
            try:
                done = await self._pass(stop)
            except NodeError as error:
                # what is damaged may be a state whose place another one has taken meanwhile
                if isinstance(error, DamagedError) and generation == self.generation:
                    self._on_damage(error)
                    return
                self._event("verify.failed", reason=str(error))
                done = False
            wait_s = interval_s if done and self.verified else RETRY_S

    async def _wait(self, within_s: float, stop: asyncio.Event) -> bool:
        """Until the next pass; True if there is none any more."""
        if not self.verified and self._wanted.is_set():
            within_s = 0.0
        self._wanted.clear()
        waits = {asyncio.create_task(each.wait()) for each in (stop, self._wanted)}
        limit = within_s if within_s or not self.verified else None
        try:
            await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        return stop.is_set()

    async def _pass(self, stop: asyncio.Event) -> bool:
        generation, began = self.generation, self._clock.monotonic()
        before, _ = self._storage.size()
        found = await self._verify(stop)
        self.progress = 0.0
        if found is None:
            return False
        if generation == self.generation:
            self.verified = True
            self._on_sound(generation, found)
        after, _ = self._storage.size()
        self._event(
            "verify.done", rows=found.rows, seconds=round(self._clock.monotonic() - began, 3),
            grew_bytes=max(0, after - before),
        )  # fmt: skip
        return await self._check_log(stop)

    async def _verify(self, stop: asyncio.Event) -> Verified | None:
        """By a process of its own; after failures of that within this one, if somebody waits."""
        before, load = self._storage.size()[0], OwnLoad(self._clock)
        if not self.verified and self._failures >= FAILURES_MAX:
            return await verify_inside(
                self._storage, stop=stop, on_progress=self._make_progress,
                between=lambda: self._calm(before, busy=False),
            )  # fmt: skip
        try:
            found = await verify_once(
                self._storage, stop=stop, on_progress=self._make_progress,
                calm=lambda: self._calm(before, busy=load.busy()),
            )  # fmt: skip
        except VerificationFailedError:
            self._failures += 1
            raise
        self._failures = 0
        return found

    def _calm(self, before: int, *, busy: bool) -> bool:
        """Whether the verification shall leave the core to the work of this node.

        Args:
            before: bytes of the file when the verification began.
            busy: this node has work.

        Raises:
            ShortageError: the file must not grow any more.
        """
        grown = self._storage.size()[0] - before
        left = shutil.disk_usage(self._storage.folder).free
        if grown and left < LEFT_FREE_BYTES:
            told = f"the file of the data has grown by {grown >> 20} MiB meanwhile"
            raise ShortageError(f"{told}, the disk has {left >> 20} MiB left: it is tried again")
        needed = not self.verified and self._urgent()
        return busy and not needed and grown <= GROWTH_BYTES_CALM

    def _make_progress(self, part: float) -> None:
        self.progress = part

    async def _check_log(self, stop: asyncio.Event) -> bool:
        """Read the log, which was read at the start: for damage since. False if told to stop."""
        loop = asyncio.get_running_loop()
        rest = self._storage.log.check()
        while True:
            before = self._clock.monotonic()
            if await loop.run_in_executor(None, next, rest, None) is None:
                return True
            if await stopped(stop, pause_s(self._clock.monotonic() - before)):
                return False
