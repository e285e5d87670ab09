"""A lock is never granted twice, and an old token opens nothing, whatever happens to the active."""

import asyncio
import random

import pytest
from support.cluster import WAIT_S_MAX, crash, hand_over, wait_until
from support.lease_holder import Contender

from kvbench.cluster import Cluster

pytestmark = pytest.mark.cluster

NAME = b"the lock"
COUNTER = b"counted"
CONTENDERS = 4
HELD_S = 0.03
TTL_S = 10
SHORT_TTL_S = 3
ROUNDS_PER_FAULT = 8


class Crowd:
    """Contenders of one process, so that two at once would be seen."""

    def __init__(self, cluster: Cluster) -> None:
        self._rng = random.Random(1)
        self.contenders = [
            Contender(cluster.endpoints, lease, TTL_S) for lease in range(1, CONTENDERS + 1)
        ]
        self._inside: Contender | None = None
        self.tokens: list[int] = []
        self._stopping = False

    async def compete(self, contender: Contender) -> None:
        while not self._stopping:
            token = await contender.lock(NAME)
            assert self._inside is None, f"{self._inside} and {contender} at once"
            self._inside = contender
            self.tokens.append(token)
            await asyncio.sleep(self._rng.uniform(0, HELD_S))
            assert await contender.write_guarded(COUNTER, token), "the lock was lost"
            self._inside = None
            await contender.unlock()

    async def run(self) -> "list[asyncio.Task[None]]":
        for contender in self.contenders:
            await contender.begin()
            contender.keep_alive()
        return [asyncio.create_task(self.compete(each)) for each in self.contenders]

    async def stop(self, tasks: "list[asyncio.Task[None]]") -> None:
        self._stopping = True
        async with asyncio.timeout(WAIT_S_MAX):
            await asyncio.gather(*tasks)
        for contender in self.contenders:
            await contender.leave()


async def test_one_at_a_time_over_failovers_of_every_kind(cluster: Cluster) -> None:
    crowd = Crowd(cluster)
    tasks = await crowd.run()
    for fault in ("kill", "stop", "transfer", "kill"):
        before = len(crowd.tokens)
        await wait_until(
            lambda count=before: len(crowd.tokens) > count + ROUNDS_PER_FAULT or failed(tasks),  # type: ignore[misc]
            "the lock is taken",
        )
        active = await cluster.active()
        match fault:
            case "kill":
                await crash(active)
                assert await cluster.active() is not active
                active.start()
            case "stop":
                active.stop()
                assert await cluster.active() is not active
                active.cont()
            case _:
                await hand_over(cluster)
        await cluster.wait_in_step()
    await crowd.stop(tasks)
    assert crowd.tokens == sorted(set(crowd.tokens)), "tokens grow with every grant"


def failed(tasks: "list[asyncio.Task[None]]") -> bool:
    return any(task.done() for task in tasks)


async def test_an_old_token_opens_nothing(cluster: Cluster) -> None:
    """Its holder is gone for longer than its lease, and does not know it."""
    old, new = (Contender(cluster.endpoints, lease, SHORT_TTL_S) for lease in (1, 2))
    await old.begin()
    token = await old.lock(NAME)
    assert await old.write_guarded(COUNTER, token)
    await new.begin()
    new.keep_alive()
    waiting = asyncio.create_task(new.lock(NAME))
    active = await cluster.active()
    await crash(active)
    active.start()
    assert await old.write_guarded(COUNTER, token), "a failover alone costs nobody the lock"
    newer = await waiting
    assert newer > token
    assert not await old.write_guarded(COUNTER, token)
    assert await new.write_guarded(COUNTER, newer)
    await new.leave()
