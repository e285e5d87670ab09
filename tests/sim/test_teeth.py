"""What each guard is worth: switched off alone, something breaks. DESIGN.md of raft lists them.

Safety shows as a broken promise under random faults, at the named seed or one soon after; traffic,
time, and what takes a coincidence show as a bound that holds with the guard and not without it.
Guards that random faults hardly ever need are shown by scripts in tests/unit/raft.
"""

from collections.abc import Callable
from typing import Any

import pytest
from support.chaos import Chaos
from support.kinds import Kind
from support.promises import ViolationError
from support.simulation import Cluster, give
from support.stuck_active import seconds_a_lease_ends_early

from kvpb import raft_pb2
from kvpb.raft_pb2 import Command, PeerMessage
from kvserver.errors import NodeError
from kvserver.mvcc.sessions import Sessions
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.lessor import Lessor, _Lease
from kvserver.raft.consensus import GuardedRaft
from kvserver.raft.engine import RaftEngine
from kvserver.raft.entry import Entry
from kvserver.raft.flow import SendWindow
from kvserver.raft.journal import DurableJournal, begin_log
from kvserver.raft.membership import added
from kvserver.raft.reads import ReadRounds
from kvserver.raft.seam import Node
from kvserver.raft.status import Received
from kvserver.raft.voting import Voter
from kvserver.storage.contract import Storage
from kvserver.storage.schema import META

Off = Callable[[pytest.MonkeyPatch], None]

# ---------------------------------------------------------------------------- switches


def promises_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    def send(self: RaftEngine, member: Any, message: PeerMessage, *, after_sync: bool) -> None:
        self._parts.wire.send(member, message)

    patch.setattr(RaftEngine, "send", send)


def committing_the_unverified(patch: pytest.MonkeyPatch) -> None:
    """The log does not end at the last verified entry while the library looks."""
    real = GuardedRaft.to_library

    def to_library(self: GuardedRaft, node: Node, message: dict[str, Any]) -> None:
        real(self, node, message)
        if message["type"] == "append_entries":
            self._journal.settle()
            self.commit_index = max(
                self.commit_index, min(message["commit_index"], self._journal.last_index)
            )

    patch.setattr(GuardedRaft, "to_library", to_library)


def terms_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Who starts knows of its term what its entries tell."""
    real = DurableJournal.__init__

    def begin(self: DurableJournal, storage: Storage, applied_index: int) -> None:
        real(self, storage, applied_index)
        self.term, self.voted_for = self.last_term, None

    patch.setattr(DurableJournal, "__init__", begin)


def votes_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The term goes to the disk, the vote cast in it does not."""

    def hard_state(self: DurableJournal) -> raft_pb2.HardState:
        return raft_pb2.HardState(term=self.term, commit_index=self.commit_index)

    patch.setattr(DurableJournal, "hard_state", hard_state)


def local_reads(patch: pytest.MonkeyPatch) -> None:
    def read(self: GuardedRaft, reads: list[object]) -> bool:
        if not self.leading:
            return False
        self._reads.begin(reads, self.commit_index)
        self._reads.confirm_all()
        return True

    patch.setattr(GuardedRaft, "read", read)


def while_adopting(patch: pytest.MonkeyPatch, target: str, other: Callable[..., object]) -> None:
    """Something else is done, but only where a copy of the state is taken over."""
    real = RaftEngine._adopt_copy

    def adopt(self: RaftEngine) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(target, other)
            real(self)

    patch.setattr(RaftEngine, "_adopt_copy", adopt)


def foreign_identity(patch: pytest.MonkeyPatch) -> None:
    while_adopting(patch, "kvserver.raft.identity.store_identity", lambda *_: None)


def foreign_term(patch: pytest.MonkeyPatch) -> None:
    """The log goes on with the term of the copy, and without the vote."""

    def begin(storage: Storage, state: raft_pb2.HardState, base: Entry) -> None:
        fresh = raft_pb2.HardState(term=base.term, commit_index=state.commit_index)
        begin_log(storage, fresh, base)

    while_adopting(patch, "kvserver.raft.engine.begin_log", begin)


