"""A whole cluster of real engines in one thread: simulated clock, network and disk, one seed.

Directed tests move messages by hand (`auto=False` on a link) or let `run` deliver everything.

Left out, because the world leaves them out: clocks that jump (the clock is monotonic), and bytes of
an old connection that arrive on a new one, or twice (TCP).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from support.memory_storage import MemoryCopies
from support.sim_disk import SimClock, SimDisk
from support.sim_log import Log, Queue
from support.sim_network import NEVER, Network

from kvpb.raft_pb2 import Member, PeerMessage, PublishMember
from kvserver.errors import DiskError
from kvserver.mvcc.leases import LeaseChange
from kvserver.raft.engine import RaftEngine
from kvserver.raft.entry import MemberId
from kvserver.raft.identity import ClusterPlan, open_identity, plan_cluster
from kvserver.raft.journal import LogBounds
from kvserver.raft.membership import Configuration
from kvserver.raft.ports import Machine, Proposals, Timings
from kvserver.raft.status import EngineParts, RaftStatus, Received
from kvserver.storage.rows import damaged

STEP_S = 0.001


class SimWire:
    """What a node's engine writes to."""

    def __init__(self, cluster: "Cluster", me: MemberId, disk: SimDisk) -> None:
        self._cluster = cluster
        self._me = me
        self._disk = disk
        self._late: list[tuple[MemberId, PeerMessage]] = []

    def send(self, member: MemberId, message: PeerMessage) -> None:
        if self._disk.syncing:
            self._late.append((member, message))
        else:
            self._cluster.carry(self._me, member, message)

    def sync_ended(self) -> None:
        """What waited for the disk leaves."""
        late, self._late = self._late, []
        for member, message in late:
            self._cluster.carry(self._me, member, message)

    def set_peers(self, peers: Mapping[MemberId, Member]) -> None:
        for other in self._cluster.peers_of(self._me):
            if other not in peers:
                self._cluster.disconnect(self._me, other)

    def say_hello(self) -> None:
        for peer in self._cluster.peers_of(self._me):
            if (self._me, peer) not in self._cluster.stale:
                self.send(peer, self._cluster.hello(self._me))


class SimNode:
    """One member: what survives a crash is its storage."""

    machine: Log
    proposals: Queue

    def __init__(self, cluster: "Cluster", name: str, storage: SimDisk) -> None:
        self.name = name
        self.cluster = cluster
        self.storage = storage
        self.identity, self.plan = open_identity(
            storage, name, cluster.plan, cluster.rng.getrandbits(64)
        )
        storage.end_sync()  # it waits for it
        self.me = MemberId(self.identity.member_id)
        self.events: list[tuple[str, dict[str, object]]] = []
        self.reads_done: list[object] = []
        self.reads_failed: list[object] = []
        self.copies = MemoryCopies(storage, cluster.copy_turns)
        self.wire = SimWire(cluster, self.me, storage)
        self._ended: tuple[RaftStatus, list[object], list[object]] | None = None
        self.busy_until = 0.0
        """A turn waits for the disk."""
        self._generation = 0
        self.verify_at = NEVER if storage.fresh else self._verification_ends()
        """When the verification of its state ends."""
        self.turns = 0
        """That have ended, their syncs too."""
        machine, proposals = self.furnish()
        self.engine = RaftEngine(
            EngineParts(
                storage=storage,
                copies=self.copies,
                identity=self.identity,
                plan=self.plan,
                timings=cluster.timings,
                clock=cluster.clock,
                rng=cluster.rng,
                wire=self.wire,
                machine=machine,
                proposals=proposals,
                on_applied=self.on_applied,
                on_turn=self._on_turn,
                on_members=self.on_members,
                on_event=self._on_event,
                bounds=cluster.bounds,
                verified=storage.fresh or not cluster.verify_s,
                on_replaced=self._on_replaced,
            )
        )
        self.status: RaftStatus = self.engine.status()
        self.due = cluster.clock.now

    # ------------------------------------------------------------------ verification

    def _verification_ends(self) -> float:
        return self.cluster.clock.now + self.cluster.rng.uniform(0.5, 1.0) * self.cluster.verify_s

    def _on_replaced(self, generation: int) -> None:
        self._generation = generation
        self.verify_at = self._verification_ends()

    def end_verification(self) -> None:
        """All rows were read."""
        self.verify_at = NEVER
        if not self.storage.sound:
            raise damaged(f"the data of {self.name}")
        self.engine.set_verified(self._generation)
        self.due = 0.0

    # ------------------------------------------------------------------ what stands around the raft

    def furnish(self) -> tuple[Machine, Proposals]:
        """Machine and proposals. Here a log and a queue; another kind of node has real ones."""
        self.machine, self.proposals = Log(self.storage), Queue()
        return self.machine, self.proposals

    @property
    def attributes(self) -> PublishMember:
        """What it says about itself."""
        return PublishMember(id=self.me)

    def on_applied(self) -> None:
        """What is committed is applied, the sync may still come."""

    def on_members(self, configuration: Configuration) -> None:
        """Another configuration is in force."""

    def called_no_member(self, *, called: bool) -> None:
        """A peer refuses it as no member, or keeps a connection to it."""

    def before_turn(self) -> None:
        """Called first in a turn."""

    def end_turn(self, status: RaftStatus, ready: list[object], failed: list[object]) -> None:
        """The sync of the turn has ended."""
        self.reads_done += ready
        self.reads_failed += failed
        flight = self.proposals.in_flight
        if flight is not None and (status.applied_index >= flight or not status.leading):
            self.proposals.in_flight = None

    def run_loop(self) -> None:
        """Let its main thread do what waits, if it has one."""

    def loop_due(self) -> float:
        """When its main thread has something to do."""
        return NEVER

    def died(self) -> None:
        """Its memory is gone."""

    # ------------------------------------------------------------------ the turn

    def _on_event(self, name: str, **fields: object) -> None:
        self.events.append((name, fields))
        told = " ".join(f"{key}={value}" for key, value in fields.items())
        self.cluster.tell(self.name, f"{name} {told}")

    def _on_turn(self, status: RaftStatus, ready: list[object], failed: list[object]) -> None:
        before, self.status = self.status, status
        self._ended = (status, ready, failed)
        if before.active != status.active or before.term != status.term:
            role = "active" if status.active else "leading" if status.leading else "standby"
            self.cluster.tell(self.name, f"{role}, term {status.term}")

    def turn(self) -> None:
        """One turn; what comes after the sync waits for it if it takes long."""
        self.before_turn()
        more = self.engine.turn()
        self.due = 0.0 if more else self.engine.next_deadline()
        if self.storage.syncing:
            self.busy_until = self.storage.sync_ends
        else:
            self.finish_turn()

    def finish_turn(self) -> None:
        """The disk is done."""
        self.busy_until = 0.0
        self.storage.end_sync()
        self.wire.sync_ended()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            self.end_turn(*ended)
        self.turns += 1


