"""What a leader sends to a peer, and when again; messages are moved by hand."""

from support.by_hand import lead, outgoing
from support.simulation import Cluster, SimNode, give

from kvpb.raft_pb2 import AppendEntries, AppendReply
from kvserver.raft.entry import REGULAR, MemberId


def test_next_index_moves_back_once_per_failed_probe(born: Cluster) -> None:
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    raft = active.engine._raft
    node = raft._nodes[peer]
    for number in range(5):
        active.proposals.in_flight = None
        active.proposals.waiting.append(b"%d" % number)
        active.turn()
    last, term, epoch = active.status.last_index, active.status.term, raft._epochs[peer]

    def next_index() -> int:
        return int(raft.next_indexes[node])

    def resent() -> list[int]:
        """Entry before each run of entries that has left since the last look."""
        sent = outgoing(born, active.me, peer, "append_entries")
        born.link(active.me, peer).queue.clear()
        return [m.append_entries.prev_log_index for m in sent if m.append_entries.entries]

    assert next_index() == last + 1
    reset = AppendReply(term=term, next_index=2, reset=True, epoch=epoch)
    resent()
    give(active, peer, append_reply=reset)
    assert resent() == [1]
    give(active, peer, append_reply=reset)
    assert resent() == [], "the second answer to the same probe sends nothing again"


def test_an_acknowledgement_never_moves_the_next_index_back(born: Cluster) -> None:
    """It names what arrived first; what was sent after it would be sent all over again."""
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    raft = active.engine._raft
    for number in range(5):
        active.proposals.in_flight = None
        active.proposals.waiting.append(b"%d" % number)
        active.turn()
    last, term = active.status.last_index, active.status.term
    for acknowledged in range(last - 4, last + 1):
        born.link(active.me, peer).queue.clear()
        reply = AppendReply(
            term=term, next_index=acknowledged + 1, success=True, epoch=raft._epochs[peer]
        )
        give(active, peer, append_reply=reply)
        sent = outgoing(born, active.me, peer, "append_entries")
        assert not [m for m in sent if m.append_entries.entries]
        assert raft.match_index(peer) == acknowledged


def reconnect(cluster: Cluster, active: SimNode, peer: MemberId) -> list[AppendEntries]:
    """Break a connection and make it anew; what the active sends in the turn that learns of it."""
    cluster.disconnect(active.me, peer)
    active.turn()
    cluster.connect_all()
    cluster.move(peer, active.me)
    active.turn()
    sent = outgoing(cluster, active.me, peer, "append_entries")
    return [message.append_entries for message in sent]


def test_after_a_reconnect_what_was_on_its_way_is_sent_again_at_once(born: Cluster) -> None:
    """From the last acknowledged entry on, without a refusal that asks for it."""
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    match = active.engine._raft.match_index(peer)
    for payload in (b"lost", b"on the way"):
        active.proposals.in_flight = None
        active.proposals.waiting.append(payload)
        active.turn()
    first, *_ = reconnect(born, active, peer)
    assert first.prev_log_index == match
    assert [entry.payload for entry in first.entries] == [
        REGULAR + b"lost",
        REGULAR + b"on the way",
    ]


def test_after_a_reconnect_no_refusal_of_an_earlier_append_counts(born: Cluster) -> None:
    """A peer may answer on the new connection what came on the old one."""
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    raft = active.engine._raft
    refusal = AppendReply(
        term=active.status.term, next_index=2, reset=True, epoch=raft._epochs[peer]
    )
    reconnect(born, active, peer)
    born.link(active.me, peer).queue.clear()
    give(active, peer, append_reply=refusal)
    assert not outgoing(born, active.me, peer, "append_entries")


def test_after_a_reconnect_a_peer_is_told_at_once_who_leads(born: Cluster) -> None:
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    active.engine._raft.heartbeat_due = born.clock.now + 1.0
    assert len(reconnect(born, active, peer)) == 1


def test_after_a_reconnect_the_window_is_empty(born: Cluster) -> None:
    """What filled it is lost, and nobody will acknowledge it."""
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    for _ in range(10):
        active.proposals.in_flight = None
        active.proposals.waiting.append(b"x" * 1_000_000)
        active.turn()
    assert not active.engine._raft._windows[peer].open()
    assert any(append.entries for append in reconnect(born, active, peer))
    for link in born.links.values():
        link.auto = True
    assert born.run(1, until=lambda: born.nodes[peer].status.last_index == active.status.last_index)


def test_a_slow_peer_is_sent_no_more_than_the_window(born: Cluster) -> None:
    active = lead(born)
    peer = born.peers_of(active.me)[0]
    payload = b"x" * 1_000_000
    for _ in range(40):
        active.proposals.in_flight = None
        active.proposals.waiting.append(payload)
        active.turn()
    waiting = sum(len(encoded) for _, encoded in born.link(active.me, peer).queue)
    assert 8 * len(payload) <= waiting <= 10 * len(payload)
