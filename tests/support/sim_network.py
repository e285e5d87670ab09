"""Connections between simulated nodes: in order, broken, held up, dropped when silent."""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from support.sim_disk import SimClock

from kvpb.raft_pb2 import PeerMessage, PublishMember
from kvserver.raft.engine import RaftEngine
from kvserver.raft.entry import MemberId
from kvserver.raft.identity import NotMember
from kvserver.raft.ports import Timings
from kvserver.raft.status import Connected, Disconnected, Received

REFUSED_S = 0.1
"""How long a refused connection is not tried again."""

REDIAL_S = (0.02, 0.5)
"""When a connection that could not be made is tried again."""

NEVER = float("inf")


@dataclass
class Link:
    """One direction between two nodes."""

    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    delay_s: float = 0.001
    auto: bool = True
    """False: messages move only by `Cluster.move`."""
    held: bool = False
    """Nothing gets through for now, and nothing is lost: TCP sends it again."""


class Station(Protocol):
    """A node as the network sees it."""

    name: str
    engine: RaftEngine
    events: list[tuple[str, dict[str, object]]]
    due: float
    busy_until: float

    @property
    def attributes(self) -> PublishMember:
        """What it says about itself."""
        ...

    def called_no_member(self, *, called: bool) -> None:
        """A peer refuses it as no member, or keeps a connection to it."""
        ...


class Observer:
    """Looks on."""

    def sent(self, source: MemberId, target: MemberId, message: PeerMessage) -> None:
        """A message leaves."""


