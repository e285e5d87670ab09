"""Three real nodes, one hurt while it was down: what it says and serves, and whom it disturbs.

What is known is what was acknowledged; it is asked of the hurt node once that is the active.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

import lmdb
from support.cluster import CALL_S_MAX, Writers, wait_until
from support.damage import Damage, Damages

from kvbench import clock
from kvbench.cluster import Cluster, Node
from kvclient import AsyncClient, Compare, KvError, Op
from kvserver.errors import ExitCode

SETTLED_S_MAX: Final = 45.0
"""From the start of a hurt node to its end, or to where it may become the active."""

FIRST_KINDS: Final = (
    "bit: separator", "lie: a row is missing, file sound", "data.mdb: empty", "bit: branch node",
    "lie: an older root",
)  # fmt: skip
"""Which a short run should have: no checksum of a row sees any of them."""

KEYS: Final = 400
HOT_CHANGES: Final = 150

_TROUBLE: Final = re.compile(r"^\S+ error ", re.MULTILINE)
_UNREST: Final = ("role.", "election.", "node.restart", "node.stuck", "node.stopped")


class End(Enum):
    """What became of a hurt node."""

    ENDED = "it ended, and said why"
    LATE = "it was made the active, and ended"
    ACTIVE = "it was made the active, and all its answers were right"
    UNWILLING = "it runs, but can't be made the active"


class Known:
    """Keys that were acknowledged, and how they were once."""

    def __init__(self) -> None:
        self.now: dict[bytes, bytes] = {}
        self.gone: set[bytes] = set()
        self.then: dict[bytes, bytes] = {}
        self.then_revision = 0

    async def fill(self, client: AsyncClient, rng: Random) -> None:
        """Write keys, some large, one often; keep a revision; change, delete."""
        keys = [b"known/%04d" % number for number in range(KEYS)]
        await self._put(client, keys, rng)
        await self._put(client, [b"known/hot"] * HOT_CHANGES, rng)
        self.then = dict(self.now)
        self.then_revision = (await client.put("known/last", "x", timeout_s=CALL_S_MAX)).revision
        self.now[b"known/last"] = self.then[b"known/last"] = b"x"

    async def change(self, client: AsyncClient, rng: Random) -> None:
        """Change some, delete some."""
        keys = rng.sample(sorted(self.now), 80)
        await self._put(client, keys[:60], rng)
        for key in keys[60:]:
            await client.delete(key, timeout_s=CALL_S_MAX)
            del self.now[key]
            self.gone.add(key)

    async def _put(self, client: AsyncClient, keys: Iterable[bytes], rng: Random) -> None:
        for some in batched_keys(keys):
            puts = {key: rng.randbytes(6000 if rng.random() < 0.02 else 50) for key in some}
            await asyncio.gather(
                *(client.put(key, value, timeout_s=CALL_S_MAX) for key, value in puts.items())
            )
            self.now |= puts
            self.gone -= puts.keys()

    async def check(self, client: AsyncClient) -> None:
        """Everything, asked in every way.

        Raises:
            KvError: it is not answered.
            AssertionError: an answer is wrong.
        """
        listed = await client.range("known/", prefix=True)
        assert {kv.key: kv.value for kv in listed.kvs} == self.now
        counted = await client.range("known/", prefix=True, count_only=True)
        assert counted.count == len(self.now)
        past = await client.range("known/", prefix=True, revision=self.then_revision)
        assert {kv.key: kv.value for kv in past.kvs} == self.then
        for some in batched_keys(self.now):
            await asyncio.gather(*(self._check_key(client, key) for key in some))
        for key in self.gone:
            assert await client.get(key) is None, key

    async def _check_key(self, client: AsyncClient, key: bytes) -> None:
        found = await client.get(key)
        assert found is not None, key
        assert found.value == self.now[key], key
        absent = Compare.create_revision(key, "==", 0)
        made = await client.txn([absent], [Op.put(key, "made")], [Op.range(key)])
        assert not made.succeeded, f"{key!r} was there, and was created"


def batched_keys(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Some at a time."""
    left = iter(keys)
    while some := list(islice(left, 40)):
        yield some


