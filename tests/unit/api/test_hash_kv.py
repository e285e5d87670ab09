"""HashKV: which hash a node answers with, and what a compaction meanwhile does."""

import asyncio
import threading
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.small_store import Store

from kvpb.rpc_pb2 import HashKVRequest, HashKVResponse
from kvserver.api.door import Door
from kvserver.api.maintenance import HASHES_MAX, MaintenanceServicer
from kvserver.errors import CompactedError, TooManyRequestsError
from kvserver.mvcc.kepthash import KeptHash
from kvserver.mvcc.statehash import StateHash
from kvserver.pipeline.features import KEPT_HASH_LEVEL


class Served:
    """A store behind the servicer."""

    def __init__(self) -> None:
        self.store = Store()
        self.store.change([(b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", None)])
        self.level = KEPT_HASH_LEVEL
        door = SimpleNamespace(
            storage=self.store.storage, answer=self._answer, own_answers_visible=self._visible,
            feature_level=lambda: self.level, make_backup=None,
            fill=lambda header, revision: setattr(header, "revision", revision),
        )  # fmt: skip
        self._servicer = MaintenanceServicer(cast("Door", door))

    async def _answer(self, _context: object, work: Awaitable[HashKVResponse]) -> HashKVResponse:
        return await work

    async def _visible(self) -> None: ...

    async def hash(self, revision: int = 0) -> HashKVResponse:
        request = HashKVRequest(revision=revision)
        return await self._servicer.HashKV(request, cast("Any", None))


def finished(found: KeptHash | StateHash) -> int:
    while not found.step():
        pass
    return found.value


@pytest.mark.parametrize("revision", [3, 0])
async def test_members_of_mixed_versions_answer_the_same_hash(revision: int) -> None:
    served = Served()
    hashed = revision or served.store.revision
    older = StateHash(served.store.storage, hashed)
    newer = KeptHash(served.store.storage, hashed)
    assert finished(newer) != finished(older)
    for level, found in ((KEPT_HASH_LEVEL - 1, older), (KEPT_HASH_LEVEL, newer)):
        served.level = level
        response = await served.hash(revision)
        assert response.hash == found.value
        assert (response.compact_revision, response.hash_revision) == (-1, hashed)
        assert response.header.revision == served.store.revision


async def test_a_compaction_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has asked for the newest revision gets the hash of what is the newest then."""
    served, step = Served(), KeptHash.step

    def step_after_a_compaction(self: KeptHash) -> bool:
        monkeypatch.setattr(KeptHash, "step", step)
        served.store.change([(b"c", b"1")])
        served.store.compact(served.store.revision)
        return self.step()

    monkeypatch.setattr(KeptHash, "step", step_after_a_compaction)
    response = await served.hash()
    assert response.hash_revision == response.compact_revision == served.store.revision
    assert response.hash == finished(KeptHash(served.store.storage, served.store.revision))
    monkeypatch.setattr(KeptHash, "step", step_after_a_compaction)
    with pytest.raises(CompactedError):
        await served.hash(served.store.revision)


async def test_few_are_hashed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a thread, and the GIL from the one that keeps the leadership."""
    served, go, step = Served(), threading.Event(), KeptHash.step

    def step_when_told(self: KeptHash) -> bool:
        go.wait(30)
        return step(self)

    monkeypatch.setattr(KeptHash, "step", step_when_told)
    under_way = [asyncio.create_task(served.hash()) for _ in range(HASHES_MAX)]
    await asyncio.sleep(0.01)
    try:
        with pytest.raises(TooManyRequestsError):
            await served.hash()
    finally:
        go.set()
    await asyncio.gather(*under_way)
    await served.hash()
