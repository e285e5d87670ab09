"""Hurts the active again and again while a client writes, and counts the damage."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Final

from kvbench import clock
from kvbench.cluster import Cluster, Node
from kvbench.flavor import Flavor
from kvbench.history import Fate, Read, Verdict
from kvbench.probe import Probe
from kvbench.report import Distribution, distribution
from kvbench.timeline import Milestones, Outage, Parts, milestones, outage, parts
from kvbench.verify import verify
from kvbench.writer import Writer

PREFIX: Final = "failover/"
RECOVERY_S_MAX: Final = 30.0
STEADY_S: Final = (0.3, 0.8)
"""How long writes flow before a fault: random, so that faults meet timers at any phase."""

FROZEN_S: Final = (0.2, 2.0)
"""How long a stopped node stays so after its successor serves."""

QUEUED_S: Final = 0.05
"""How long reads queue up at a frozen node before it goes on."""

PROBE_S: Final = 0.4
LOGS_S_MAX: Final = 1.0


class Fault(Enum):
    """What is done to the active."""

    KILL = "kill"
    STOP = "stop"
    TERM = "term"
    CUT = "cut"

    @property
    def leaves_it_running(self) -> bool:
        """Whether the active's process goes on, or will."""
        return self in {Fault.STOP, Fault.CUT}


