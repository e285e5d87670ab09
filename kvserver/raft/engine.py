"""The turn: deliver, tick (commit, apply, propose, replicate), sync, flush, publish.

No threads, no sockets, no clock of its own: everything is handed in, so that a simulation can run
whole clusters of the real thing. driver.py turns it in production.

Invariants of a turn:
- journal appends and hard state are one atomic unit, synced in the turn that made them;
- messages that promise durability leave only after that unit is durable;
- effects, applied index and members as of it are one atomic unit too, in the open transaction of
  the state. It is committed later: for a read, or after EFFECTS_HELD_S. Results need not wait for
  it: their entry is durable on a quorum, and after a crash the journal gives its effects again;
- nothing is committed to the state before the entries it comes from are durable in the journal, and
  nothing is dropped from the journal before its effects are durable for certain: a crash of the
  machine may take the newest commit of the state back. So at every moment what a crash leaves is
  `first index of the journal <= applied index of the state <= last index of the journal`;
- who a node is, and a copy of the state that it adopts, are durable when it says so;
- reads are answered, and the status published, after the commit that shows what they must see;
- a turn that fails is never retried: memory has advanced past the disk.
"""

from collections.abc import Mapping
from typing import Final

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage
from kvserver.raft import identity as identities
from kvserver.raft.consensus import GuardedRaft
from kvserver.raft.defragment import Defragmenter, Done
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import LAG_ENTRIES, Fitness, Reason, Trust, Unfit
from kvserver.raft.identity import PROTOCOL_VERSION
from kvserver.raft.journal import DurableJournal, begin_log
from kvserver.raft.members import MemberChange, MemberService
from kvserver.raft.membership import Configuration, spanning
from kvserver.raft.snapshot import SnapshotReceiver, SnapshotSender
from kvserver.raft.status import (
    Connected,
    Disconnected,
    EngineParts,
    Event,
    RaftStatus,
    Received,
)
from kvserver.telemetry import Repeats

EFFECTS_HELD_S: Final = 0.05
"""How long effects of committed entries may wait for a commit of the state."""

SLOW_TURN_S: Final = 0.1
"""A turn that takes longer is told of, the first of its kind and then now and then."""

COPY_PACE_S: Final = 0.004
"""How often the turn looks after a copy of the state that is under way."""


