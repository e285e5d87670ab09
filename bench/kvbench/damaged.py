"""A standby whose disk is damaged, down or running: what becomes of it, and what of the others.

The cluster must bear it: a node whose damage is found ends with a sentence that says what to do,
that is done, and nobody else notices.
"""

import asyncio
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from kvbench import clock
from kvbench.cluster import Cluster, Node, verified
from kvbench.damage import Damage, inflict
from kvbench.failover import RunError
from kvbench.nodelog import LogEvent
from kvbench.process import POLL_S

SCRUB_S: Final = 10
"""Pause between two verifications of a running node."""

SETTLED_S_MAX: Final = 300.0
"""To the end of a node, or of the verification that finds nothing."""

DATA_DIR_CODE: Final = 3
STARTS_MAX: Final = 3
"""How often a node that damage ended by a signal is started again: then it must have said why."""

PASSES_MIN: Final = 2
"""After which a damage was not found: a pass reads the log when it has logged what it found in the
state, so only the second one tells how that of the first ended."""

PULSE_S: Final = 0.02
STALL_S_MAX: Final = 0.15
"""Half of the shortest election timeout. The wires between the nodes lead through this process:
when it stood still for longer, elections may be its doing, or of a machine with too much to do."""

ADVICE: Final = "empty its --data-dir and start it again with the same options"

_SIGNALS: Final = frozenset({-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT})
_UPSETS: Final = frozenset({
    "election.campaign", "election.won", "role.changed", "node.ready", "node.restart", "node.stuck",
})  # fmt: skip
"""What no other node may log."""


@dataclass(frozen=True)
class Damaged:
    """One damage, and what came of it."""

    node: str
    what: str
    running: bool
    """The node ran when it happened."""
    found: bool
    """The node ended with the sentence, and was replaced. Else all of its data was read afterwards
    and is sound: what was hit is in no use."""
    signals: Sequence[str] = ()
    """That ended it before it said what was wrong."""
    upsets: Mapping[str, int] = field(default_factory=dict)
    """What the other nodes logged meanwhile, and should not have, with their names."""
    stalled_s: float = 0.0
    """The longest that this process stood still meanwhile."""

    @property
    def blamed(self) -> int:
        """How many of the upsets have no other explanation than the damage."""
        return sum(self.upsets.values()) if self.stalled_s <= STALL_S_MAX else 0

    def __str__(self) -> str:
        where = "running" if self.running else "down"
        by = f" after {', '.join(self.signals)}" if self.signals else ""
        end = "found" if self.found else "harmless"
        told = f"damage: {self.node} ({where}), {self.what}: {end}{by}"
        upsets = ", ".join(f"{count} x {name}" for name, count in self.upsets.items())
        if not upsets:
            return told
        stalled = f"the bench stood still for {self.stalled_s:.2f} s"
        return f"{told}; others were upset: {upsets} ({stalled})"


# ---------------------------------------------------------------------- pure


def complaint(code: int, reason: str, starts: int) -> str | None:
    """What is wrong with the end of a node whose disk is damaged; None if it is as it should be.

    Args:
        code: of its exit, negative for a signal.
        reason: what it logged; empty for nothing.
        starts: how often it was started again after a signal.
    """
    if code in _SIGNALS:
        name = signal.Signals(-code).name
        return f"it ended by {name} after {starts} starts" if starts >= STARTS_MAX else None
    if code != DATA_DIR_CODE:
        return f"it ended with exit code {code}: {reason or 'it said nothing'}"
    return None if ADVICE in reason else f"it does not say what to do: {reason or 'nothing'}"


def upsets_of(events: Iterable[LogEvent]) -> list[str]:
    """Names of what a node that nothing was done to should not have logged."""
    return [each.name for each in events if each.name in _UPSETS or each.name.endswith(".failed")]


def passes(events: Iterable[LogEvent], since: float) -> int:
    """How many verifications that found nothing began after a moment (seconds since the epoch)."""
    done = [each for each in events if each.name == "verify.done"]
    return sum(each.time - float(each.fields["seconds"]) > since for each in done)


# ---------------------------------------------------------------------- effects


