"""Damaged directories judged in processes of their own, some at a time.

Each is forked from one that knows the truth, so it costs milliseconds. A damage may end it by a
signal, as it may end a node, and a hang is ended by its alarm.
"""

import faulthandler
import os
import selectors
import shutil
import signal
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from support.answers import WrongError
from support.damage import Damage, Damages
from support.judge import Judge
from support.served import Sound

from kvserver.errors import DataDirError

LIMIT_S = 60
"""Of one damage: a hang ends here."""

LATE_PART = 0.5
"""Of all verifications: those that begin when the node has gone on already."""

BEFORE_SERVING = ("open", "replay", "verify")
ENDS = ("found", "crashed", "untidy", "hung", "harmless", "late", "WRONG")
"""How a damage ends. `found`: the node says so before it serves, `crashed`: a signal ended it,
`untidy`: an error that names no damage did; `late`: one of these, but only while it served."""


@dataclass(frozen=True)
class Judged:
    """What became of one damage."""

    number: int
    kind: str
    damage: str
    end: str
    step: str = ""
    """What was being done when it ended."""
    told: str = ""


def draw(damages: Damages, seed: int, number: int) -> Damage:
    """Damage `number` of a seed; the kinds come by turns."""
    kinds = damages.kinds
    return damages.draw(Random(f"{seed} {number}"), kinds[number % len(kinds)])


class Child:
    """A process that judges one damage and says how far it is, line by line."""

    def __init__(self, number: int, damage: Damage, folder: Path) -> None:
        self.number = number
        self.damage = damage
        self.folder = folder
        self.said = b""

    def start(self, sound: Sound, writes: int) -> None:
        self.pipe, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                faulthandler.disable()  # how it ends is told in one line
                for each in (signal.SIGALRM, signal.SIGTERM):
                    signal.signal(each, signal.SIG_DFL)
                signal.alarm(LIMIT_S)  # also if the parent is gone
                _judge(self, sound, writes, out)
            finally:  # what is to be cleaned up is the parent's
                os._exit(0)
        os.close(out)

    def reap(self) -> Judged:
        """It is gone: how did that end?"""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        shutil.rmtree(self.folder, ignore_errors=True)
        lines = self.said.decode(errors="replace").splitlines()
        steps = [line.removeprefix("step ") for line in lines if line.startswith("step ")]
        step = steps[-1] if steps else "open"
        ends = [line for line in lines if line.startswith("end ")]
        end, told = "harmless", ""
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            end, told = "crashed", signal.Signals(number).name
            if number == signal.SIGALRM:
                end = "hung"
        elif ends:
            _, end, told = ends[-1].split(" ", 2)
        if end in ("found", "crashed", "untidy") and step not in BEFORE_SERVING:
            end = "late"
        return Judged(self.number, self.damage.kind, str(self.damage), end, step, told)


def _judge(child: Child, sound: Sound, writes: int, out: int) -> None:
    """In the child: open, verify, serve; whatever happens is told in one line."""

    def tell(line: str) -> None:
        os.write(out, (line.replace("\n", " ")[:2000] + "\n").encode())

    try:
        tell("step open")
        judge = Judge(
            sound, child.folder, lambda step: tell(f"step {step}"),
            late=Random(child.number).random() < LATE_PART, limit_s=LIMIT_S,
        )  # fmt: skip
        judge.run(writes)
    except WrongError as error:
        tell(f"end WRONG {error}")
    except DataDirError as error:
        tell(f"end found {error}")
    except BaseException as error:  # noqa: BLE001 - it is what ends a node
        at = traceback.extract_tb(error.__traceback__)[-1]
        tell(f"end untidy {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})")


class Explorer:
    """Some processes at a time; close it."""

    def __init__(self, folder: Path, sound: Sound, writes: int, jobs: int) -> None:
        self._folder = folder
        self._sound = sound
        self._writes = writes
        self._jobs = jobs
        self._running: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()

    def judge(self, damages: Iterable[tuple[int, Damage]]) -> Iterator[Judged]:
        """In the order in which they end."""
        coming = iter(damages)
        waiting = next(coming, None)
        while waiting is not None or self._running:
            while waiting is not None and len(self._running) < self._jobs:
                self._start(*waiting)
                waiting = next(coming, None)
            for key, _ in self._selector.select():
                child = self._running[key.fd]
                said = os.read(key.fd, 1 << 16)
                child.said += said
                if not said:
                    self._selector.unregister(key.fd)
                    del self._running[key.fd]
                    yield child.reap()

    def _start(self, number: int, damage: Damage) -> None:
        folder = self._folder / f"damaged-{number}"
        shutil.copytree(self._sound.data_dir, folder)
        damage.apply(folder)
        child = Child(number, damage, folder)
        child.start(self._sound, self._writes)
        self._running[child.pipe] = child
        self._selector.register(child.pipe, selectors.EVENT_READ)

    def close(self) -> None:
        """End those that run still."""
        for child in self._running.values():
            os.kill(child.pid, signal.SIGKILL)
            child.reap()
        self._running.clear()
        self._selector.close()