def keepalives_without_a_round(patch: pytest.MonkeyPatch) -> None:
    """An active that was deposed, and does not know it yet, renews leases."""
    real = Lessor.activate

    async def at_once() -> None:
        return

    def activate(self: Lessor, term: int) -> None:
        self._linearizable = at_once
        real(self, term)

    patch.setattr(Lessor, "activate", activate)


def promises_never_renewed(patch: pytest.MonkeyPatch) -> None:
    """What a lease's client is told goes beyond what the log knows."""
    patch.setattr(_Lease, "falls_short", lambda self, now_ms: False)


def numbers_without_meaning(patch: pytest.MonkeyPatch) -> None:
    """A write that comes again is applied again."""
    patch.setattr(Sessions, "answered", lambda self, command: None)


def answers_dropped_at_once(patch: pytest.MonkeyPatch) -> None:
    """Of each session the newest batch is remembered, as if what is under way were acknowledged."""
    real = Sessions.keep

    def keep(self: Sessions, command: Command, answer: Any, **more: Any) -> None:
        self._find(command.session).answers.clear()
        real(self, command, answer, **more)

    patch.setattr(Sessions, "keep", keep)


LEASES = Kind(3, whole=True, leases=True)
SESSIONS = Kind(3, whole=True, sessions=True)


SAFETY: tuple[tuple[Off, Kind, int], ...] = (
    (promises_before_the_sync, Kind(3), 0),
    (committing_the_unverified, Kind(3), 0),
    (terms_forgotten, Kind(3), 0),
    (foreign_identity, Kind(3), 3),
    (foreign_term, Kind(3), 0),
    (keepalives_without_a_round, LEASES, 28),
    (promises_never_renewed, LEASES, 2),
    (numbers_without_meaning, SESSIONS, 0),
    (answers_dropped_at_once, SESSIONS, 0),
)
"""Guard, kind of run, first seed at which a promise breaks."""

SEEDS_TRIED = 60
"""A seed tells another story once the product or the faults change: later ones are tried too."""


def name(value: object) -> str:
    return getattr(value, "__name__", str(value))


def breaks(kind: Kind, seed: int) -> bool:
    try:
        Chaos(seed, kind).run(seconds=10)
    except (AssertionError, NodeError):
        return True
    return False


@pytest.mark.parametrize(("off", "kind", "seed"), SAFETY, ids=name)
def test_a_promise_breaks_without(
    off: Off, kind: Kind, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch)
    assert any(breaks(kind, each) for each in range(seed, seed + SEEDS_TRIED))


# ---------------------------------------------------------------------------- bounds


def entries_at_the_heartbeat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GuardedRaft, "_replicate_all", lambda self: None)


def seconds_to_commit() -> float:
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.run(0.505)
    started = cluster.clock.now
    index = active.status.last_index + 1
    active.proposals.waiting.append(b"x")
    active.due = 0.0
    assert cluster.run(1, until=lambda: active.status.applied_index == index)
    return cluster.clock.now - started


def leaders_of_a_term() -> float:
    """Of two who stand at once, when the one who voted starts again between their requests."""
    cluster = Cluster(3)
    nodes = cluster.nodes
    assert cluster.run(0.2, until=lambda: all(n.status.established for n in nodes.values()))
    one, other, voter = (cluster.node(name) for name in ("n1", "n2", "n3"))
    for link in cluster.links.values():
        link.auto = False
    for candidate in (one, other):
        candidate.engine._raft._pre_vote_won = True
        candidate.engine._raft.election_deadline = 0.0
        candidate.turn()
    for source, target in ((one, voter), (voter, one)):
        cluster.move(source.me, target.me)
        target.turn()
    assert one.status.leading
    cluster.crash(voter.me)
    voter = cluster.start("n3")
    cluster.connect_all()
    for source, target in ((other, voter), (voter, other)):
        cluster.move(source.me, target.me)
        target.turn()
    ask = raft_pb2.RequestVote(term=1, last_log_index=1, last_log_term=0)
    give(voter, other.me, request_vote=ask)
    cluster.move(voter.me, other.me)
    other.turn()
    return sum(node.status.leading and node.status.term == 1 for node in (one, other))