class RaftEngine:
    """One member's part in the agreement. All calls from the one thread that turns it."""

    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts
        self._storage = parts.storage
        self._identity = parts.identity
        self._identity_changed = False
        self.me = MemberId(parts.identity.member_id)
        self._inbox: list[Event] = []
        self._hellos: dict[MemberId, raft_pb2.Hello] = {}
        """Of the peers whose connection is open."""
        self._peers: Mapping[MemberId, raft_pb2.PublishMember] = {}
        self._held: list[tuple[MemberId, PeerMessage]] = []
        """Messages that wait for the sync of this turn."""
        self._reads: list[object] = []
        self._possible: tuple[Configuration, ...] = ()
        """As told to the outside."""
        self._sender = SnapshotSender(
            parts.copies, parts.clock, parts.wire.send, parts.on_event
        )  # fmt: skip
        self._receiver = SnapshotReceiver(
            parts.copies, parts.machine.applied_of, parts.on_event
        )  # fmt: skip
        self._defragmenter = Defragmenter(parts.copies, parts.machine.shadow, parts.on_event)
        self._verified = parts.verified
        """Invariant: false from the moment on that another state takes the place."""
        self._generation = 0
        """Of the state: rises when a copy of another member takes its place."""
        self._trust = Trust()
        self._peers_seen: Mapping[MemberId, raft_pb2.PublishMember] | None = None
        self._parts_seen: tuple[object, ...] = ()
        """What fitness was decided by last. Invariant: `_peers` is a new object with each hello."""
        self._fitness_seen: Fitness | None = None
        self._lagging_seen = False
        self._slow_told = Repeats()
        self._load()

    def _load(self) -> None:
        """Go on from what the storage holds."""
        parts = self._parts
        self._visible_index = parts.machine.applied_index
        self._settled_index = parts.machine.applied_index
        """Newest entry whose effects no crash takes back: of the last-but-one commit."""
        self._commit_effects_at: float | None = None
        """None if nothing waits for a commit of the state."""
        self._journal = DurableJournal(parts.storage, parts.machine.applied_index)
        self._raft = GuardedRaft(
            self.me, timings=parts.timings, clock=parts.clock, rng=parts.rng,
            journal=self._journal, applied_index=parts.machine.applied_index, outbox=self,
            proposals=parts.proposals, machine=parts.machine, on_event=parts.on_event,
        )  # fmt: skip
        self._peers_seen = None  # the consensus is a new one, and knows nobody's fitness
        self._members = MemberService(self._raft, self._known_pins, parts.on_event)
        if self._identity.established:
            for member in self._hellos:
                self._raft.connected(member)
        self._tell_members()

    # ------------------------------------------------------------------ from outside the turn

    def post(self, event: Event) -> None:
        """Leave something for the next turn."""
        self._inbox.append(event)

    def post_reads(self, reads: list[object]) -> None:
        """Ask for a linearizable moment; answered by `on_turn`."""
        self._reads += reads

    def hello(self, attributes: raft_pb2.PublishMember) -> raft_pb2.Hello:
        """What this node says first on a connection."""
        mine = self._identity
        pins = self._known_pins() if mine.established else mine.pins
        return raft_pb2.Hello(
            protocol=PROTOCOL_VERSION, cluster_id=mine.cluster_id, member_id=mine.member_id,
            incarnation=mine.incarnation, established=mine.established, pins=pins,
            attributes=attributes, membership_index=self._raft.configuration.index,
            unverified=not self._verified, met_verified=self._trust.met_verified,
        )  # fmt: skip

    def _known_pins(self) -> dict[int, int]:
        return identities.known_pins(self._identity, self._raft.configuration)

    @property
    def established(self) -> bool:
        """True once this node may vote."""
        return self._identity.established

    def refuse_reason(self, hello: raft_pb2.Hello) -> str | None:
        """Why a peer is not believed, None if it is."""
        known = spanning(self._raft.possible_configurations)
        reason = identities.refuse_reason(self._identity, known, hello)
        level, theirs = self._parts.machine.feature_level, hello.attributes.feature_level
        if reason is None and theirs < level:
            return f"its version knows feature level {theirs}, the cluster uses {level}; upgrade it"
        return reason

    def answer_joining(self, hello: raft_pb2.Hello) -> PeerMessage:
        """To a node that asks to be taken in: who it is, or why not yet."""
        return self._members.answer_joining(hello)

    def change_members(self, change: MemberChange) -> None:
        """Change the members in the next turn; `change.done` is called with the outcome."""
        self._members.changes.append(change)

    def hand_over(self, target: MemberId | None = None) -> MemberId | None:
        """Begin to hand leadership over; the chosen peer, None if there is nobody."""
        return self._raft.hand_over(target)

    def withhold_heartbeats(self) -> None:
        """Let the others elect another leader."""
        self._raft.withhold_heartbeats()

    def say(self, member: MemberId, message: PeerMessage) -> None:
        """Send a peer something that is not about the log; dropped if it is not connected."""
        self._parts.wire.send(member, message)

    def set_verified(self, generation: int) -> None:
        """Somebody has read the whole of the state with this number: it is as it was written."""
        if generation == self._generation and not self._verified:
            self._verified = True
            self._look_at_fitness()
            self._parts.wire.say_hello()

    def defragment(self, done: Done) -> None:
        """Make the file of the state as small as what it holds; `done` is told how that ended."""
        if not self._verified:  # the copy would be sound, whatever is missing in it
            self._parts.on_event("defragment.failed", reason="the data is not verified yet")
            done(False)
            return
        self._defragmenter.begin(done, self._visible_index)

    # ------------------------------------------------------------------ the turn

    def turn(self) -> bool:
        """One turn; True if another one has work at once.

        Raises:
            NodeError: the disk or the log; do not turn again.
        """
        begun = self._parts.clock.monotonic()
        self._adopt_copy()
        self._look_at_fitness()
        self._take_compacted()
        self._deliver()
        self._look_at_fitness()  # again, with what peers have just said about themselves
        if self._identity.established:
            reads, self._reads = self._reads, []
            refused = reads if reads and not self._raft.read(reads) else []
            self._raft.tick()
            self._parts.on_applied()
            self._serve_copies()
            self._members.serve(self._hellos.keys() | {self.me})
            self._tell_members()
        else:
            refused, self._reads = self._reads, []
        syncing = self._parts.clock.monotonic()
        self._sync()
        self._tell_slow(begun, syncing, self._parts.clock.monotonic())
        self._flush()
        ready, failed = self._raft.take_reads()
        self._check()
        self._parts.on_turn(self.status(), ready, failed + refused)
        return bool(self._inbox or self._raft.behind or self._defragmenter.catching_up)

    def _tell_slow(self, begun: float, syncing: float, now: float) -> None:
        """Say so if this turn has kept all others waiting: leaderships are lost by that."""
        if now - begun < SLOW_TURN_S:
            return
        disk = now - syncing > syncing - begun
        if self._slow_told.is_news(disk, now):
            self._parts.on_event(
                "turn.slow", ms=round(1000 * (now - begun)), sync_ms=round(1000 * (now - syncing)),
                reason="the disk of --data-dir takes long to sync" if disk
                else "a large command, or no free core",
            )  # fmt: skip

    def next_deadline(self) -> float:
        """When the next turn must happen at the latest, in the clock's seconds."""
        if not self._identity.established:  # no ticks yet: what arrives brings the next turn
            return self._parts.clock.monotonic() + self._parts.timings.heartbeat
        times = [self._raft.next_deadline()]
        if self._commit_effects_at is not None:
            times.append(self._commit_effects_at)
        if self._sender.busy or self._receiver.busy or self._defragmenter.busy:
            times.append(self._parts.clock.monotonic() + COPY_PACE_S)
        return min(times)

    def status(self) -> RaftStatus:
        """Where this member stands now."""
        raft = self._raft
        return RaftStatus(
            term=raft.term, leader=raft.leader, leading=raft.leading, active=raft.activated,
            established=self._identity.established, commit_index=raft.commit_index,
            applied_index=raft.applied_index, visible_index=self._visible_index,
            last_index=self._journal.last_index, peers=self._peers,
            fitness=self._fitness(), unverified=raft.unfit.unverified,
        )  # fmt: skip

    def _look_at_fitness(self) -> None:
        """Who must not serve, as far as is known now."""
        raft = self._raft
        parts = (raft.configuration, raft.leading, self._parts.machine.disqualified, self._verified)
        if self._peers is self._peers_seen and parts == self._parts_seen:
            return  # as in nearly all turns
        self._peers_seen, self._parts_seen = self._peers, parts
        self._fitness_seen = None
        voters = raft.configuration.voters
        present = {m: hello for m, hello in self._hellos.items() if m in voters}
        met = any(not hello.unverified or hello.met_verified for hello in present.values())
        before = self._trust.met_verified
        self._trust.look(leading=raft.leading, met=met or self._verified)
        if self._trust.met_verified != before:
            self._parts.wire.say_hello()
        unverified = {member for member, hello in present.items() if hello.unverified}
        if not self._verified:
            unverified.add(self.me)
        raft.unfit = Unfit(
            self._parts.machine.disqualified, frozenset(unverified), trusted=self._trust.given
        )

    def _fitness(self) -> Fitness:
        raft = self._raft
        lagging = raft.leader_commit_index > raft.applied_index + LAG_ENTRIES
        if self._fitness_seen is None or lagging != self._lagging_seen:
            reasons = {
                Reason.DISQUALIFIED: self.me in raft.unfit.disqualified,
                Reason.UNVERIFIED: not self._verified,
                Reason.LAGGING: lagging,
            }
            found = frozenset(reason for reason, holds in reasons.items() if holds)
            self._fitness_seen = Fitness(found, trusted=self._trust.given)
            self._lagging_seen = lagging
        return self._fitness_seen

    def match_index(self, member: MemberId) -> int:
        """Newest entry known to be durable on a peer; 0 unless this node leads. Any thread."""
        return self._raft.match_index(member)

    def _deliver(self) -> None:
        events, self._inbox = self._inbox, []
        for event in events:
            match event:
                case Received(member, message):
                    if self._identity.established and member in self._hellos:
                        self._receive(member, message)
                case Connected(member, hello):
                    self._meet(member, hello)
                case Disconnected(member, replaced):
                    self._hellos.pop(member, None)  # it may have been removed
                    self._peers = {peer: said.attributes for peer, said in self._hellos.items()}
                    self._sender.connection_lost(member)
                    if self._identity.established:
                        self._raft.disconnected(member, replaced=replaced)

    def _receive(self, member: MemberId, message: PeerMessage) -> None:
        match message.WhichOneof("message"):
            case "snapshot_chunk":
                chunk = message.snapshot_chunk
                if chunk.term == self._raft.term and not self._raft.leading:
                    offset = self._receiver.on_chunk(chunk)
                    reply = raft_pb2.SnapshotReply(
                        term=chunk.term, copy=chunk.copy, offset=offset
                    )  # fmt: skip
                    self._parts.wire.send(member, PeerMessage(snapshot_reply=reply))
            case "snapshot_reply":
                self._sender.on_reply(member, message.snapshot_reply)
            case "hash_ask" | "hash_word":
                self._parts.on_aside(member, message)
            case _:
                self._raft.deliver(member, message)

    def _serve_copies(self) -> None:
        raft = self._raft
        if raft.leading and self.me not in raft.unfit.all:  # what is wrong must not spread
            self._sender.tick(
                raft.term, raft.behind_log, raft.connected_members,
                visible_index=self._visible_index,
            )  # fmt: skip
        else:
            self._sender.stop()
        self._receiver.tick()

    def _tell_members(self) -> None:
        """Tell the transport whom to talk to, the outside which members are certain."""
        possible = self._raft.possible_configurations
        if possible == self._possible:
            return
        before, self._possible = self._possible, possible
        others = {m: each for m, each in spanning(possible).members.items() if m != self.me}
        for member in {m for each in before for m in each.members} - others.keys():
            self._hellos.pop(member, None)
        self._peers = {peer: said.attributes for peer, said in self._hellos.items()}
        self._parts.wire.set_peers(others)
        self._parts.wire.say_hello()
        self._parts.on_members(possible[0])

    def _adopt_copy(self) -> None:
        """Replace the state by a received copy, keeping who this node is and what it has voted."""
        taken = self._receiver.take()
        if taken is None:
            return
        fresh, base = taken
        known = base.index <= self._raft.commit_index or self._journal.holds(base)
        if known or base.term > self._raft.term:
            # what the log holds after its base may be acknowledged: it must not go
            self._parts.copies.reject(fresh)
            return
        self._defragmenter.give_up("a copy of a later state arrived")
        self._commit()
        state = self._journal.hard_state()
        state.commit_index = base.index
        begin_log(fresh, state, base)
        identities.store_identity(fresh, self._identity)
        fresh.commit(durable=True)
        self._parts.copies.adopt(fresh)
        self._parts.machine.reload()
        self._verified = False
        self._generation += 1
        self._load()
        self._parts.on_replaced(self._generation)
        self._parts.on_event("snapshot.adopted", index=base.index, term=base.term)

    def _take_compacted(self) -> None:
        """Let a compact copy take the place of the state, once it holds all that this one does."""
        index = self._raft.applied_index
        if not self._defragmenter.step(self._journal, index, self._identity):
            return
        self._commit()  # and no transaction is open in the old place
        if not self._defragmenter.take_place():
            return
        self._visible_index = self._settled_index = index
        self._parts.machine.moved()
        self._defragmenter.replaced()

    def _meet(self, member: MemberId, hello: raft_pb2.Hello) -> None:
        fresh = member not in self._hellos
        self._hellos[member] = hello
        self._peers = {peer: said.attributes for peer, said in self._hellos.items()}
        if self._identity.established:
            if fresh:
                self._raft.connected(member)
            return
        while born := identities.next_identity(self._identity, self._parts.plan, self._hellos):
            self._identity = born
            identities.store_identity(self._storage, born)
            self._identity_changed = True
            if born.established:
                self._parts.on_event("cluster.joined", cluster=f"{born.cluster_id:x}")
                for peer in self._hellos:
                    self._raft.connected(peer)

    def _sync(self) -> None:
        worked = self._parts.machine.work()
        wrote = self._journal.sync()
        if self._identity_changed or self._commit_due(waits=worked or wrote):
            self._commit()

    def _commit(self) -> None:
        self._journal.sync()
        self._parts.machine.stage()
        if self._storage.commit(durable=self._identity_changed):
            self._settled_index = self._visible_index
        self._visible_index = self._raft.applied_index
        self._commit_effects_at = None
        self._trim()

    def _trim(self) -> None:
        """Drop old entries, but not what a peer that follows the log, or gets a copy, will need."""
        bounds, (entries, size) = self._parts.bounds, self._journal.size
        limit = self._settled_index
        slowest = self._raft.slowest_match()
        holding = entries < bounds.hold_entries and size < bounds.hold_bytes
        if slowest is not None and holding:
            limit = min(limit, slowest)
        bounded = entries < 4 * bounds.hold_entries and size < 4 * bounds.hold_bytes
        if self._sender.hold_index is not None:
            if bounded:
                limit = min(limit, self._sender.hold_index)
            else:
                self._sender.stop()  # the peer takes it too slowly: a newer one, if any
        if self._defragmenter.hold_index is not None:
            if bounded:
                limit = min(limit, self._defragmenter.hold_index)
            else:
                self._defragmenter.give_up("writes come faster than the copy catches up")
        self._journal.trim(limit, bounds)

    def _commit_due(self, *, waits: bool) -> bool:
        """Whether to commit the state now, though a crash before it would lose nothing.

        Args:
            waits: this turn did something that should be committed some time soon. What the journal
                synced is: the state then names it, so that damage to it can't pass for a torn end.
        """
        behind = self._raft.applied_index > self._visible_index
        if behind and self._raft.reading:
            return True
        if not behind and not waits and self._commit_effects_at is None:
            return False
        now = self._parts.clock.monotonic()
        if self._commit_effects_at is None:
            self._commit_effects_at = now + EFFECTS_HELD_S
        return now >= self._commit_effects_at

    def _flush(self) -> None:
        if self._identity_changed:
            self._identity_changed = False
            self._parts.wire.say_hello()
        held, self._held = self._held, []
        for member, message in held:
            self._parts.wire.send(member, message)

    def _check(self) -> None:
        raft, journal = self._raft, self._journal
        assert raft.applied_index <= raft.commit_index <= journal.last_index
        assert journal.durable_index == journal.last_index
        assert raft.applied_index == self._parts.machine.applied_index
        assert raft.term == journal.term >= journal.last_term

    # ------------------------------------------------------------------ outbox of the consensus

    def send(self, member: MemberId, message: PeerMessage, *, after_sync: bool) -> None:
        """Send now, or once this turn is durable."""
        if after_sync:
            self._held.append((member, message))
        else:
            self._parts.wire.send(member, message)
