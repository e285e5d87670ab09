"""What many keys cost: memory, a restart, its verification, a standby that lost its disk."""

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvbench import clock
from kvbench.cluster import Cluster, ClusterError, Node
from kvbench.history import Fate, Verdict
from kvbench.nodelog import LogEvent
from kvbench.verify import verify_all
from kvbench.writer import Writer
from kvclient import AsyncClient, Op, OutcomeUnknown

KEYS_PER_TXN: Final = 128
FILLERS: Final = 8
WRITERS: Final = 16
CALL_S_MAX: Final = 30.0
COMEBACK_S_MAX: Final = 600.0
READY_S_MAX: Final = 120.0
POLL_S: Final = 0.01

_KEY: Final = "scale/{:010}"


@dataclass(frozen=True)
class Rate:
    """Acknowledged writes in a stretch of time."""

    writes: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Writes."""
        return self.writes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Restart:
    """A standby's process, from its start on."""

    ready_s: float
    verified_s: float
    """Until it had read all of its data."""
    grew_bytes: int
    """What its file grew by while it did, by its own account."""


@dataclass(frozen=True)
class Scaled:
    """What a run found."""

    keys: int
    fill_s: float
    memory_empty: Mapping[str, int]
    """Bytes of each node's own memory, without the pages of its file, by name."""
    memory_full: Mapping[str, int]
    file_bytes: int
    """On the active's disk."""
    idle: Restart
    """While nobody writes."""
    loaded: Restart
    """Beside writes."""
    before: Rate
    """Writes while all nodes were there."""
    beside: Rate
    """Writes while the standby that was ready again read its data."""
    meanwhile: Rate
    """Writes from the start of the standby with an empty disk until it voted again, in step."""
    wiped_verified_s: float
    """From that start until it had read all of the copy that it was given."""
    after: Rate
    verdicts: Sequence[Verdict]

    @property
    def kept(self) -> float:
        """Part of the rate that was kept meanwhile, by what it was before and after."""
        usual = (self.before.per_second + self.after.per_second) / 2
        return self.meanwhile.per_second / usual if usual else 0.0

    @property
    def kept_beside(self) -> float:
        """Part of the rate that was kept beside a verification, by what it was before."""
        before = self.before.per_second
        return self.beside.per_second / before if before else 0.0

    @property
    def broken(self) -> bool:
        """Whether a promise was."""
        return any(verdict.broken for verdict in self.verdicts)

    def lines(self) -> list[str]:
        """All of it, for people."""
        grown = max(self.memory_full[name] - before for name, before in self.memory_empty.items())
        return [
            f"{self.keys:,} keys filled in {self.fill_s:.0f} s; "
            f"{self.file_bytes / 1e6:,.0f} MB on the active's disk",
            f"memory of a node: at most {max(self.memory_empty.values()) / 1e6:.0f} MB before, "
            f"{max(self.memory_full.values()) / 1e6:.0f} MB after (+{grown / 1e6:.0f} MB at most)",
            f"a standby started again: ready after {self.idle.ready_s:.2f} s, "
            f"verified after {self.idle.verified_s:.1f} s",
            f"the same beside writes: ready after {self.loaded.ready_s:.2f} s, "
            f"verified after {self.loaded.verified_s:.1f} s, its file grew by "
            f"{self.loaded.grew_bytes / 1e6:.1f} MB; meanwhile "
            f"{self.beside.per_second:,.0f} writes/s, {self.kept_beside:.0%} of what it was before",
            f"a standby that lost its disk: a voter in step after {self.meanwhile.seconds:.1f} s, "
            f"meanwhile {self.meanwhile.per_second:,.0f} writes/s, "
            f"{self.kept:.0%} of what it was "
            f"({self.before.per_second:,.0f} before, {self.after.per_second:,.0f} after); "
            f"verified after {self.wiped_verified_s:.1f} s",
            f"{sum(verdict.acknowledged for verdict in self.verdicts):,} writes read back: "
            + ("a promise is broken" if self.broken else "none lost, none altered"),
        ]