class Pulse:
    """Measures how long this process stands still; use it as `async with`."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            begun = clock.monotonic()
            await asyncio.sleep(PULSE_S)
            self.longest_s = max(self.longest_s, clock.monotonic() - begun - PULSE_S)


class Damager:
    """Damages one standby at a time, and does what the operator would."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng

    async def damage(self, *, running: bool) -> Damaged:
        """Damage a standby while all others are verified and in step, and see it well again.

        Args:
            running: it goes on running; else it is ended before and started afterwards.

        Raises:
            RunError: it did not end as it should.
            ClusterError: a node did not come back.
        """
        active = await self._all_well()
        node = self._rng.choice(self._cluster.others(active))
        kind = self._rng.choice(list(Damage))
        others = self._cluster.others(node)
        before = [(other.pid, other.log_bytes) for other in others]
        async with Pulse() as pulse:
            what, found, signals = await self._hurt(node, kind, running=running)
        upsets: Counter[str] = Counter()
        for other, (pid, place) in zip(others, before, strict=True):
            names = upsets_of(other.events(place=place))
            upsets.update(f"{other.name} {name}" for name in names)
            upsets.update([f"{other.name} ended"] if other.pid != pid else [])
        return Damaged(node.name, what, running, found, signals, upsets, pulse.longest_s)

    async def _hurt(
        self, node: Node, kind: Damage, *, running: bool
    ) -> tuple[str, bool, Sequence[str]]:
        """Damage a node and see it well again; what was done, whether it was found, by signals."""
        if not running:
            self._rng.choice([Node.kill, Node.term])(node)
            await node.wait_exit()
        place = node.log_bytes
        what = await asyncio.to_thread(inflict, node.plan.data, kind, self._rng)
        if running and kind is Damage.CURRENT:  # it is read at the next start only
            node.kill()
            await node.wait_exit()
        if not running or kind is Damage.CURRENT:
            node.start()
        signals: list[str] = []
        found = await self._is_found(node, what, place, signals)
        if found:
            await asyncio.to_thread(shutil.rmtree, node.plan.data)
            node.start()
        await self._all_well()
        return what, found, signals

    async def _all_well(self) -> Node:
        """Wait until all nodes are voters, in step and verified; the active.

        Who was replaced is a learner for a moment: a majority would not hold without another.
        """
        deadline = clock.monotonic() + SETTLED_S_MAX
        while True:
            await self._cluster.wait_verified(*self._cluster.nodes)
            active = await self._cluster.wait_in_step()
            statuses = (await self._cluster.statuses()).values()
            if all(status and verified(status) and not status.learner for status in statuses):
                return active
            if clock.monotonic() > deadline:
                raise RunError(f"not all nodes became voters\n{await self._cluster.report()}")
            await asyncio.sleep(10 * POLL_S)

    async def _is_found(self, node: Node, what: str, place: int, signals: list[str]) -> bool:
        """Wait until it is known what becomes of a damage; signals that end the node are noted.

        Args:
            node: the damaged one.
            what: was done to it.
            place: in its log, when it was not damaged yet.
            signals: grows.
        """
        damaged_at = clock.wall()
        while await self._ends(node, place, damaged_at):
            code = await node.wait_exit()
            reason = last_words(node.events(place=place))
            wrong = complaint(code, reason, len(signals))
            if wrong is not None:
                raise RunError(f"{node.name}, {what}: {wrong}\n{node.tail()}")
            if code == DATA_DIR_CODE:
                return True
            signals.append(signal.Signals(-code).name)
            node.start()
        return False

    async def _ends(self, node: Node, place: int, damaged_at: float) -> bool:
        """Wait until a node has ended; False if it finds its data sound."""
        deadline = clock.monotonic() + SETTLED_S_MAX
        while node.running:
            sound = passes(node.events(place=place), damaged_at) >= PASSES_MIN
            if sound and verified(await self._cluster.status(node)):
                return False
            if clock.monotonic() > deadline:
                raise RunError(f"{node.name} neither ends nor is verified\n{node.tail()}")
            await asyncio.sleep(10 * POLL_S)
        return True


def last_words(events: Sequence[LogEvent]) -> str:
    """Why a node says that it ends; empty if it does not say."""
    reasons = [each.fields.get("reason", "") for each in events if each.name == "node.failed"]
    return reasons[-1] if reasons else ""
