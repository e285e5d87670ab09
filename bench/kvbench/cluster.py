"""Real node processes on loopback, and verbs to hurt and heal them.

Nothing outlives the bench: a cluster ends each process it started by its own pid, and the kernel
does so if the bench itself is killed. Use it as

    async with Cluster(folder) as cluster:
        active = await cluster.active()
        active.kill()
        await active.wait_exit()
        active.start()
        await cluster.wait_in_step()
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Self

from kvbench import clock
from kvbench.flavor import KVSERVER, Flavor, NodePlan
from kvbench.nodelog import LogEvent, parse_lines
from kvbench.ports import LOOPBACK, Ports
from kvbench.process import POLL_S, end, spawn, wait_exit
from kvbench.wires import WireEnd, Wires
from kvclient import AsyncClient, KvError, Status

START_S_MAX = 30.0
EXIT_S_MAX = 15.0
ACTIVE_S_MAX = 30.0
IN_STEP_S_MAX = 60.0
VERIFIED_S_MAX = 300.0
STATUS_S_MAX = 1.0
TAIL_LINES = 12


class ClusterError(Exception):
    """The processes did not do what was needed; the text shows the end of the log concerned."""


class Node:
    """One server process, started any number of times on the same data and the same ports."""

    def __init__(self, plan: NodePlan, flavor: Flavor, options: Sequence[str], log: Path) -> None:
        self._command = [*flavor.command(plan), *options]
        self._flavor = flavor
        self._process: subprocess.Popen[bytes] | None = None
        self.plan = plan
        self.name = plan.name
        self.client = plan.client
        """host:port for clients."""
        self.log = log
        """Standard output and error of all its runs, one after the other."""
        self.stopped = False
        """True between `stop` and `cont`."""

    def __repr__(self) -> str:
        return f"<Node {self.name} at {self.client}, pid {self.pid}>"

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """True until the process has ended; stopped ones are running too."""
        return self._process is not None and self._process.poll() is None

    @property
    def answers(self) -> bool:
        """Whether it makes sense to ask it anything."""
        return self.running and not self.stopped

    # ------------------------------------------------------------------ verbs

    def start(self) -> None:
        """Start the process, for the first time or again; does not wait."""
        assert not self.running, f"{self.name} runs already"
        given = self._flavor.settings
        environment = {name: v for name, v in os.environ.items() if not name.startswith(given)}
        self._process = spawn(self._command, self.log, environment)
        self.stopped = False

    def kill(self) -> None:
        """End it as a crash does: SIGKILL."""
        self._signal(signal.SIGKILL)

    def term(self) -> None:
        """Ask it to stop cleanly: SIGTERM."""
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """Freeze it with all its connections open: SIGSTOP."""
        self._signal(signal.SIGSTOP)
        self.stopped = True

    def cont(self) -> None:
        """Let it go on: SIGCONT."""
        self._signal(signal.SIGCONT)
        self.stopped = False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            raise ClusterError(f"{self.name} does not run any more\n{self.tail()}")
        self._process.send_signal(number)

    async def wait_exit(self, timeout_s: float = EXIT_S_MAX) -> int:
        """Exit code, negative for the signal that ended it."""
        assert self._process is not None, f"{self.name} was never started"
        try:
            return await wait_exit(self._process, timeout_s)
        except TimeoutError as error:
            sentence = f"{self.name} did not end in {timeout_s:g} s"
            raise ClusterError(f"{sentence}\n{self.tail()}") from error

    def end(self) -> None:
        """End it whatever its state, and reap it."""
        if self._process is None:
            return
        if self.running and self.stopped:
            self.cont()
        end(self._process)

    # ------------------------------------------------------------------ its log

    @property
    def log_bytes(self) -> int:
        """Length of its log."""
        return self.log.stat().st_size

    def events(self, since: float = 0.0, *, place: int = 0) -> list[LogEvent]:
        """What it has logged.

        Args:
            since: leave out what is older, in seconds since the epoch.
            place: leave out, unread, what stands before this byte of its log.
        """
        with self.log.open("rb") as raw, TextIOWrapper(raw, errors="replace") as lines:
            raw.seek(place)
            return parse_lines(lines, self._flavor.parser, since=since)

    def tail(self) -> str:
        """The last lines of its log, for an error."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        except FileNotFoundError:
            lines = []
        return "\n".join([f"--- end of {self.log}", *lines])