class RunError(Exception):
    """The run could not be completed; the sentence says what did not happen."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    flavor: Flavor
    fault: Fault
    rounds: int
    nodes: int
    seed: int
    put_timeout_s: float


@dataclass(frozen=True)
class Round:
    """One failover."""

    number: int
    victim: str
    successor: str | None
    parts: Parts
    campaigns: int
    """Elections begun by others than the victim."""
    unknown: int
    """Writes left with unknown outcome."""
    refused: int
    """Writes refused, so that a caller would have to repeat them."""
    back_in_step_s: float
    """From healing the node until it had caught up."""
    reads: int
    """Reads that a node answered when it went on after a stop."""
    declined: Mapping[str, int]
    """Reads that it did not answer, by the status it gave instead."""


@dataclass(frozen=True)
class Result:
    """All that a run found."""

    rounds: list[Round]
    verdict: Verdict
    server_version: str

    def distributions(self) -> Mapping[str, Distribution | None]:
        """Of each part over the rounds, by its name."""
        return {
            each.name: distribution(
                [
                    value
                    for one in self.rounds
                    if (value := getattr(one.parts, each.name)) is not None
                ]
            )
            for each in fields(Parts)
        }


@dataclass(frozen=True)
class _Injected:
    """A fault that has just been done."""

    victim: Node
    at: float
    wall: float


class Failover:
    """One run on a cluster that is up; with wires, if they are to be cut."""

    def __init__(self, cluster: Cluster, options: Options) -> None:
        self._cluster = cluster
        self._options = options
        self._rng = random.Random(options.seed)  # noqa: S311 - phases and texts, no secrets
        self._reads: list[Read] = []

    async def run(self, on_round: Callable[[Round], None]) -> Result:
        """All rounds, then the verdict.

        Raises:
            RunError: writes did not flow again.
            ClusterError: a node did not do what it was told.
        """
        async with self._cluster.connect(self._options.put_timeout_s) as client:
            writer = Writer(client, PREFIX, self._rng)
            writer.start()
            try:
                rounds = []
                for number in range(1, self._options.rounds + 1):
                    rounds.append(await self._round(number, writer))
                    on_round(rounds[-1])
            finally:
                await writer.stop()
        verdict = await verify(self._cluster, writer.writes, PREFIX, self._reads)
        statuses = await self._cluster.statuses()
        version = next((s.version for s in statuses.values() if s is not None), "unknown")
        return Result(rounds, verdict, version)

    async def _round(self, number: int, writer: Writer) -> Round:
        await self._flow(writer, clock.monotonic())
        await self._cluster.wait_in_step()
        await asyncio.sleep(self._rng.uniform(*STEADY_S))
        victim = await self._cluster.active()
        probe = Probe(victim.client, lambda: writer.newest)
        try:
            if self._options.fault is Fault.STOP:
                await self._connect(probe, victim)
            injected = self._inject(victim)
            alone = await self._recovery(injected, writer)
            nodes = await self._milestones(injected)
            seen = self._outage(writer, injected, alone if nodes.serves is None else nodes.serves)
            healed_in = await self._heal(injected, probe)
        finally:
            await probe.close()
        self._reads += probe.reads
        during = [write for write in writer.since(injected.at) if write.ended >= injected.at]
        return Round(
            number=number,
            victim=victim.name,
            successor=nodes.successor,
            parts=parts(injected.at, seen, nodes),
            campaigns=nodes.campaigns,
            unknown=sum(write.fate is Fate.UNKNOWN for write in during),
            refused=sum(write.fate is Fate.REFUSED for write in during),
            back_in_step_s=healed_in,
            reads=len(probe.reads),
            declined=dict(probe.declined),
        )

    async def _connect(self, probe: Probe, victim: Node) -> None:
        try:
            await probe.connect()
        except TimeoutError as error:
            raise RunError(f"{victim.name} takes no connection\n{victim.tail()}") from error

    def _inject(self, victim: Node) -> _Injected:
        injected = _Injected(victim, clock.monotonic(), clock.wall())
        match self._options.fault:
            case Fault.KILL:
                victim.kill()
            case Fault.STOP:
                victim.stop()
            case Fault.TERM:
                victim.term()
            case Fault.CUT:
                self._cluster.wires.isolate(victim.name)
        return injected

    async def _recovery(self, injected: _Injected, writer: Writer) -> float:
        """Wait until another node acknowledges writes; from when on the victim can't any more."""
        after = injected.at
        if not self._options.fault.leaves_it_running:
            await injected.victim.wait_exit()
        if self._options.fault is Fault.TERM:
            after = clock.monotonic()  # until its end the victim itself may have acknowledged
        await self._flow(writer, after)
        return after

    async def _flow(self, writer: Writer, after: float) -> None:
        if not await writer.wait_acknowledged(after, RECOVERY_S_MAX):
            raise RunError(
                f"no write was acknowledged in {RECOVERY_S_MAX:g} s; the client said last: "
                f"{writer.trouble or 'nothing'}\n{await self._cluster.report()}"
            )

    async def _milestones(self, injected: _Injected) -> Milestones:
        """From the logs, which may be written a moment after the fact."""
        offset = injected.at - injected.wall
        deadline = clock.monotonic() + LOGS_S_MAX
        complete = self._options.flavor.logs_activation
        while True:
            events = {
                node.name: node.events(since=injected.wall - 1.0) for node in self._cluster.nodes
            }
            found = milestones(events, injected.at, offset, injected.victim.name)
            enough = found.active if complete else found.won
            if enough is not None or clock.monotonic() > deadline:
                return found
            await asyncio.sleep(0.02)

    def _outage(self, writer: Writer, injected: _Injected, serves: float) -> Outage:
        seen = outage(writer.since(injected.at), injected.at, serves)
        if seen is None:
            raise RunError(
                "by its log the successor served after writes had recovered: clocks moved?"
            )
        return seen

    async def _heal(self, injected: _Injected, probe: Probe) -> float:
        """Bring the node back; the time until it is in step."""
        if self._options.fault is Fault.STOP:
            await asyncio.sleep(self._rng.uniform(*FROZEN_S))
            probe.start()
            await asyncio.sleep(QUEUED_S)
            begun = clock.monotonic()
            injected.victim.cont()
            _, healed_in = await asyncio.gather(asyncio.sleep(PROBE_S), self._in_step(begun))
            return healed_in
        if self._options.fault is Fault.CUT:
            await asyncio.sleep(self._rng.uniform(*FROZEN_S))
        begun = clock.monotonic()
        if self._options.fault is Fault.CUT:
            self._cluster.wires.mend()
        else:
            injected.victim.start()
        return await self._in_step(begun)

    async def _in_step(self, begun: float) -> float:
        await self._cluster.wait_in_step()
        return clock.monotonic() - begun