class Network:
    """Links between stations."""

    def __init__(self, clock: SimClock, rng: random.Random, timings: Timings) -> None:
        self.clock = clock
        self.rng = rng
        self.timings = timings
        self.nodes: dict[MemberId, Station] = {}
        self.links: dict[tuple[MemberId, MemberId], Link] = {}
        self.open: set[frozenset[MemberId]] = set()
        self.blocked: set[frozenset[MemberId]] = set()
        self.refused_until: dict[frozenset[MemberId], float] = {}
        """When a connection that could not be made is tried again."""
        self.believed: set[tuple[MemberId, MemberId]] = set()
        """(a, b): b's hello has arrived at a, and a has not been told of its end."""
        self.stale: set[tuple[MemberId, MemberId]] = set()
        """(a, b): a believes in a connection that b has ended."""
        self.paused: dict[MemberId, float] = {}
        self.sent_by: defaultdict[MemberId, Counter[str]] = defaultdict(Counter)
        self.observer = Observer()
        self.trace: Callable[[str], None] | None = None
        self.trace_messages = False
        self._gone: list[tuple[float, MemberId, MemberId]] = []
        """(when, a, b): a hears that b has ended the connection."""
        self._heard: dict[tuple[MemberId, MemberId], float] = {}
        self._pulse_at = self.clock.now
        self._redial_at = 0.0

    @property
    def sent(self) -> Counter[str]:
        """How many messages of each kind all have sent."""
        return sum(self.sent_by.values(), Counter())

    def tell(self, who: str, what: str) -> None:
        """One line of the story."""
        if self.trace is not None:
            self.trace(f"{self.clock.now - 1000:9.3f} {who:5} {what}")

    def name_of(self, member: MemberId) -> str:
        node = self.nodes.get(member)
        return node.name if node is not None else f"({member & 0xFFFF:x})"

    def peers_of(self, member: MemberId) -> list[MemberId]:
        return sorted(other for pair in self.open if member in pair for other in pair - {member})

    def link(self, source: MemberId, target: MemberId) -> Link:
        return self.links.setdefault((source, target), Link())

    def carry(self, source: MemberId, target: MemberId, message: PeerMessage) -> None:
        if frozenset((source, target)) in self.open and (source, target) not in self.stale:
            self.observer.sent(source, target, message)
            self._put_on(source, target, message)

    def _put_on(self, source: MemberId, target: MemberId, message: PeerMessage) -> None:
        link = self.link(source, target)
        link.queue.append((self.clock.now + link.delay_s, message.SerializeToString()))
        kind = message.WhichOneof("message") or ""
        sent = self.sent_by[source]
        sent[kind] += 1
        if kind == "append_entries":
            sent["entries"] += len(message.append_entries.entries)
            sent["appends"] += bool(message.append_entries.entries)
        if self.trace_messages:
            told = " ".join(str(getattr(message, kind)).split())[:150]
            self.tell(self.name_of(source), f"-> {self.name_of(target)} {kind} {told}")

    def hello(self, member: MemberId) -> PeerMessage:
        node = self.nodes[member]
        return PeerMessage(hello=node.engine.hello(node.attributes))

    def connect_all(self) -> float:
        """Connect whom nothing keeps apart; when to try again."""
        count, again = len(self.nodes), NEVER
        if len(self.open) == count * (count - 1) // 2:
            return again
        members = sorted(self.nodes)
        for position, one in enumerate(members):
            for other in members[position + 1 :]:
                pair = frozenset((one, other))
                if pair in self.open:
                    continue
                if (wait := self.refused_until.get(pair, 0.0)) > self.clock.now:
                    again = min(again, wait)
                elif pair in self.blocked or self._held(one, other):
                    wait = self.clock.now + self.rng.uniform(*REDIAL_S)
                    self.refused_until[pair] = wait
                    again = min(again, wait)
                else:
                    self._connect(one, other)
        return again

    def _held(self, one: MemberId, other: MemberId) -> bool:
        return self.link(one, other).held or self.link(other, one).held

    def _connect(self, one: MemberId, other: MemberId) -> None:
        self.open.add(frozenset((one, other)))
        for source, target in ((one, other), (other, one)):
            if (source, target) in self.believed:
                self.stale.add((source, target))
            self.link(source, target).queue.clear()
            self._heard[source, target] = self.clock.now
            self._put_on(source, target, self.hello(source))

    def disconnect(self, one: MemberId, other: MemberId) -> None:
        """Reset: what was on its way is lost, both ends are told."""
        pair = frozenset((one, other))
        if pair not in self.open:
            return
        self.open.discard(pair)
        self.tell("net", f"reset {self.name_of(one)} - {self.name_of(other)}")
        for source, target in ((one, other), (other, one)):
            self.link(source, target).queue.clear()
            self._tell_gone(target, source)

    def drop(self, member: MemberId, other: MemberId) -> None:
        """One end gives the connection up; the other one hears of it when something gets there."""
        self.tell(self.name_of(member), f"drops its connection to {self.name_of(other)}")
        stale = (member, other) in self.stale
        self._tell_gone(member, other)
        pair = frozenset((member, other))
        if stale or pair not in self.open:
            return
        self.open.discard(pair)
        self.link(member, other).queue.clear()
        self.link(other, member).queue.clear()
        if (other, member) in self.believed:
            self.stale.add((other, member))
            self._gone.append((self.clock.now + self.link(member, other).delay_s, other, member))

    def _tell_gone(self, member: MemberId, gone: MemberId, *, replaced: bool = False) -> None:
        self.stale.discard((member, gone))
        if (member, gone) in self.believed:
            self.believed.discard((member, gone))
            if member in self.nodes:
                self.nodes[member].engine.post(Disconnected(gone, replaced))
                self.nodes[member].due = 0.0

    def block(self, one: MemberId, other: MemberId) -> None:
        self.disconnect(one, other)
        self.blocked.add(frozenset((one, other)))

    def isolate(self, member: MemberId) -> None:
        for other in self.nodes:
            if other != member:
                self.block(member, other)

    def hold(self, source: MemberId, target: MemberId) -> None:
        """Nothing gets through in this direction until `heal`."""
        self.link(source, target).held = True

    def heal(self) -> None:
        self.blocked.clear()
        for link in self.links.values():
            link.held = False

    def move(self, source: MemberId, target: MemberId, count: int = 1 << 30) -> list[PeerMessage]:
        """Deliver messages by hand; returns them."""
        moved: list[PeerMessage] = []
        queue = self.link(source, target).queue
        while queue and len(moved) < count:
            message = PeerMessage.FromString(queue.popleft()[1])
            self._arrive(source, target, message)
            moved.append(message)
        return moved

    def _arrive(self, source: MemberId, target: MemberId, message: PeerMessage) -> None:
        node = self.nodes.get(target)
        if node is None:
            return
        self._heard[target, source] = self.clock.now
        if message.WhichOneof("message") == "hello":
            reason = node.engine.refuse_reason(message.hello)
            if reason is not None:
                node.events.append(("peer.rejected", {"reason": reason}))
                self.refused_until[frozenset((source, target))] = self.clock.now + REFUSED_S
                self.disconnect(source, target)
                if isinstance(reason, NotMember) and source in self.nodes:
                    self.nodes[source].called_no_member(called=True)
                return
            if source in self.nodes:
                self.nodes[source].called_no_member(called=False)
            if (target, source) in self.stale:
                self._tell_gone(target, source, replaced=True)
            self.believed.add((target, source))
            node.engine.post(Connected(source, message.hello))
        else:
            node.engine.post(Received(source, message))
        node.due = 0.0

    def _pulse(self) -> None:
        """Signs of life, and what follows when there are none."""
        now, limit = self.clock.now, self.timings.dead_peer
        self._pulse_at = now + limit / 4
        for member, other in sorted(self.believed):
            if self._stopped(member):
                continue
            connected = frozenset((member, other)) in self.open
            fresh = connected and (member, other) not in self.stale
            if fresh and not self._stopped(other) and not self.link(other, member).held:
                self._heard[member, other] = now
            elif now - self._heard.get((member, other), now) > limit:
                self.drop(member, other)

    def _stopped(self, member: MemberId) -> bool:
        """Its raft thread does nothing at the moment."""
        node = self.nodes.get(member)
        return node is None or member in self.paused or node.busy_until > self.clock.now

    def _deliver_gone(self) -> None:
        waiting, self._gone = self._gone, []
        for notice in waiting:
            at, member, other = notice
            if (member, other) not in self.stale or member not in self.nodes:
                continue
            if at > self.clock.now or member in self.paused or self.link(other, member).held:
                self._gone.append(notice)
            else:
                self._tell_gone(member, other)

    def _next_arrival(self) -> float:
        soonest = min(self._redial_at, self._pulse_at)
        for (_, target), link in self.links.items():
            if not link.queue or (at := link.queue[0][0]) >= soonest:
                continue
            if link.auto and not link.held and target not in self.paused:
                soonest = at
        return self.clock.now if self._gone else soonest

    def _deliver(self) -> None:
        """Whatever happens on the wires until now."""
        now = self.clock.now
        self._redial_at = self.connect_all()
        self._deliver_gone()
        for (source, target), link in list(self.links.items()):
            if not link.queue or link.held or target in self.paused or not link.auto:
                continue
            while link.queue and link.queue[0][0] <= now:
                _, encoded = link.queue.popleft()
                self._arrive(source, target, PeerMessage.FromString(encoded))
        if now >= self._pulse_at:
            self._pulse()
