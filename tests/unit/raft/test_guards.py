"""Guards on PySyncObj, by messages moved by hand: without its guard each test fails."""

import pysyncobj.pickle as library_pickle
import pytest
from support.by_hand import lead, outgoing
from support.memory_storage import MemoryStorage
from support.simulation import Cluster, SimNode, give

from kvpb import raft_pb2
from kvpb.raft_pb2 import AppendEntries, AppendReply, PeerMessage, RequestVote
from kvserver.errors import DiskError
from kvserver.raft.engine import EFFECTS_HELD_S
from kvserver.raft.entry import NO_OP, REGULAR
from kvserver.raft.journal import SafetyError
from kvserver.raft.status import Received

PROMISES = {"append_reply", "request_vote", "vote_reply"}


def append(term: int, prev: tuple[int, int], *entries: tuple[int, int, bytes], commit: int = 1,
           epoch: int = 0) -> AppendEntries:  # fmt: skip
    return AppendEntries(
        term=term, commit_index=commit, prev_log_index=prev[0], prev_log_term=prev[1], epoch=epoch,
        entries=[raft_pb2.Entry(index=i, term=t, payload=REGULAR + p) for i, t, p in entries],
    )  # fmt: skip


def stored(storage: MemoryStorage) -> list[int]:
    return sorted(storage.log.entries)


# ---------------------------------------------------------------------------- durability


