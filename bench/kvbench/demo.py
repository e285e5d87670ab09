"""`kvbench demo`: a cluster to look at, and what happens to it when its active is killed."""

import asyncio
import contextlib
import fcntl
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvbench import clock
from kvbench.cluster import Cluster, Node
from kvbench.flavor import Flavor
from kvbench.history import Verdict
from kvbench.report import ms, print_verdict
from kvbench.timeline import milestones, outage
from kvbench.verify import verify
from kvbench.writer import Writer
from kvclient import Status

CLIENT_PORTS: Final = (2379, 22379, 32379)
PREFIX: Final = "demo/"
PUT_TIMEOUT_S: Final = 0.5
FLOW_S: Final = 2.0
"""How long writes flow before and after the fault."""

RECOVERY_S_MAX: Final = 30.0
REFRESH_S: Final = 0.25


class DemoError(Exception):
    """The demonstration could not be completed."""


class Demo:
    """One demonstration on a cluster that is up."""

    def __init__(self, cluster: Cluster, console: Console) -> None:
        self._cluster = cluster
        self._console = console

    async def run(self) -> Verdict:
        """Write, kill the active, show the gap, bring the node back, count the losses."""
        self._say(f"{len(self._cluster.nodes)} nodes are up, each a process of its own:")
        for node in self._cluster.nodes:
            self._say(f"  {node.name}  {node.client}  pid {node.pid}  log {node.log}")
        self._say("\nTry it in another terminal:")
        for line in commands(self._cluster.endpoints):
            self._say(f"  {line}")
        async with self._cluster.connect(PUT_TIMEOUT_S) as client:
            writer = Writer(client, PREFIX, random.Random())  # noqa: S311 - texts, no secrets
            writer.start()
            try:
                await self._failover(writer)
            finally:
                await writer.stop()
        verdict = await verify(self._cluster, writer.writes, PREFIX)
        self._say(f"\n{len(verdict.lost)} acknowledged writes lost. All read back and compared:")
        print_verdict(self._console, verdict)
        return verdict

    async def _failover(self, writer: Writer) -> None:
        await asyncio.sleep(FLOW_S)
        active = await self._cluster.active()
        self._say(f"\nA client writes: {len(writer.writes)} keys in {FLOW_S:g} s, one by one.")
        self._say(f"Now the active, {active.name}, is killed: kill -9 {active.pid}")
        at, wall = clock.monotonic(), clock.wall()
        active.kill()
        if not await writer.wait_acknowledged(at, RECOVERY_S_MAX):
            raise DemoError(f"no write was acknowledged in {RECOVERY_S_MAX:g} s")
        await active.wait_exit()
        successor = await self._cluster.active()
        self._show_gap(writer, active, at, wall)
        self._say(f"{successor.name} is the active now.")
        await asyncio.sleep(FLOW_S)
        begun = clock.monotonic()
        active.start()
        await self._cluster.wait_in_step()
        self._say(
            f"{active.name} is started again and, {clock.monotonic() - begun:.1f} s later, "
            "a standby in step with all that was written meanwhile."
        )
        await asyncio.sleep(FLOW_S)

    def _show_gap(self, writer: Writer, victim: Node, at: float, wall: float) -> None:
        events = {node.name: node.events(since=wall - 1.0) for node in self._cluster.nodes}
        nodes = milestones(events, at, at - wall, victim.name)
        seen = outage(writer.since(at), at, nodes.serves)
        if seen is not None:
            self._say(f"The client saw no acknowledgement for {ms(seen.window_s)} ms.")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def commands(endpoints: tuple[str, ...]) -> list[str]:
    """Ready to paste."""
    listed = ",".join(endpoints)
    return [
        f"kv --endpoints {listed} put greeting hello",
        f"etcdctl --endpoints {listed} get --prefix {PREFIX} --limit 3",
    ]


async def run_demo(folder: Path, flavor: Flavor, console: Console) -> Verdict:
    """The whole of it; on a terminal the cluster then stays up until interrupted.

    Raises:
        DemoError: another one runs in the same folder, or writes did not flow again.
    """
    with _only_one(folder):
        async with Cluster(folder, flavor=flavor, client_ports=CLIENT_PORTS) as cluster:
            if not console.is_terminal:
                return await Demo(cluster, console).run()
            async with _status_line(cluster, console):
                verdict = await Demo(cluster, console).run()
                console.print("\nThe cluster stays up for you. Ctrl-C ends it.", style="bold")
                with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is the planned end
                    await asyncio.Event().wait()
            return verdict


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Remove what an earlier run has left, unless it still runs."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(f"another demonstration uses {folder}: end it first") from error
        if folder.exists():
            shutil.rmtree(folder)
        yield


@asynccontextmanager
async def _status_line(cluster: Cluster, console: Console) -> AsyncIterator[None]:
    """A table of all nodes below what is printed, kept fresh."""
    with Live(Text(""), console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(_refresh(cluster, live))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _refresh(cluster: Cluster, live: Live) -> None:
    while True:
        statuses = await cluster.statuses()
        live.update(Group(Text(""), status_table(cluster, statuses)), refresh=True)
        await asyncio.sleep(REFRESH_S)


def status_table(cluster: Cluster, statuses: dict[str, Status | None]) -> Table:
    """One row for each node."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("node", "client", "role", "term", "revision", "lag"):
        table.add_column(
            column, justify="left" if column in {"node", "client", "role"} else "right"
        )
    newest = max((s.index for s in statuses.values() if s is not None), default=0)
    for node in cluster.nodes:
        status = statuses[node.name]
        if status is None:
            table.add_row(node.name, node.client, "[red]down[/]", "", "", "")
            continue
        role = "[bold green]active[/]" if status.active else "standby"
        lag = max(0, newest - status.applied_index)
        figures = (str(status.term), str(status.revision), str(lag))
        table.add_row(node.name, node.client, role, *figures)
    return table
