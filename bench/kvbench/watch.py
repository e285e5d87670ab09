"""What watchers cost the server: processor time per put and per event, flavors in turn.

Single puts of one key, while so many watch that key, or another one each. Processor time is the
active's own, as the kernel counts it: other processes can't add to it, so it compares even where
the machine is busy. That every watcher got every event, in order, is checked.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import grpc
from rich import box
from rich.console import Console
from rich.table import Table

from kvbench import clock
from kvbench.cluster import Cluster, Node
from kvbench.flavor import Flavor
from kvbench.report import facts, ms, percentile, print_table, shown_version
from kvpb import rpc_pb2, rpc_pb2_grpc

KEY: Final = b"watch/kestrel"
VALUE: Final = b"The kestrel hovers over the motorway, and nobody looks up. " * 2
STREAMS: Final = 100
"""At most so many streams carry the watchers; the first ones carry one more if it does not even."""
EVENTS_MAX: Final = 100_000
"""Of a run: many watchers get few puts."""
PUTS_MIN: Final = 10
WITHIN_S: Final = 120.0
WARM_UP_PUTS: Final = 50
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)  # fmt: skip
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """Who watches."""

    watchers: int
    same_key: bool
    """The key that is put; else a key of its own each."""

    @property
    def name(self) -> str:
        """For people."""
        if not self.watchers:
            return "nobody"
        return f"{self.watchers} on {'the key' if self.same_key else 'other keys'}"


@dataclass(frozen=True)
class Plan:
    """What to run: each flavor `repeats` times, in turn, with all cases each time."""

    flavors: Sequence[Flavor]
    watchers: Sequence[int]
    puts: int
    repeats: int
    nodes: int

    @property
    def cases(self) -> list[Case]:
        """Those whose puts are to cost the same stand side by side."""
        others = [Case(count, same_key=False) for count in self.watchers]
        same = [Case(count, same_key=True) for count in self.watchers]
        return [Case(0, same_key=False), *others, *same]

    def puts_of(self, case: Case) -> int:
        """How many puts a case gets."""
        if not case.same_key:
            return self.puts
        return max(PUTS_MIN, min(self.puts, EVENTS_MAX // case.watchers))


@dataclass(frozen=True)
class Run:
    """One flavor and one case, once."""

    flavor: str
    server_version: str
    case: Case
    repeat: int
    puts: int
    cpu_s: float
    """Processor time of the active, from the first put to the last event."""
    delivery_s: float
    """From the answer to the last put to the last watcher's last event."""
    complete: bool
    """Every watcher got what it was due, in order, and nothing else."""

    @property
    def cpu_per_put_s(self) -> float:
        """Processor time of a put, with what it brings to watchers."""
        return self.cpu_s / self.puts


@dataclass(frozen=True)
class Summary:
    """One flavor and one case: medians over the repeats."""

    flavor: str
    case: Case
    cpu_per_put_s: float
    cpu_per_event_s: float | None
    """What a put costs more than with nobody watching, by event; None where there are none."""
    delivery_s: float
    ratio_to_nobody: float
    """Processor time per put, to that with nobody watching, in the same repeat."""


async def measure(plan: Plan, folder: Path, on_run: Callable[[Run], None]) -> list[Run]:
    """All runs, flavors interleaved, and within each the cases."""
    runs: list[Run] = []
    for repeat in range(1, plan.repeats + 1):
        for flavor in plan.flavors:
            place = folder / f"{flavor.name}-{repeat}"
            async with Cluster(place, flavor=flavor, nodes=plan.nodes) as cluster:
                active = await cluster.wait_in_step()
                version = (await cluster.control.status(active.client)).version
                await _puts(active, WARM_UP_PUTS)
                for case in plan.cases:
                    runs.append(await _run(plan, active, case, (flavor.name, version, repeat)))
                    on_run(runs[-1])
    return runs


async def _run(plan: Plan, active: Node, case: Case, which: tuple[str, str, int]) -> Run:
    puts = plan.puts_of(case)
    flavor, version, repeat = which
    async with _watching(active, case) as streams:
        started = cpu_s(active)
        first = await _puts(active, puts)
        answered = clock.monotonic()
        due = range(first, first + puts) if case.same_key else range(0)
        got = await asyncio.gather(*(stream.receive(due) for stream in streams))
        delivered = clock.monotonic()
        used = cpu_s(active) - started
    return Run(
        flavor=flavor, server_version=version, case=case, repeat=repeat, puts=puts, cpu_s=used,
        delivery_s=delivered - answered, complete=all(got),
    )  # fmt: skip


def cpu_s(node: Node) -> float:
    """Processor time that a node has used, user's and system's."""
    words = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS_PER_S


async def _puts(active: Node, count: int) -> int:
    """Put one after the other; the revision of the first."""
    async with grpc.aio.insecure_channel(active.client, _OPTIONS) as channel:
        put = rpc_pb2_grpc.KVStub(channel).Put
        request = rpc_pb2.PutRequest(key=KEY, value=VALUE)
        first = (await put(request)).header.revision
        for _ in range(count - 1):
            await put(request)
    return int(first)