def test_promises_leave_only_after_the_sync(born: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    sent_before_sync: list[str] = []
    for node in born.nodes.values():
        sync = node.storage.log.sync

        def watched(state: bytes, node: SimNode = node, sync: object = sync) -> None:
            for other in born.nodes:
                for message in born.link(node.me, other).queue:
                    kind = PeerMessage.FromString(message[1]).WhichOneof("message")
                    sent_before_sync.append(kind or "")
            sync(state)  # type: ignore[operator]

        monkeypatch.setattr(node.storage.log, "sync", watched)
    for link in born.links.values():
        link.auto = False
    for _ in range(3000):  # moved right after each turn, so what a sync sees was sent in its turn
        born.run(0.001)
        for source, target in list(born.links):
            born.move(source, target)
        if born.active() is not None:
            break
    assert born.active() is not None
    assert "append_entries" in sent_before_sync, "a leader's entries need not wait"
    assert not PROMISES & set(sent_before_sync)


@pytest.mark.parametrize("kind", ["append", "vote"])
def test_a_failed_sync_promises_nothing(born: Cluster, kind: str) -> None:
    node, leader = born.node("n1"), born.id_of("n2")
    born.link(node.me, leader).auto = False
    node.storage.fail_next_sync = True
    with pytest.raises(DiskError):
        if kind == "append":
            give(node, leader, append_entries=append(1, (1, 0), (2, 1, b"x")))
        else:
            ask = RequestVote(term=1, last_log_index=1, last_log_term=0)
            give(node, leader, request_vote=ask)
    for promise in PROMISES:
        assert not outgoing(born, node.me, leader, promise)


def test_a_node_counts_itself_only_for_what_it_has_on_disk() -> None:
    cluster = Cluster(1)
    node = next(iter(cluster.nodes.values()))
    seen: list[tuple[int, int]] = []
    raft, journal = node.engine._raft, node.engine._journal
    tick = raft.tick

    def watched() -> None:
        durable = journal.durable_index
        tick()
        seen.append((raft.commit_index, durable))

    raft.tick = watched  # type: ignore[method-assign]
    cluster.elect()
    cluster.commit(b"one")
    assert seen
    for commit_index, durable_before in seen:
        assert commit_index <= durable_before


def test_a_vote_survives_a_crash(born: Cluster) -> None:
    n1, n2, n3 = (born.id_of(name) for name in ("n1", "n2", "n3"))
    ask = RequestVote(term=5, last_log_index=1, last_log_term=0)
    give(born.nodes[n1], n2, request_vote=ask)
    assert outgoing(born, n1, n2, "vote_reply")
    born.crash(n1)
    node = born.start("n1")
    born.connect_all()
    born.run(0.01)
    give(node, n3, request_vote=ask)
    assert not outgoing(born, n1, n3, "vote_reply")
    assert node.status.term == 5


def test_everything_acknowledged_survives_a_crash_of_all(born: Cluster) -> None:
    active = born.elect()
    for number in range(20):
        born.commit(f"p{number}".encode())
    index, term = active.machine.applied_index, active.status.term
    for member in list(born.nodes):
        born.crash(member)
    for name in ("n1", "n2", "n3"):
        node = born.start(name)
        assert node.status.last_index == index
        assert node.status.term == term
    born.elect()
    born.commit(b"after")
    assert born.elect().machine.applied_index == index + 2  # the no-op of the new term, and this


def test_effects_wait_for_a_read_or_a_while_before_they_are_committed(born: Cluster) -> None:
    active = born.elect()
    born.run(1)  # what follows an election is over

    def apply(payload: bytes) -> int:
        index = active.machine.applied_index + 1
        active.proposals.waiting.append(payload)
        active.due = 0.0
        assert born.run(1, until=lambda: active.machine.applied_index == index)
        assert active.status.visible_index < index
        return index

    index = apply(b"p")
    assert born.run(EFFECTS_HELD_S * 1.5, until=lambda: active.status.visible_index == index)
    index = apply(b"q")
    active.engine.post_reads(["read"])
    active.due = 0.0
    assert born.run(EFFECTS_HELD_S / 2, until=lambda: "read" in active.reads_done)
    assert active.status.visible_index == index


# ---------------------------------------------------------------------------- the log


def test_a_late_append_does_not_cut_off_what_agrees(born: Cluster) -> None:
    node, leader = born.node("n1"), born.id_of("n2")
    entries = [(index, 1, b"e%d" % index) for index in range(2, 7)]
    give(node, leader, append_entries=append(1, (1, 0), *entries, commit=4))
    syncs = node.storage.log.syncs
    give(node, leader, append_entries=append(1, (1, 0), *entries[:2]))
    give(node, leader, append_entries=append(1, (2, 1)))
    assert node.engine._journal.last_index == 6
    assert stored(node.storage) == [1, 2, 3, 4, 5, 6]
    assert node.status.commit_index == 4
    assert node.storage.log.syncs == syncs, "nothing changed, so nothing was written"


def test_a_contradiction_cuts_off_from_there(born: Cluster) -> None:
    node, leader = born.node("n1"), born.id_of("n2")
    give(node, leader, append_entries=append(1, (1, 0), *((i, 1, b"old") for i in range(2, 7))))
    give(node, leader, append_entries=append(2, (3, 1), (4, 2, b"new")))
    journal = node.engine._journal
    assert stored(node.storage) == [1, 2, 3, 4]
    assert (journal.entry(3).term, journal.entry(4).term) == (1, 2)
    assert journal.entry(4).payload == REGULAR + b"new"
    assert journal.size == (4, node.storage.log.size)


def test_a_committed_entry_is_never_cut_off(born: Cluster) -> None:
    node, leader = born.node("n1"), born.id_of("n2")
    give(node, leader, append_entries=append(1, (1, 0), (2, 1, b"a"), (3, 1, b"b"), commit=3))
    with pytest.raises(SafetyError):
        give(node, leader, append_entries=append(2, (1, 0), (2, 2, b"c")))


def test_commit_covers_only_what_the_append_verified(born: Cluster) -> None:
    """A tail of an older term is not committed by a heartbeat that knows nothing of it."""
    node, leader = born.node("n1"), born.id_of("n2")
    give(node, leader, append_entries=append(1, (1, 0), *((i, 1, b"tail") for i in range(2, 6))))
    give(node, leader, append_entries=append(2, (2, 1), commit=5))
    assert node.status.commit_index == 2
    assert node.engine._journal.last_index == 5


# ---------------------------------------------------------------------------- acknowledgements


def test_an_ack_of_another_term_does_not_count() -> None:
    cluster = Cluster(5)
    active = lead(cluster)
    peer = cluster.peers_of(active.me)[0]
    active.proposals.waiting.append(b"x")
    active.turn()
    match = active.engine._raft.match_index(peer)
    last = active.status.last_index
    old = AppendReply(term=active.status.term - 1, next_index=last + 1, success=True)
    give(active, peer, append_reply=old)
    assert active.engine._raft.match_index(peer) == match
    now = AppendReply(term=active.status.term, next_index=last + 1, success=True)
    give(active, peer, append_reply=now)
    assert active.engine._raft.match_index(peer) == last


def test_an_ack_carries_the_term_in_which_it_was_made(born: Cluster) -> None:
    node, n2, n3 = born.node("n1"), born.id_of("n2"), born.id_of("n3")
    for link in born.links.values():
        link.auto = False
    ask = RequestVote(term=2, last_log_index=9, last_log_term=1)
    node.engine.post(Received(n2, PeerMessage(append_entries=append(1, (1, 0), (2, 1, b"x")))))
    node.engine.post(Received(n3, PeerMessage(request_vote=ask)))
    node.turn()  # both in one turn: at the flush the term is 2 already
    assert node.status.term == 2
    assert [m.append_reply.term for m in outgoing(born, node.me, n2, "append_reply")] == [1]


def test_an_append_of_a_lower_term_is_answered(born: Cluster) -> None:
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    standby = born.nodes[peer]
    ask = RequestVote(term=active.status.term + 3, last_log_index=99, last_log_term=99)
    give(standby, born.peers_of(peer)[-1], request_vote=ask)
    born.link(peer, active.me).queue.clear()
    old = append(active.status.term, (1, 0))
    give(standby, active.me, append_entries=old)
    born.move(peer, active.me)
    active.turn()
    assert active.status.term == standby.status.term
    assert not active.status.leading


def test_a_reset_names_the_entry_after_the_commit_index(born: Cluster) -> None:
    node, leader = born.node("n1"), born.id_of("n2")
    born.link(node.me, leader).auto = False
    give(node, leader, append_entries=append(1, (1, 0), (2, 1, b"a"), (3, 1, b"b"), commit=2))
    give(node, leader, append_entries=append(2, (9, 2)))
    reply = outgoing(born, node.me, leader, "append_reply")[-1].append_reply
    assert (reply.reset, reply.next_index) == (True, 3)


# ---------------------------------------------------------------------------- proposals


def test_a_standby_proposes_nothing(born: Cluster) -> None:
    """Nor does it forward anything: whoever waits must hear that nothing happened."""
    active = born.elect()
    born.run(0.5)
    standby = next(born.standbys())
    before, sent = standby.status.last_index, born.sent.keys()
    standby.proposals.waiting.append(b"asked of the wrong one")
    standby.due = 0.0
    born.run(0.2)
    assert list(standby.proposals.waiting) == [b"asked of the wrong one"]
    assert standby.status.last_index == active.status.last_index == before
    assert born.sent.keys() == sent


def test_a_leader_proposes_nothing_before_the_no_op_of_its_term_is_applied(born: Cluster) -> None:
    """Until then it does not know its own state, which decides what is proposed."""
    for link in born.links.values():
        link.auto = False
    node = born.node("n1")
    node.engine._raft._pre_vote_won = True
    node.engine._raft.election_deadline = 0.0
    node.turn()
    give(node, born.peers_of(node.me)[0], vote_reply=raft_pb2.VoteReply(term=1))
    assert node.status.leading
    node.proposals.waiting.append(b"early")
    node.turn()
    assert list(node.proposals.waiting) == [b"early"]
    assert node.status.last_index == 2, "the no-op"


# ---------------------------------------------------------------------------- reads


def test_a_read_waits_for_a_quorum_of_echoes(born: Cluster) -> None:
    active = lead(born)
    active.engine.post_reads(["r"])
    active.turn()
    assert active.reads_done == []
    peer = born.peers_of(active.me)[0]
    born.move(active.me, peer)
    born.nodes[peer].turn()
    born.move(peer, active.me)
    active.turn()
    assert active.reads_done == ["r"]


def test_an_echo_answers_no_read_that_came_after_its_round_began(born: Cluster) -> None:
    """Between the two another leader may have been elected, and have acknowledged writes."""
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    active.engine.post_reads(["before"])
    active.turn()
    born.move(active.me, peer)
    born.nodes[peer].turn()
    active.engine.post_reads(["after"])
    active.turn()
    born.move(peer, active.me)
    active.turn()
    assert active.reads_done == ["before"]


def test_a_deposed_leader_answers_no_read(born: Cluster) -> None:
    active = born.elect()
    born.isolate(active.me)
    active.engine.post_reads(["r"])
    born.run(2)
    assert active.reads_done == []
    assert active.reads_failed == ["r"]


def test_a_lost_echo_is_asked_for_again(born: Cluster) -> None:
    active = lead(born)
    active.engine.post_reads(["r"])
    active.turn()
    for link in born.links.values():
        link.queue.clear()
        link.auto = True
    assert born.run(0.2, until=lambda: active.reads_done == ["r"])


# ---------------------------------------------------------------------------- everything else


def test_nothing_is_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_args: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("loads", "dumps"):
        monkeypatch.setattr(library_pickle, name, forbidden)
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.commit(b"x")
    cluster.crash(active.me)
    cluster.elect()
    cluster.commit(b"y")
    cluster.start(active.name)
    cluster.run(1)
    assert cluster.node(active.name).machine.applied_index == cluster.elect().machine.applied_index


def test_first_entry_of_an_election_is_a_no_op(born: Cluster) -> None:
    active = born.elect()
    assert active.engine._journal.entry(2).payload == NO_OP
    assert active.machine.applied[0] == (2, 1, None)


def test_a_peer_below_the_level_of_the_cluster_is_refused(born: Cluster) -> None:
    node, other = born.node("n1"), born.id_of("n2")
    hello = born.hello(other).hello
    node.machine.feature_level = 2
    reason = node.engine.refuse_reason(hello)
    assert reason is not None
    assert "upgrade" in reason
    hello.attributes.feature_level = 2
    assert node.engine.refuse_reason(hello) is None
