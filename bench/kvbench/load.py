"""Unary puts or gets per second and their latency, flavors in turn on the same machine.

What is measured is the server: every client is a connection of a native load generator that puts,
or gets, the same key again as soon as the last call is answered. It is a closed loop, so a slow
server is asked less often, and latencies say nothing about a server that is asked more than it can
do.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import grpc
from rich import box
from rich.console import Console
from rich.table import Table

from kvbench import clock
from kvbench.cluster import Cluster
from kvbench.flavor import Flavor
from kvbench.h2load import FRAME_HEAD_BYTES, Amount, Call, program, send
from kvbench.report import (
    Distribution,
    distribution,
    facts,
    ms,
    percentile,
    print_table,
    shown_version,
)
from kvclient import AsyncClient
from kvpb.rpc_pb2 import PutRequest, RangeRequest, RangeResponse
from kvpb.rpc_pb2_grpc import KVStub

KEY: Final = "load/ferry"
VALUE: Final = "A ferry goes every twenty minutes, except when the fog is thick. " * 2
READ: Final = RangeRequest(key=KEY.encode())
PUT: Final = Call("/etcdserverpb.KV/Put", PutRequest(key=KEY.encode(), value=VALUE.encode()))
GET: Final = Call("/etcdserverpb.KV/Range", READ)
CALLS: Final = {"put": PUT, "get": GET}
"""What may be measured. A get is linearizable, as it is by default."""

CALL_S_MAX: Final = 10.0
WARM_UP_S: Final = 1.0
SETTLE_S: Final = 0.1


@dataclass(frozen=True)
class Plan:
    """What to run: each flavor `repeats` times, in turn, on a new cluster each time."""

    call: str
    """One of `CALLS`."""
    flavors: Sequence[Flavor]
    clients: Sequence[int]
    """Numbers of concurrent clients, one after the other on each cluster."""
    seconds: float
    requests: int | None
    repeats: int
    nodes: int


@dataclass(frozen=True)
class Run:
    """One flavor with one number of clients, once."""

    call: str
    flavor: str
    server_version: str
    clients: int
    repeat: int
    started: int
    succeeded: int
    failed: int
    proven: int
    """Calls that really happened: by so much the store's revision rose; or so many whole replies
    with the key in them are in the bytes of all answers."""
    seconds: float
    latency: Distribution | None

    @property
    def per_second(self) -> float:
        """Answered calls."""
        return self.succeeded / self.seconds

    @property
    def honest(self) -> bool:
        """Whether every answer was a call that happened; some may have had their answer cut off."""
        return not self.failed and self.succeeded <= self.proven <= self.started


@dataclass(frozen=True)
class Summary:
    """One flavor with one number of clients: medians over the repeats."""

    flavor: str
    clients: int
    per_second: float
    latency_median_s: float
    latency_p99_s: float


async def measure(plan: Plan, folder: Path, on_run: Callable[[Run], None]) -> list[Run]:
    """All runs, flavors interleaved: A B A B."""
    program()
    runs: list[Run] = []
    for repeat in range(1, plan.repeats + 1):
        for flavor in plan.flavors:
            place = folder / f"{flavor.name}-{repeat}"
            async with Cluster(place, flavor=flavor, nodes=plan.nodes) as cluster:
                for clients in plan.clients:
                    runs.append(await _run(plan, cluster, clients, repeat))
                    on_run(runs[-1])
    return runs


async def _run(plan: Plan, cluster: Cluster, clients: int, repeat: int) -> Run:
    active = await cluster.active()
    status = await cluster.control.status(active.client)
    amount = Amount(clients, plan.seconds, plan.requests)
    call = CALLS[plan.call]
    async with cluster.connect(CALL_S_MAX) as client:
        await client.put(KEY, VALUE)
        await send(call, Amount(clients, WARM_UP_S), active.client, cluster.folder)
        before = await settled_revision(client)
        reply_bytes = await bytes_of_a_get(active.client)
        answers = await send(call, amount, active.client, cluster.folder)
        applied = await settled_revision(client) - before
    return Run(
        call=plan.call,
        flavor=cluster.flavor.name,
        server_version=status.version,
        clients=clients,
        repeat=repeat,
        started=answers.started,
        succeeded=answers.succeeded,
        failed=answers.failed,
        proven=applied if call is PUT else answers.data_bytes // reply_bytes,
        seconds=answers.seconds,
        latency=distribution(answers.latencies_s),
    )


async def settled_revision(client: AsyncClient) -> int:
    """The store's revision once puts that were cut off at the end of a run no longer move it."""
    deadline = clock.monotonic() + CALL_S_MAX
    found = -1
    while clock.monotonic() < deadline:
        before, found = found, (await client.range(KEY, count_only=True)).revision
        if found == before:
            break
        await asyncio.sleep(SETTLE_S)
    return found