def stale_reads() -> float:
    """Answered by an active that is cut off and has a successor already."""
    cluster = Cluster(3)
    old = cluster.elect()
    cluster.run(0.2)
    fresh = next(cluster.standbys())
    cluster.isolate(old.me)
    fresh.engine._raft.election_deadline = 0.0
    fresh.engine._raft._pre_vote_won = True
    fresh.due = 0.0
    assert cluster.run(0.1, until=lambda: fresh.status.active)
    fresh.proposals.waiting.append(b"newer")
    fresh.due = 0.0
    assert cluster.run(0.1, until=lambda: fresh.machine.applied[-1][2] == b"newer")
    assert old.status.leading, "it does not know yet"
    old.engine.post_reads(["read"])
    old.due = 0.0
    cluster.run(2)
    return len(old.reads_done)


def elections_without_asking(patch: pytest.MonkeyPatch) -> None:
    def maybe(self: Voter) -> None:
        if not self._voting:
            self.election_deadline = self._clock.monotonic() + self.draw_timeout()

    patch.setattr(Voter, "_maybe_campaign", maybe)


def terms_of_a_guest() -> float:
    """By how much the term rises when a standby was cut off for a while."""
    cluster = Cluster(3)
    active = cluster.elect()
    term = active.status.term
    guest = next(cluster.standbys())
    cluster.block(guest.me, active.me)
    cluster.run(5)
    cluster.heal()
    cluster.run(2)
    return cluster.elect().status.term - term


def silence_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        GuardedRaft, "disconnected", lambda self, member, **_: self._present.discard(member)
    )


def seconds_to_succeed() -> float:
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.run(0.5)
    cluster.crash(active.me)
    died = cluster.clock.now
    cluster.elect()
    return cluster.clock.now - died


def no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SendWindow, "open", lambda self: True)


def megabytes_on_the_way() -> float:
    cluster = Cluster(3)
    active = cluster.elect()
    peer = cluster.peers_of(active.me)[0]
    cluster.link(active.me, peer).auto = False
    for _ in range(20):
        active.proposals.in_flight = None
        active.proposals.waiting.append(b"x" * 1_000_000)
        active.turn()
    return sum(len(encoded) for _, encoded in cluster.link(active.me, peer).queue) / 1e6


def resets_at_will(patch: pytest.MonkeyPatch) -> None:
    real = GuardedRaft._on_append_reply

    def on_reply(self: GuardedRaft, node: Node, reply: raft_pb2.AppendReply) -> None:
        reply.epoch = self._epochs.get(node.id, 0)
        real(self, node, reply)

    patch.setattr(GuardedRaft, "_on_append_reply", on_reply)


def entries_sent_after_failed_probes() -> float:
    """To a peer that refuses ten appends on their way, by the log it is then sent."""
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.run(0.2)
    peer = cluster.peers_of(active.me)[0]
    cluster.link(active.me, peer).auto = cluster.link(peer, active.me).auto = False
    raft = active.engine._raft
    for number in range(20):
        active.proposals.in_flight = None
        active.proposals.waiting.append(b"%d" % number)
        active.turn()
    refusal = raft_pb2.AppendReply(
        term=active.status.term, next_index=2, reset=True, epoch=raft._epochs[peer]
    )
    before = cluster.sent["entries"]
    for _ in range(10):
        active.engine.post(Received(peer, PeerMessage(append_reply=refusal)))
        active.turn()
    return (cluster.sent["entries"] - before) / active.status.last_index


def tenures_without_an_entry(patch: pytest.MonkeyPatch) -> None:
    """They know nothing of what an earlier one of their term has proposed."""

    async def at_once(self: Lessor) -> None:
        return

    patch.setattr(Lessor, "_settle_the_past", at_once)