class Ward:
    """A cluster whose standbys are hurt one after the other."""

    def __init__(self, cluster: Cluster, known: Known, folder: Path, seed: int) -> None:
        self.cluster = cluster
        self._known = known
        self._folder = folder
        self._seed = seed
        self._older: dict[str, list[Path]] = {node.name: [] for node in cluster.nodes}
        self._replaced = 0

    def keep_older(self, *nodes: Node) -> None:
        """Copy the files of their states, consistently, for damage that brings back what was."""
        for node in nodes:
            older = self._folder / f"older-{node.name}-{clock.monotonic()}"
            older.mkdir()
            current = node.plan.data / (node.plan.data / "CURRENT").read_text().strip()
            with lmdb.open(
                str(current), readonly=True, lib_version=0, max_readers=1024
            ) as environment:
                environment.copy(str(older))
            self._older[node.name].append(older / "data.mdb")

    def draw(self, node: Node, number: int) -> Damage:
        """The damage with this number, of a node that is stopped; each has another kind."""
        damages = Damages(node.plan.data, self._older[node.name][-2:])
        others = [each for each in damages.kinds if each not in FIRST_KINDS]
        Random(self._seed).shuffle(others)
        kinds = [*FIRST_KINDS, *others]
        rng = Random(f"{self._seed} {number}")
        for kind in [*kinds, *kinds][number % len(kinds) :]:
            with contextlib.suppress(LookupError):  # a small node may lack what is to be hurt
                return damages.draw(rng, kind)
        raise AssertionError("no damage can be drawn")

    async def hurt(self, number: int, writers: Writers) -> tuple[Damage, End]:
        """Hurt a standby, let it come back, and make it the active if it is willing."""
        active = await self.cluster.wait_in_step()
        node = Random(f"{self._seed} {number} node").choice(self.cluster.others(active))
        node.term()
        assert await node.wait_exit() == ExitCode.OK
        damage = self.draw(node, number)
        damage.apply(node.plan.data)
        healthy = self.cluster.others(node)
        pids = {each.name: each.pid for each in healthy}
        logs = {each.name: len(each.log.read_text()) for each in (*healthy, node)}
        await writers.flow()
        node.start()
        end = await self._settle(node, healthy, logs)
        await writers.flow()
        assert {each.name: each.pid for each in healthy} == pids, f"another node ended: {damage}"
        for each in healthy:
            assert not _TROUBLE.search(said(each, logs)), f"{each.name} has trouble: {damage}"
        if not node.running:
            await self._replace(node, said(node, logs))
        return damage, end

    async def _settle(self, node: Node, healthy: Iterable[Node], logs: dict[str, int]) -> End:
        deadline = clock.monotonic() + SETTLED_S_MAX
        willing = False
        while node.running and not willing and clock.monotonic() < deadline:
            willing = await self._in_step(node)
            if willing:
                _check_calm(healthy, logs)
                willing = await self._make_active(node)
        if not willing:
            _check_calm(healthy, logs)
        if not node.running:
            return End.ENDED
        if not willing:
            return End.UNWILLING
        try:
            async with AsyncClient([node.client], timeout_s=CALL_S_MAX) as client:
                await self._known.check(client)
        except KvError:
            await self.cluster.active()
            await wait_until(lambda: not node.running, "it ends, since it does not answer")
            return End.LATE
        return End.ACTIVE

    async def _in_step(self, node: Node) -> bool:
        await asyncio.sleep(0.1)
        status, leader = await self.cluster.status(node), None
        for each in self.cluster.others(node):
            seen = await self.cluster.status(each)
            leader = seen if seen is not None and seen.active else leader
        return (
            status is not None
            and leader is not None
            and (status.leader, status.term) == (leader.member_id, leader.term)
        )

    async def _make_active(self, node: Node) -> bool:
        status = await self.cluster.status(node)
        if status is None:
            return False
        try:
            await self.cluster.control.move_leader(status.member_id, timeout_s=5)
            return (await self.cluster.active()) is node
        except KvError:  # it is not verified yet, or it has ended
            return False

    async def _replace(self, node: Node, log: str) -> None:
        """It must have said what to do; that is done."""
        code = await node.wait_exit()
        if code == ExitCode.DATA_DIR:
            assert "empty its --data-dir and start it again" in log, log[-2000:]
        else:  # a signal: damage in a mapped file can end a process so
            assert code < 0, (code, log[-2000:])
        assert "Traceback" not in log, log[-4000:]
        self._replaced += 1
        node.plan.data.rename(self._folder / f"replaced-{self._replaced}")
        self._older[node.name].clear()
        node.start()
        await self.cluster.wait_in_step()
        await self._wait_voters()
        self.keep_older(node)

    async def _wait_voters(self) -> None:
        """Until the new member counts: else the next one that is stopped stops the cluster."""
        deadline = clock.monotonic() + SETTLED_S_MAX
        while any(each.learner for each in await self.cluster.control.members(timeout_s=5)):
            assert clock.monotonic() < deadline, "the new member is not made a voter"
            await asyncio.sleep(0.05)


def said(node: Node, logs: dict[str, int]) -> str:
    """What a node has logged since the lengths of the logs were taken."""
    return node.log.read_text()[logs[node.name] :]


def _check_calm(healthy: Iterable[Node], logs: dict[str, int]) -> None:
    """Nobody asked for another active yet, so nobody may have become one."""
    for each in healthy:
        lines = [line for line in said(each, logs).splitlines() if any(u in line for u in _UNREST)]
        assert not lines, f"{each.name} was disturbed: {lines}"
