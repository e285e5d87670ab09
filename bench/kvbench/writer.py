"""The client whose view counts: writes distinct keys one by one, and remembers everything."""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from kvbench import clock
from kvbench.history import Fate, Write
from kvclient import AsyncClient, KvError, OutcomeUnknown

WRITES_MAX: Final = 5_000_000
"""Each is kept in memory until the end."""

REFUSED_PAUSE_S: Final = 0.002

_WHO = (
    "The harbour master", "A night train", "My neighbour", "The choir of Köln", "Señor Ibáñez",
    "The lighthouse", "Every second ferry", "Grandmother Šárka", "The baker's apprentice",
)  # fmt: skip
_DOES = ("counted", "forgot", "sold", "painted", "borrowed", "photographed", "repaired")
_WHAT = (
    "eleven copper kettles", "the wrong umbrella", "a crate of Äpfel", "two tickets to Łódź",
    "an unfinished letter", "the map of the old town", "a bicycle without brakes", "東京の地図",
)  # fmt: skip
_WHEN = (
    "before the rain came.", "and nobody asked why.", "on the third of May.", "at 5 °C.",
    "while the clocks were changed.", "in spite of the fog.", "for €3.50 each.",
)  # fmt: skip


def sentence(rng: random.Random) -> str:
    """A short text such as people store."""
    return " ".join(rng.choice(words) for words in (_WHO, _DOES, _WHAT, _WHEN))


class Writer:
    """Writes `<prefix>00000001` and so on, each key once, from `start` to `stop`.

    One write is under way at a time. One that gets no answer within the client's timeout is left
    behind as unknown, and the next key's turn comes; nothing is ever written twice.
    """

    def __init__(self, client: AsyncClient, prefix: str, rng: random.Random) -> None:
        self._client = client
        self._prefix = prefix
        self._rng = rng
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.writes: list[Write] = []
        self.newest: Write | None = None
        """The latest acknowledged one."""
        self.trouble = ""
        """What the client said of the latest one that was not."""

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish the write under way and end; raises what the writer failed with."""
        self._stopping = True
        if self._task is not None:
            await self._task

    def check(self) -> None:
        """Raise what the writer failed with, if it did."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def _run(self) -> None:
        while not self._stopping and len(self.writes) < WRITES_MAX:
            write = await self._write(len(self.writes) + 1)
            self.writes.append(write)
            if write.fate is Fate.ACKNOWLEDGED:
                self.newest = write
            elif write.fate is Fate.REFUSED:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _write(self, number: int) -> Write:
        key, value = f"{self._prefix}{number:08}", f"{number}: {sentence(self._rng)}"
        fate, revision = Fate.ACKNOWLEDGED, 0
        begun = clock.monotonic()
        try:
            revision = (await self._client.put(key, value)).revision
        except KvError as error:
            fate = Fate.UNKNOWN if isinstance(error, OutcomeUnknown) else Fate.REFUSED
            self.trouble = str(error)
        return Write(key, value, begun, clock.monotonic(), fate, revision)

    # ------------------------------------------------------------------ what it has seen

    def since(self, moment: float) -> Sequence[Write]:
        """Writes that ended at `moment` or later, and the last acknowledged one before."""
        first = len(self.writes)
        while first > 0:
            first -= 1
            write = self.writes[first]
            if write.ended < moment and write.fate is Fate.ACKNOWLEDGED:
                break
        return self.writes[first:]

    async def wait_acknowledged(self, begun_after: float, timeout_s: float) -> bool:
        """Wait for the acknowledgement of a write that began after a moment; False if too late."""
        deadline = clock.monotonic() + timeout_s
        while self.newest is None or self.newest.begun < begun_after:
            self.check()
            if clock.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True