async def bytes_of_a_get(address: str) -> int:
    """How long the body of every answer to `GET` is while nothing is written."""
    async with grpc.aio.insecure_channel(address) as channel:
        reply: RangeResponse = await KVStub(channel).Range(READ, timeout=CALL_S_MAX)
    return FRAME_HEAD_BYTES + reply.ByteSize()


# ---------------------------------------------------------------------- what is shown


def summaries(runs: Sequence[Run]) -> list[Summary]:
    """Medians for each flavor and number of clients, in the order first run."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.flavor, run.clients), []).append(run)
    found: list[Summary] = []
    for (flavor, clients), group in groups.items():
        latencies = [run.latency for run in group if run.latency is not None]
        if latencies:
            found.append(
                Summary(
                    flavor, clients,
                    per_second=percentile([run.per_second for run in group], 50),
                    latency_median_s=percentile([each.median for each in latencies], 50),
                    latency_p99_s=percentile([each.p99 for each in latencies], 50),
                )
            )  # fmt: skip
    return found


def ratios(found: Sequence[Summary], ours: str, theirs: str) -> dict[int, float]:
    """Calls per second of one flavor divided by the other's, by number of clients."""
    per_second = {(each.flavor, each.clients): each.per_second for each in found}
    return {
        clients: figure / per_second[theirs, clients]
        for (flavor, clients), figure in per_second.items()
        if flavor == ours and (theirs, clients) in per_second
    }


def run_line(run: Run) -> str:
    """One run in a line."""
    return (
        f"{run.flavor}, {_clients(run.clients)}, repeat {run.repeat}: "
        f"{run.per_second:.0f} {run.call}s/s" + ("" if run.honest else f", BUT {_doubt(run)}")
    )


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _doubt(run: Run) -> str:
    return (
        f"{run.succeeded} answers of status 200, {run.failed} of others, "
        f"and {run.proven} {run.call}s that happened of {run.started} sent"
    )


def print_load(
    console: Console, plan: Plan, runs: Sequence[Run], machine: Mapping[str, object]
) -> None:
    """Everything about the runs, for people."""
    versions = {run.flavor: run.server_version for run in runs}
    servers = ", ".join(f"{name} {shown_version(version)}" for name, version in versions.items())
    length = f"{plan.requests} requests" if plan.requests is not None else f"{plan.seconds:g} s"
    console.print(
        f"\n[bold]Unary {plan.call}s[/] of one key ({len(VALUE)} bytes), h2load to the active; "
        f"{servers}; {plan.nodes} nodes, {length} each, "
        f"medians of {plan.repeats} interleaved repeats"
    )
    console.print(facts(machine), style="dim")
    found = summaries(runs)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("server", "clients", f"{plan.call}s/s", "median ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for each in found:
        times = (ms(each.latency_median_s), ms(each.latency_p99_s))
        table.add_row(each.flavor, str(each.clients), f"{each.per_second:.0f}", *times)
    print_table(console, table)
    for clients, ratio in first_ratios(plan, found).items():
        names = f"{plan.flavors[0].name} / {plan.flavors[1].name}"
        console.print(f"{names} at {_clients(clients)}: {ratio:.2f}")
    for run in runs:
        if not run.honest:
            console.print(f"Do not trust {run.flavor} at {_clients(run.clients)}: {_doubt(run)}",
                          style="bold red")  # fmt: skip


def first_ratios(plan: Plan, found: Sequence[Summary]) -> dict[int, float]:
    """Of the first server named to the second."""
    if len(plan.flavors) < 2:
        return {}
    return ratios(found, plan.flavors[0].name, plan.flavors[1].name)


def load_document(
    plan: Plan, runs: Sequence[Run], machine: Mapping[str, object]
) -> dict[str, object]:
    """Everything about the runs, for machines; times in seconds."""
    found = summaries(runs)
    return {
        "benchmark": "load",
        "machine": machine,
        "options": {
            "call": plan.call,
            "flavors": [flavor.name for flavor in plan.flavors],
            "clients": plan.clients,
            "seconds": plan.seconds,
            "requests": plan.requests,
            "repeats": plan.repeats,
            "nodes": plan.nodes,
        },
        "runs": [
            {**asdict(run), "per_second": run.per_second, "honest": run.honest} for run in runs
        ],
        "summaries": [asdict(each) for each in found],
        "ratio_first_to_second": first_ratios(plan, found),
    }