BOUNDS: tuple[tuple[Off, Callable[[], float], float], ...] = (
    (votes_forgotten, leaders_of_a_term, 1),
    (local_reads, stale_reads, 0),
    (entries_at_the_heartbeat, seconds_to_commit, 0.01),
    (elections_without_asking, terms_of_a_guest, 0),
    (silence_only, seconds_to_succeed, 0.1),
    (no_window, megabytes_on_the_way, 10),
    (resets_at_will, entries_sent_after_failed_probes, 1.2),
    (tenures_without_an_entry, seconds_a_lease_ends_early, 0.0),
)
"""Guard, what is measured, what it is at most with the guard."""


@pytest.mark.parametrize(("off", "measured", "most"), BOUNDS, ids=name)
def test_a_bound_breaks_without(
    off: Off, measured: Callable[[], float], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured() <= most
    off(monkeypatch)
    assert measured() > most


# ---------------------------------------------------------------------------- after the faults


def nobody_stands(patch: pytest.MonkeyPatch) -> None:
    def maybe(self: Voter) -> None:
        self.election_deadline = self._clock.monotonic() + 1.0

    patch.setattr(Voter, "_maybe_campaign", maybe)


def reads_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Those whose round was confirmed."""
    patch.setattr(ReadRounds, "take_ready", lambda self, applied_index: [])


def each_entry_twice(patch: pytest.MonkeyPatch) -> None:
    real = GuardedRaft._replicate

    def replicate(self: GuardedRaft, node: Node) -> bool:
        before = self.next_indexes[node]
        sent = real(self, node)
        if sent:
            self.next_indexes[node] = before
            real(self, node)
        return sent

    patch.setattr(GuardedRaft, "_replicate", replicate)


def heartbeats_all_the_time(patch: pytest.MonkeyPatch) -> None:
    real = GuardedRaft._replicate_all

    def replicate_all(self: GuardedRaft) -> None:
        self.heartbeat_due = 0.0
        real(self)

    patch.setattr(GuardedRaft, "_replicate_all", replicate_all)


def a_row_of_its_own(patch: pytest.MonkeyPatch) -> None:
    """What is applied depends on the node."""
    real = Applier.stage

    def stage(self: Applier) -> bool:
        staged = real(self)
        if staged:
            self._storage.writer().put(META, b"mine", id(self).to_bytes(8, "big"))
        return staged

    patch.setattr(Applier, "stage", stage)


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (a_row_of_its_own, "the table meta of n. differs"),
        (nobody_stands, "no active after healing"),
        (reads_forgotten, "got no answer"),
        (each_entry_twice, "too many"),
        (heartbeats_all_the_time, "too many messages"),
    ],
    ids=name,
)
def test_a_run_notices_what_does_not_end_after_the_faults(
    off: Off, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch)
    with pytest.raises(ViolationError, match=said):
        Chaos(0, Kind(3, whole=True)).run(seconds=3)


# ---------------------------------------------------------------------------- scripts


def test_one_change_of_the_members_at_a_time() -> None:
    """Two pending ones give majorities that share nobody."""
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.run(1)  # what follows an election is over
    raft = active.engine._raft
    present = set(cluster.nodes)
    for number, taken in ((1, True), (2, False)):
        fresh = raft_pb2.Member(id=number, peer_address=f"new{number}:1")
        wanted = added(raft.configuration, fresh, present)
        assert (raft.change_members(wanted) is not None) is taken


def test_a_failure_to_apply_ends_the_node() -> None:
    cluster = Cluster(1)
    node = cluster.elect()
    cluster.run(1)  # what follows an election is over
    node.proposals.waiting.append(b"poison")

    def refuse(index: int, term: int, batch: bytes | None) -> None:
        raise ValueError(batch)

    node.machine.apply = refuse  # type: ignore[method-assign]
    node.due = 0.0
    with pytest.raises(ValueError, match="poison"):
        cluster.run(1)
