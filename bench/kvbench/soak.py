"""Faults of every kind for a long time, under mixed load; every answer is judged at the end."""

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from kvbench import clock
from kvbench.cluster import Cluster, Node
from kvbench.damaged import Damaged, Damager
from kvbench.failover import RunError
from kvbench.history import Read, Stored, Verdict
from kvbench.verify import verify
from kvbench.writer import Writer
from kvclient import AsyncClient, KvError

CLIENTS: Final = 4
CALL_S_MAX: Final = 2.0
FLOW_S_MAX: Final = 30.0
CALM_S: Final = (0.2, 2.0)
"""How long nothing new happens between two faults."""

HURT_S: Final = (0.1, 2.5)
"""How long a node stays dead or frozen."""

DECLINED_PAUSE_S: Final = 0.005


class Mischief(Enum):
    """What happens to a node, or to all."""

    KILL = "kill -9"
    KILL_ALL = "kill -9 of all"
    FREEZE = "freeze"
    STOP = "clean stop"
    LOSE_DISK = "lost disk"
    CUT_OFF = "cut off"
    ONE_WAY = "one way only"
    BREAK = "broken connections"
    DAMAGE_DOWN = "damage while down"
    DAMAGE_RUNNING = "damage while running"


_WEIGHTS: Final = {
    Mischief.KILL: 6, Mischief.KILL_ALL: 1, Mischief.FREEZE: 4, Mischief.STOP: 3,
    Mischief.LOSE_DISK: 1, Mischief.CUT_OFF: 4, Mischief.ONE_WAY: 2, Mischief.BREAK: 2,
}  # fmt: skip
"""Of all that is no damage to a disk."""

_DAMAGES: Final = (Mischief.DAMAGE_DOWN, Mischief.DAMAGE_RUNNING)


@dataclass(frozen=True)
class Soaked:
    """What a run found."""

    seconds: float
    faults: Counter[str]
    verdicts: Sequence[Verdict]
    """One for each client."""
    damages: Sequence[Damaged] = ()

    @property
    def broken(self) -> dict[str, int]:
        """Each broken promise with its number of cases; empty if all is well."""
        upsets = sum(each.blamed for each in self.damages)
        total = Counter({"upset by the damage of another": upsets} if upsets else {})
        for verdict in self.verdicts:
            total.update(verdict.broken)
        return dict(total)

    def damage_lines(self) -> list[str]:
        """How many damages there were and what became of them, for people."""
        if not self.damages:
            return []
        found = sum(each.found for each in self.damages)
        signals = sum(len(each.signals) for each in self.damages)
        upset = [each for each in self.damages if each.upsets]
        running = sum(each.running for each in self.damages)
        return [
            f"{len(self.damages)} disks damaged ({len(self.damages) - running} while down, "
            f"{running} while running): "
            f"{found} found, the nodes replaced; {len(self.damages) - found} harmless; "
            f"{signals} ends by a signal on the way; other nodes were upset beside {len(upset)}, "
            f"{sum(not each.blamed for each in upset)} of them while the bench stood still",
            *map(str, upset),
        ]


class _Client:
    """Writes, and reads the newest of its own writes through whoever serves."""

    def __init__(self, client: AsyncClient, prefix: str, rng: random.Random) -> None:
        self.prefix = prefix
        self.writer = Writer(client, prefix, rng)
        self.reads: list[Read] = []
        self._client = client
        self._reading: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.writer.start()
        self._reading = asyncio.create_task(self._read_on())

    async def stop(self) -> None:
        await self.writer.stop()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read_on(self) -> None:
        while True:
            expected = self.writer.newest
            if expected is None:
                await asyncio.sleep(DECLINED_PAUSE_S)
                continue
            begun = clock.monotonic()
            try:
                answer = await self._client.range(expected.key)
            except KvError:
                await asyncio.sleep(DECLINED_PAUSE_S)
                continue
            found = [Stored(kv.value, kv.version, kv.mod_revision) for kv in answer.kvs]
            self.reads.append(
                Read(
                    expected, begun, clock.monotonic(), answer.revision, found[0] if found else None
                )
            )