class _Stream:
    """Some watchers on one stream."""

    def __init__(self, channel: grpc.aio.Channel, numbers: range, case: Case) -> None:
        self._call = rpc_pb2_grpc.WatchStub(channel).Watch()
        self._numbers = numbers
        self._case = case

    async def create(self) -> None:
        """Ask for the watchers, and wait until all are there."""
        for number in self._numbers:
            key = KEY if self._case.same_key else b"watch/other/%d" % number
            create = rpc_pb2.WatchCreateRequest(key=key, watch_id=number)
            await self._call.write(rpc_pb2.WatchRequest(create_request=create))
        for _ in self._numbers:
            response = await self._call.read()
            assert isinstance(response, rpc_pb2.WatchResponse)
            assert response.created

    async def receive(self, due: range) -> bool:
        """Wait until each watcher has the events of these revisions; False if it went otherwise."""
        next_of = dict.fromkeys(self._numbers, due.start)
        left = len(due) * len(self._numbers)
        try:
            async with asyncio.timeout(WITHIN_S):
                while left:
                    response = await self._call.read()
                    if not isinstance(response, rpc_pb2.WatchResponse):
                        return False
                    for event in response.events:
                        if event.kv.mod_revision != next_of[response.watch_id]:
                            return False
                        next_of[response.watch_id] += 1
                        left -= 1
        except TimeoutError:
            return False
        return True


@contextlib.asynccontextmanager
async def _watching(active: Node, case: Case) -> AsyncIterator[list[_Stream]]:
    """All watchers of a case, on streams of a few connections."""
    count = min(case.watchers, STREAMS)
    numbers = range(1, case.watchers + 1)
    async with grpc.aio.insecure_channel(active.client, _OPTIONS) as channel:
        streams = [_Stream(channel, numbers[start::count], case) for start in range(count)]
        await asyncio.gather(*(stream.create() for stream in streams))
        yield streams


# ---------------------------------------------------------------------- what is shown


def summaries(runs: Sequence[Run]) -> list[Summary]:
    """Medians for each flavor and case, in the order first run."""
    nobody = {(run.flavor, run.repeat): run.cpu_per_put_s for run in runs if not run.case.watchers}
    groups: dict[tuple[str, Case], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.flavor, run.case), []).append(run)
    found = []
    for (flavor, case), group in groups.items():
        more = [run.cpu_per_put_s - nobody[run.flavor, run.repeat] for run in group]
        found.append(
            Summary(
                flavor, case,
                cpu_per_put_s=percentile([run.cpu_per_put_s for run in group], 50),
                cpu_per_event_s=percentile(more, 50) / case.watchers if case.same_key else None,
                delivery_s=percentile([run.delivery_s for run in group], 50),
                ratio_to_nobody=percentile(
                    [run.cpu_per_put_s / nobody[run.flavor, run.repeat] for run in group], 50
                ),
            )
        )  # fmt: skip
    return found


def run_line(run: Run) -> str:
    """One run in a line."""
    return (
        f"{run.flavor}, watched by {run.case.name}, repeat {run.repeat}: "
        f"{run.cpu_per_put_s * 1e6:.0f} us of processor time per put"
        + ("" if run.complete else ", BUT not all events came, in order")
    )


def print_watch(
    console: Console, plan: Plan, runs: Sequence[Run], machine: Mapping[str, object]
) -> None:
    """Everything about the runs, for people."""
    versions = {run.flavor: run.server_version for run in runs}
    servers = ", ".join(f"{name} {shown_version(version)}" for name, version in versions.items())
    console.print(
        f"\n[bold]Watchers[/] of a key that is put ({len(VALUE)} bytes), one put after the other; "
        f"{servers}; {plan.nodes} nodes, processor time of the active, medians of {plan.repeats} "
        "interleaved repeats"
    )
    console.print(facts(machine), style="dim")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("server", "watched by", "us/put", "to nobody", "us/event", "last event ms"):
        table.add_column(column, justify="left" if column in {"server", "watched by"} else "right")
    for each in summaries(runs):
        event = "" if each.cpu_per_event_s is None else f"{each.cpu_per_event_s * 1e6:.1f}"
        late = ms(each.delivery_s) if each.case.same_key else ""
        table.add_row(
            each.flavor, each.case.name, f"{each.cpu_per_put_s * 1e6:.0f}",
            f"{each.ratio_to_nobody:.2f}", event, late,
        )  # fmt: skip
    print_table(console, table)
    for run in runs:
        if not run.complete:
            console.print(f"Do not trust: {run_line(run)}", style="bold red")


def watch_document(
    plan: Plan, runs: Sequence[Run], machine: Mapping[str, object]
) -> dict[str, object]:
    """Everything about the runs, for machines; times in seconds."""
    return {
        "benchmark": "watch",
        "machine": machine,
        "options": {
            "flavors": [flavor.name for flavor in plan.flavors],
            "watchers": plan.watchers,
            "puts": plan.puts,
            "repeats": plan.repeats,
            "nodes": plan.nodes,
        },
        "runs": [{**asdict(run), "cpu_per_put_s": run.cpu_per_put_s} for run in runs],
        "summaries": [asdict(each) for each in summaries(runs)],
    }