class Scale:
    """One run on a cluster that is up."""

    def __init__(
        self, cluster: Cluster, *, keys: int, value_bytes: int, seconds: float,
        on_step: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Prepare.

        Args:
            cluster: of at least three nodes, on which a standby will lose its disk.
            keys: how many to fill in.
            value_bytes: of each.
            seconds: how long writes are counted before and after.
            on_step: told what is done next.
        """
        self._cluster = cluster
        self._keys = keys
        self._value = "v" * value_bytes
        self._seconds = seconds
        self._tell = on_step

    async def run(self) -> Scaled:
        """Do all of it.

        Raises:
            ClusterError: a node did not come back.
        """
        cluster = self._cluster
        memory_empty = {node.name: own_memory(node) for node in cluster.nodes}
        self._tell(f"filling in {self._keys:,} keys")
        begun = clock.monotonic()
        await self._fill()
        fill_s = clock.monotonic() - begun
        active = await cluster.wait_in_step()
        memory_full = {node.name: own_memory(node) for node in cluster.nodes}
        standby = cluster.others(active)[0]
        self._tell(f"starting {standby.name} again")
        idle, _ = await self._restart(standby)
        await cluster.wait_in_step()
        async with cluster.connect(CALL_S_MAX) as client:
            writers = [
                Writer(client, f"w{number:02}/", random.Random(number))  # noqa: S311 - texts
                for number in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            try:
                self._tell("counting writes")
                before = await count(writers, asyncio.sleep(self._seconds))
                self._tell(f"starting {standby.name} again beside them")
                loaded, beside = await self._restart(standby, writers)
                await cluster.wait_in_step()
                meanwhile, wiped_verified_s = await self._lose_disk(standby, writers)
                self._tell("counting writes")
                after = await count(writers, asyncio.sleep(self._seconds))
            finally:
                await asyncio.gather(*(writer.stop() for writer in writers))
        self._tell("reading everything back")
        told = {f"w{number:02}/": (each.writes, ()) for number, each in enumerate(writers)}
        verdicts = await verify_all(cluster, told)
        return Scaled(
            self._keys, fill_s, memory_empty, memory_full, file_bytes(active), idle, loaded,
            before, beside, meanwhile, wiped_verified_s, after, verdicts,
        )  # fmt: skip

    async def _fill(self) -> None:
        numbers = iter(range(0, self._keys, KEYS_PER_TXN))
        async with self._cluster.connect(CALL_S_MAX) as client:
            await asyncio.gather(*(self._fill_share(client, numbers) for _ in range(FILLERS)))

    async def _fill_share(self, client: AsyncClient, numbers: Iterable[int]) -> None:
        for first in numbers:
            last = min(first + KEYS_PER_TXN, self._keys)
            puts = [Op.put(_KEY.format(number), self._value) for number in range(first, last)]
            while True:
                try:
                    await client.txn(success=puts)
                    break
                except OutcomeUnknown:  # the same again changes nothing here
                    continue

    async def _restart(self, node: Node, writers: Sequence[Writer] = ()) -> tuple[Restart, Rate]:
        """End a node and start it; the writes from then on, when it is ready, until it is verified.

        It is killed, so its start is the one after a crash.
        """
        node.kill()
        await node.wait_exit()
        since, begun = clock.wall(), await self._start(node)
        ready_s = clock.monotonic() - begun
        beside = await count(writers, self._cluster.wait_verified(node))
        verified_s = clock.monotonic() - begun
        grew_bytes = await wait_grown(node, since)
        return Restart(ready_s, verified_s, grew_bytes), beside

    async def _start(self, node: Node) -> float:
        """Start a node and wait until it says that it is ready; when its process was started."""
        starts = ready_count(node)
        begun = clock.monotonic()
        node.start()
        while ready_count(node) == starts:
            if clock.monotonic() > begun + READY_S_MAX or not node.running:
                raise ClusterError(f"{node.name} was not ready in time\n{node.tail()}")
            await asyncio.sleep(POLL_S)
        return begun

    async def _lose_disk(self, standby: Node, writers: Sequence[Writer]) -> tuple[Rate, float]:
        """Let a node come back with nothing; writes meanwhile, and seconds until it is verified."""
        self._tell(f"{standby.name} loses its disk")
        standby.kill()
        await standby.wait_exit()
        await asyncio.to_thread(shutil.rmtree, standby.plan.data)
        begun = clock.monotonic()
        standby.start()
        meanwhile = await count(writers, self._comeback(standby))
        self._tell(f"it is back after {meanwhile.seconds:.1f} s")
        await self._cluster.wait_verified(standby)
        return meanwhile, clock.monotonic() - begun

    async def _comeback(self, standby: Node) -> None:
        """Wait until a node is a voter and has all that is committed."""
        deadline = clock.monotonic() + COMEBACK_S_MAX
        while clock.monotonic() < deadline:
            status = await self._cluster.status(standby)
            if status is not None and not status.learner and status.leader:
                members = await self._cluster.control.members(timeout_s=CALL_S_MAX)
                if any(m.id == status.member_id and not m.learner for m in members):
                    await self._cluster.wait_in_step()
                    return
            await asyncio.sleep(0.1)
        raise ClusterError(f"{standby.name} did not come back\n{standby.tail()}")


async def count(writers: Sequence[Writer], until: Awaitable[None]) -> Rate:
    """Writes acknowledged until something has happened."""
    places = [len(writer.writes) for writer in writers]
    begun = clock.monotonic()
    await until
    seconds = clock.monotonic() - begun
    fresh = [
        w for writer, place in zip(writers, places, strict=True) for w in writer.writes[place:]
    ]
    return Rate(sum(write.fate is Fate.ACKNOWLEDGED for write in fresh), seconds)


async def wait_grown(node: Node, since: float) -> int:
    """Bytes that a node's file grew by while it was verified: the log tells just afterwards."""
    deadline = clock.monotonic() + READY_S_MAX
    while (bytes_grown := grown(node.events(since))) is None:
        if clock.monotonic() > deadline:
            raise ClusterError(f"{node.name} does not log that it is verified\n{node.tail()}")
        await asyncio.sleep(POLL_S)
    return bytes_grown


def grown(events: Iterable[LogEvent]) -> int | None:
    """By how many bytes a file grew in the first verification that is logged; None if none is."""
    done = (each for each in events if each.name == "verify.done")
    return next((int(each.fields["grew_bytes"]) for each in done), None)


def ready_count(node: Node) -> int:
    """How often a node has said that it is ready."""
    return node.log.read_text(errors="replace").count("node.ready")


def own_memory(node: Node) -> int:
    """Bytes of memory that are a process's own; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{node.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def file_bytes(node: Node) -> int:
    """What a node takes on its disk."""
    files = (path for path in node.plan.data.rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)