class Soak:
    """One run on a cluster that is up, with wires."""

    def __init__(
        self, cluster: Cluster, seconds: float, seed: int, damage_share: float = 0.0
    ) -> None:
        """Prepare.

        Args:
            cluster: that scrubs its disks often, if any of them is to be damaged.
            seconds: how long.
            seed: of what happens when.
            damage_share: part of the faults that damage a disk, from 0 to 1.
        """
        self._cluster = cluster
        self._seconds = seconds
        self._rng = random.Random(seed)  # noqa: S311 - what happens when, no secrets
        self._damage_share = damage_share
        self._damager = Damager(cluster, self._rng)
        self._damages: list[Damaged] = []
        self._faults: Counter[str] = Counter()

    async def run(self, on_fault: Callable[[float, str], None]) -> Soaked:
        """Do mischief until the time is over, then judge.

        Args:
            on_fault: told the seconds since the beginning, and what was done.

        Raises:
            RunError: writes did not flow again.
            ClusterError: a node did not do what it was told.
        """
        begun = clock.monotonic()
        async with self._cluster.connect(CALL_S_MAX) as client:
            clients = [
                _Client(client, f"soak{number}/", random.Random(number))  # noqa: S311 - texts
                for number in range(CLIENTS)
            ]
            for each in clients:
                each.start()
            try:
                while clock.monotonic() - begun < self._seconds:
                    await self._flow(clients)
                    await asyncio.sleep(self._rng.uniform(*CALM_S))
                    on_fault(clock.monotonic() - begun, await self._fault())
                await self._flow(clients)
            finally:
                for each in clients:
                    await each.stop()
        verdicts = [
            await verify(self._cluster, each.writer.writes, each.prefix, each.reads)
            for each in clients
        ]
        return Soaked(clock.monotonic() - begun, self._faults, verdicts, self._damages)

    async def _flow(self, clients: Sequence[_Client]) -> None:
        """Every client gets an acknowledgement of a write that begins now."""
        now = clock.monotonic()
        for each in clients:
            if not await each.writer.wait_acknowledged(now, FLOW_S_MAX):
                trouble = f"{each.writer.trouble}\n{await self._cluster.report()}"
                raise RunError(f"no write was acknowledged for {FLOW_S_MAX:g} s: {trouble}")

    async def _fault(self) -> str:
        """One fault from its beginning to its end; what it was, for people."""
        kind = choose(self._rng, self._damage_share)
        self._faults[kind.value] += 1
        if kind not in _DAMAGES:
            await self._mischief(kind)
            return f"{kind.value}"
        self._damages.append(await self._damager.damage(running=kind is Mischief.DAMAGE_RUNNING))
        return str(self._damages[-1])

    async def _mischief(self, kind: Mischief) -> None:
        if kind is Mischief.LOSE_DISK or self._rng.random() < 0.5:
            await self._cluster.wait_in_step()
        nodes = self._cluster.nodes
        victim = self._rng.choice(nodes)
        if self._rng.random() < 0.6:
            victim = await self._cluster.active()
        hurt_s = self._rng.uniform(*HURT_S)
        if kind is Mischief.FREEZE:
            victim.stop()
            await asyncio.sleep(hurt_s)
            victim.cont()
        elif kind in {Mischief.CUT_OFF, Mischief.ONE_WAY, Mischief.BREAK}:
            await self._cut(kind, victim, hurt_s)
        elif kind is Mischief.KILL_ALL:
            await self._restart(nodes, hurt_s, Node.kill)
        elif kind is Mischief.STOP:
            await self._restart([victim], hurt_s, Node.term)
        else:
            await self._restart([victim], hurt_s, Node.kill, empty=kind is Mischief.LOSE_DISK)
        if kind is Mischief.LOSE_DISK:
            await self._cluster.wait_in_step()

    async def _cut(self, kind: Mischief, victim: Node, hurt_s: float) -> None:
        """Do something to the wires of a node, and mend them in the end."""
        wires = self._cluster.wires
        heard = self._rng.random() < 0.5
        for other in self._cluster.others(victim):
            ends = (victim.name, other.name)
            if kind is Mischief.CUT_OFF:
                wires.part(*ends)
            elif kind is Mischief.ONE_WAY:
                wires.cut(*(reversed(ends) if heard else ends))
            else:
                wires.reset(*ends)
        await asyncio.sleep(hurt_s)
        wires.mend()

    async def _restart(
        self,
        victims: Sequence[Node],
        after_s: float,
        end: Callable[[Node], None],
        *,
        empty: bool = False,
    ) -> None:
        for node in victims:
            end(node)
        for node in victims:
            await node.wait_exit()
            if empty:
                await asyncio.to_thread(shutil.rmtree, node.plan.data)
        await asyncio.sleep(after_s)
        for node in victims:
            node.start()


def choose(rng: random.Random, damage_share: float) -> Mischief:
    """What happens next; a disk is damaged in that part of all cases, from 0 to 1."""
    if rng.random() < damage_share:
        return rng.choice(_DAMAGES)
    return rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
