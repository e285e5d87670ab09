"""The writer: each key once, whatever the client says, and everything remembered."""

import asyncio
import random
from typing import cast

import pytest

from kvbench.history import Fate
from kvbench.writer import Writer, sentence
from kvclient import AsyncClient, DeadlineExceeded, OutcomeUnknown, PutResult


class Client:
    """Answers puts as told; then waits for ever."""

    def __init__(self, *answers: int | Exception) -> None:
        self._answers = list(answers)
        self.keys: list[str] = []
        self.exhausted = asyncio.Event()

    async def put(self, key: str, value: str) -> PutResult:
        self.keys.append(key)
        await asyncio.sleep(0)
        if not self._answers:
            self.exhausted.set()
            await asyncio.sleep(0.001)
            return PutResult(1_000 + len(self.keys), None)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return PutResult(answer, None)


async def run(*answers: int | Exception) -> tuple[Writer, Client]:
    client = Client(*answers)
    writer = Writer(cast("AsyncClient", client), "k/", random.Random(1))
    writer.start()
    await client.exhausted.wait()
    await writer.stop()
    return writer, client


async def test_every_key_is_written_once_whatever_became_of_the_last() -> None:
    unknown = OutcomeUnknown("the put", "h:1", "gone")
    writer, client = await run(2, unknown, DeadlineExceeded("late", []), 3)
    fates = [write.fate for write in writer.writes[:4]]
    assert fates == [Fate.ACKNOWLEDGED, Fate.UNKNOWN, Fate.REFUSED, Fate.ACKNOWLEDGED]
    assert [write.revision for write in writer.writes[:4]] == [2, 0, 0, 3]
    assert client.keys == [f"k/{number:08}" for number in range(1, len(client.keys) + 1)]
    assert [write.key for write in writer.writes] == client.keys


async def test_the_newest_is_the_last_acknowledged() -> None:
    writer, _ = await run(2)
    assert writer.newest is writer.writes[-1]
    assert all(write.begun <= write.ended for write in writer.writes)


async def test_since_begins_with_the_last_acknowledged_before() -> None:
    writer, _ = await run(2, 3, OutcomeUnknown("the put", "h:1", "gone"), 4)
    moment = writer.writes[3].ended
    assert list(writer.since(moment)) == writer.writes[1:]
    assert list(writer.since(0.0)) == writer.writes


async def test_what_the_writer_fails_with_is_not_swallowed() -> None:
    client = Client(ValueError("a bug"))
    writer = Writer(cast("AsyncClient", client), "k/", random.Random(1))
    writer.start()
    with pytest.raises(ValueError, match="a bug"):
        await writer.wait_acknowledged(0.0, 5.0)


def test_texts_come_from_the_seed() -> None:
    first = [sentence(random.Random(4)) for _ in range(2)]
    assert first[0] == first[1]
    rng = random.Random(4)
    texts = {sentence(rng) for _ in range(200)}
    assert len(texts) > 100
    assert any(not text.isascii() for text in texts)