class Cluster:
    """Some nodes of one flavor. Node names are n1, n2, ...; ports stay the same for its life."""

    def __init__(
        self,
        folder: Path,
        *,
        flavor: Flavor = KVSERVER,
        nodes: int = 3,
        options: Sequence[str] = (),
        client_ports: Sequence[int] = (),
        wires: bool = False,
    ) -> None:
        """Prepare; `start` or `async with` starts the processes.

        Args:
            folder: for data directories and logs; made if missing, never emptied.
            flavor: which server.
            nodes: how many.
            options: given to every node besides its own.
            client_ports: wanted for clients; others are taken where these are not free.
            wires: lead what nodes say to one another through `wires`, where it can be cut.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.flavor = flavor
        self._ports = Ports((3 if wires else 2) * nodes, client_ports[:nodes])
        try:
            self.nodes = self._plan(nodes, options)
            self.wires = Wires(self._wire_ends())
        except BaseException:
            self._ports.close()
            raise
        self._control: AsyncClient | None = None

    def _plan(self, nodes: int, options: Sequence[str]) -> tuple[Node, ...]:
        addresses = [f"{LOOPBACK}:{port}" for port in self._ports.numbers]
        names = [f"n{i + 1}" for i in range(nodes)]
        peers = dict(zip(names, addresses[nodes : 2 * nodes], strict=True))
        listen = addresses[2 * nodes :] or peers.values()
        return tuple(
            Node(
                NodePlan(name, self.folder / name, client, peer, peers),
                self.flavor, options, self.folder / f"{name}.log",
            )
            for name, client, peer in zip(names, addresses[:nodes], listen, strict=True)
        )  # fmt: skip

    def _wire_ends(self) -> dict[str, WireEnd]:
        """Of the nodes that are reached through a wire."""
        plans = [node.plan for node in self.nodes]
        return {
            plan.name: WireEnd(plan.name, plan.client, plan.peers[plan.name], plan.peer)
            for plan in plans
            if plan.peers[plan.name] != plan.peer
        }

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start all nodes and wait until one is active and all others follow it."""
        await self.wires.start()
        for node in self.nodes:
            node.start()
        await self.wait_in_step(START_S_MAX)

    async def close(self) -> None:
        """End all nodes; data and logs stay."""
        for node in self.nodes:
            node.end()
        await self.wires.close()
        self._ports.close()
        if self._control is not None:
            await self._control.close()
            self._control = None

    # ------------------------------------------------------------------ where it stands

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Client addresses of all nodes, running or not."""
        return tuple(node.client for node in self.nodes)

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def others(self, *left_out: Node) -> tuple[Node, ...]:
        """All nodes but these."""
        return tuple(node for node in self.nodes if node not in left_out)

    def connect(self, timeout_s: float) -> AsyncClient:
        """A client of its own, to be closed by the caller."""
        return AsyncClient(self.endpoints, timeout_s=timeout_s)

    @property
    def control(self) -> AsyncClient:
        """The client that the cluster itself asks its nodes with."""
        if self._control is None:
            self._control = self.connect(STATUS_S_MAX)
        return self._control

    async def status(self, node: Node) -> Status | None:
        """Where a node says it stands; None if it does not say."""
        if not node.answers:
            return None
        try:
            return await self.control.status(node.client, timeout_s=STATUS_S_MAX)
        except KvError:
            return None

    async def statuses(self) -> dict[str, Status | None]:
        """Of all nodes at about the same moment, by name."""
        found = await asyncio.gather(*(self.status(node) for node in self.nodes))
        return {node.name: status for node, status in zip(self.nodes, found, strict=True)}

    async def active(self, timeout_s: float = ACTIVE_S_MAX) -> Node:
        """The node that serves; waits until there is one."""
        deadline = clock.monotonic() + timeout_s
        while True:
            name = active_of(await self.statuses())
            if name is not None:
                return self.node(name)
            if clock.monotonic() > deadline:
                report = await self.report()
                raise ClusterError(f"no node became active in {timeout_s:g} s\n{report}")
            await asyncio.sleep(POLL_S)

    async def wait_in_step(self, timeout_s: float = IN_STEP_S_MAX) -> Node:
        """Wait until all nodes follow one active and have applied what it had at the beginning.

        Returns:
            The active.
        """
        deadline = clock.monotonic() + timeout_s
        target: int | None = None
        while True:
            statuses = await self.statuses()
            name = active_of(statuses)
            active = statuses[name] if name is not None else None
            if name is not None and active is not None:
                target = active.index if target is None else target
                if in_step(statuses, active, target):
                    return self.node(name)
            dead = [node.name for node in self.nodes if not node.running]
            if dead:
                raise ClusterError(f"{', '.join(dead)} ended\n{await self.report()}")
            if clock.monotonic() > deadline:
                report = await self.report()
                raise ClusterError(f"not all nodes were in step after {timeout_s:g} s\n{report}")
            await asyncio.sleep(POLL_S)

    async def wait_verified(self, *nodes: Node, timeout_s: float = VERIFIED_S_MAX) -> None:
        """Wait until nodes say that they have read all of their data."""
        deadline = clock.monotonic() + timeout_s
        for node in nodes:
            while not verified(await self.status(node)):
                if clock.monotonic() > deadline or not node.running:
                    report = await self.report()
                    raise ClusterError(f"{node.name} was not verified in time\n{report}")
                await asyncio.sleep(POLL_S)

    async def report(self) -> str:
        """Where all nodes stand and the ends of their logs, for an error."""
        statuses = await self.statuses()
        lines = [f"{node}: {statuses[node.name]}" for node in self.nodes]
        return "\n".join([*lines, *(node.tail() for node in self.nodes)])


def active_of(statuses: Mapping[str, Status | None]) -> str | None:
    """Who believes to lead, in the latest term if a deposed one has not noticed yet."""
    leaders = {name: s.term for name, s in statuses.items() if s is not None and s.active}
    return max(leaders, key=leaders.__getitem__, default=None)


def in_step(statuses: Mapping[str, Status | None], active: Status, target: int) -> bool:
    """Whether all nodes follow `active` and have applied the log up to `target`."""
    return all(
        status is not None
        and (status.leader, status.term) == (active.member_id, active.term)
        and status.applied_index >= target
        for status in statuses.values()
    )


def verified(status: Status | None) -> bool:
    """Whether a node says that the whole of its data was read since it came back."""
    return status is not None and not any(
        error.startswith("kvserver:") and "unverified" in error for error in status.errors
    )