class Outside(Protocol):
    """Somebody who is no member: clients."""

    def due(self) -> float:
        """When it has something to do."""
        ...

    def run(self) -> None:
        """Do it."""
        ...


class Cluster(Network):
    """N members, their links and their clock."""

    def __init__(
        self,
        size: int = 3,
        seed: int = 1,
        timings: Timings | None = None,
        bounds: LogBounds | None = None,
        node_type: type[SimNode] = SimNode,
        copy_turns: int = 3,
    ) -> None:
        self.bounds = bounds or LogBounds()
        self.copy_turns = copy_turns
        self.verify_s = 0.0
        """How long the verification of a state takes, at most; 0: there is none."""
        super().__init__(SimClock(), random.Random(seed), timings or Timings())
        names = [f"n{i + 1}" for i in range(size)]
        self.plan: ClusterPlan = plan_cluster({n: f"{n}:1" for n in names}, "simulation")
        self.storages = {name: self.new_disk() for name in names}
        self.nodes: dict[MemberId, SimNode] = {}  # type: ignore[assignment] # stations that turn
        self.on_disk_error: Callable[[SimNode], None] | None = None
        self.on_damage: Callable[[SimNode], None] | None = None
        """A node has found that its state is damaged."""
        self.names: dict[MemberId, str] = {}
        """Of all that have ever run."""
        self._disks: dict[MemberId, SimDisk] = {}
        self.outside: list[Outside] = []
        self.on_started: Callable[[SimNode], None] = lambda node: None
        self.on_turned: Callable[[SimNode], None] = lambda node: None
        """A turn was taken; its sync may still be under way."""
        self.on_finished: Callable[[SimNode], None] = lambda node: None
        """Its sync has ended."""
        self.on_leases: Callable[[list[LeaseChange]], None] = lambda changes: None
        """A node applied changes of leases."""
        self.role_changes: Counter[str] = Counter()
        """Of whole nodes, by reason."""
        self._stuck: set[MemberId] = set()
        """Of those that are paused, whose main thread goes on."""
        self._node_type = node_type
        for name in names:
            self.start(name)

    def new_disk(self) -> SimDisk:
        return SimDisk(self.clock, self.rng)

    def id_of(self, name: str) -> MemberId:
        found = self.plan.member_named(name)
        assert found is not None
        return found

    def node(self, name: str) -> SimNode:
        return self.nodes[self.id_of(name)]

    # ------------------------------------------------------------------ time and faults

    def start(self, name: str) -> SimNode:
        node = self._node_type(self, name, self.storages[name])
        self.nodes[node.me] = node
        self.names[node.me] = name
        self._disks[node.me] = node.storage
        self.tell(name, "starts")
        self.on_started(node)
        return node

    def pause(self, member: MemberId, seconds: float) -> None:
        """The process stands still; what arrives meanwhile comes in a burst afterwards."""
        self.paused[member] = self.clock.now + seconds
        self._stuck.discard(member)

    def stick(self, member: MemberId, seconds: float) -> None:
        """The same of its raft thread alone: its main thread goes on."""
        self.pause(member, seconds)
        self._stuck.add(member)

    def crash(self, member: MemberId, *, silent: bool = False, back: bool = False) -> None:
        """What is not committed is gone.

        Args:
            member: whose process ends.
            silent: its machine dies with it: the peers are told by nobody.
            back: and takes the newest commit of the state back.
        """
        self.tell(self.name_of(member), "loses power" if silent else "crashes")
        node = self.nodes.pop(member)
        node.died()
        self.paused.pop(member, None)
        self.believed = {pair for pair in self.believed if pair[0] != member}
        self.stale = {pair for pair in self.stale if pair[0] != member}
        self.storages[node.name].crash(back=back)
        for other in self.nodes:
            pair = frozenset((member, other))
            if pair not in self.open:
                continue
            self.open.discard(pair)
            self.link(member, other).queue.clear()
            self.link(other, member).queue.clear()
            if silent or self.link(member, other).held:
                if (other, member) in self.believed:
                    self.stale.add((other, member))
            else:
                self._tell_gone(other, member)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; True as soon as `until` holds."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.step(end)
            if until():
                return True
        return False

    def step(self, end: float = NEVER) -> None:
        """Go to the next moment at which something happens, `end` at the latest."""
        now = max(self.clock.now + STEP_S, min(self._next_event(), end))
        self.clock.now = now = round(now, 6)
        for member in [m for m, until in self.paused.items() if until <= now]:
            del self.paused[member]
        self._deliver()
        for loop in self.outside:
            if loop.due() <= now:
                loop.run()
        for member in sorted(self.nodes):
            if member not in self.nodes:
                continue
            if member not in self.paused:
                self._run_node(self.nodes[member])
            elif member in self._stuck:
                self.nodes[member].run_loop()

    def _run_node(self, node: SimNode) -> None:
        try:
            self._run_sound(node)
        except Exception:
            # whatever trips over damage: the node looks for damage behind it before it ends
            if node.storage.damaged is None or self.on_damage is None:
                raise
            self.on_damage(node)

    def _run_sound(self, node: SimNode) -> None:
        now = self.clock.now
        if node.verify_at <= now:
            node.end_verification()
        if node.loop_due() <= now:
            node.run_loop()
        if node.busy_until:
            if node.busy_until > now:
                return
            node.finish_turn()
            self.on_finished(node)
        elif node.due > now:
            return
        if node.due <= now:
            try:
                node.turn()
            except DiskError:
                if self.on_disk_error is None:
                    raise
                self.on_disk_error(node)
                return
            self.on_turned(node)
            if not node.busy_until:
                self.on_finished(node)
        if node.loop_due() <= now:
            node.run_loop()

    def _next_event(self) -> float:
        soonest = self._next_arrival()
        for loop in self.outside:
            if (at := loop.due()) < soonest:
                soonest = at
        paused = self.paused
        for member, node in self.nodes.items():
            stands = bool(paused) and member in paused
            at = paused[member] if stands else min(node.busy_until or node.due, node.verify_at)
            if (not stands or member in self._stuck) and (loop_at := node.loop_due()) < at:
                at = loop_at
            if at < soonest:
                soonest = at
        return soonest

    # ------------------------------------------------------------------ questions

    def disk_of(self, member: MemberId) -> SimDisk | None:
        """Of a member, running or not, that has run once; the one it lost if it lost one."""
        return self._disks.get(member)

    def active(self) -> SimNode | None:
        found = [node for node in self.nodes.values() if node.status.active]
        return max(found, key=lambda node: node.status.term, default=None)

    def elect(self) -> SimNode:
        assert self.run(10, until=lambda: self.active() is not None)
        active = self.active()
        assert active is not None
        return active

    def standbys(self) -> Iterator[SimNode]:
        active = self.active()
        return (node for node in self.nodes.values() if node is not active)

    def commit(self, payload: bytes) -> None:
        """Propose on the active and wait until every running node has applied it."""
        active = self.active()
        assert active is not None
        active.proposals.waiting.append(payload)
        active.due = 0.0
        assert self.run(
            5,
            until=lambda: all(
                any(batch == payload for _, _, batch in node.machine.applied)
                for node in self.nodes.values()
            ),
        )


def give(node: SimNode, source: MemberId, **message: object) -> None:
    """Deliver one message and take a turn."""
    node.engine.post(Received(source, PeerMessage(**message)))  # type: ignore[arg-type]
    node.turn()
