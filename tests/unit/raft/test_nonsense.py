"""A peer that names entries which can't be is told of and does no harm."""

from collections.abc import Callable

import pytest
from support.simulation import Cluster, SimNode, give

from kvpb.raft_pb2 import AppendEntries, AppendReply, Entry, PeerMessage, PreVote, RequestVote
from kvserver.raft.entry import MemberId
from kvserver.raft.nonsense import nonsense

HUGE = (1 << 64) - 1


def complaints(node: SimNode) -> list[object]:
    return [fields["reason"] for name, fields in node.events if name == "peer.nonsense"]


def goes_on(cluster: Cluster, active: SimNode, term: int) -> None:
    """The same active commits what is proposed, on all."""
    cluster.commit(b"after")
    assert cluster.active() is active
    assert active.status.term == term
    nodes = cluster.nodes.values()
    assert cluster.run(1, until=lambda: len({node.machine.applied_index for node in nodes}) == 1)


Made = Callable[[int, int], AppendReply]
"""Of term and last index of the leader."""

REPLIES: dict[str, Made] = {
    "a reset beyond the log": lambda t, n: AppendReply(term=t, next_index=n + 2, reset=True),
    "a reset to an entry that no log has": lambda t, n: AppendReply(term=t, reset=True),
    "a huge reset": lambda t, n: AppendReply(term=t, next_index=HUGE, reset=True),
    "success beyond the log": lambda t, n: AppendReply(term=t, next_index=n + 2, success=True),
    "huge success": lambda t, n: AppendReply(term=t, next_index=HUGE, success=True),
    "success with nothing": lambda t, n: AppendReply(term=t, success=True),
    "a term without end": lambda t, n: AppendReply(term=HUGE, next_index=n, success=True),
}


@pytest.mark.parametrize("what", REPLIES)
def test_a_leader_takes_no_reply_about_what_its_log_has_not(born: Cluster, what: str) -> None:
    active = born.elect()
    born.commit(b"before")
    peer = born.peers_of(active.me)[0]
    raft, term = active.engine._raft, active.status.term
    born.run(1, until=lambda: raft.match_index(peer) == active.status.last_index)
    last = active.status.last_index
    reply = REPLIES[what](term, last)
    reply.epoch = raft._epochs[peer]
    for _ in range(3):
        give(active, peer, append_reply=reply)
        assert raft.match_index(peer) == last
        assert raft.next_indexes[raft._nodes[peer]] == last + 1
    assert len(complaints(active)) == 1, "a peer that goes on with it fills no log"
    goes_on(born, active, term)


def append(
    term: int, prev: int, *entries: tuple[int, int], payload: bytes = b"\1"
) -> AppendEntries:
    made = [Entry(index=index, term=of, payload=payload) for index, of in entries]
    return AppendEntries(term=term, prev_log_index=prev, prev_log_term=0, entries=made)


APPENDS = {
    "a gap": append(2, 1, (3, 2)),
    "a gap within": append(2, 1, (2, 2), (4, 2)),
    "an entry twice": append(2, 1, (2, 2), (2, 2)),
    "an entry before the one that it follows": append(2, 1, (1, 2)),
    "terms that fall": append(2, 1, (2, 2), (3, 1)),
    "a term that its leader has not reached": append(2, 1, (2, 3)),
    "an entry without a kind": append(2, 1, (2, 2), payload=b""),
    "a term without end": append(HUGE, 1, (2, 2)),
}


@pytest.mark.parametrize("what", APPENDS)
def test_a_standby_takes_no_entries_that_make_no_log(born: Cluster, what: str) -> None:
    node, leader = born.node("n1"), born.id_of("n2")
    give(node, leader, append_entries=APPENDS[what])
    assert (node.status.last_index, node.status.term) == (1, 0)
    assert len(complaints(node)) == 1
    active = born.elect()
    goes_on(born, active, active.status.term)


@pytest.mark.parametrize("ask", [RequestVote(term=HUGE, last_log_index=HUGE), PreVote(term=HUGE)])
def test_nobody_is_led_to_the_last_term(born: Cluster, ask: RequestVote | PreVote) -> None:
    active = born.elect()
    term, peer = active.status.term, born.peers_of(active.me)[0]
    kind = "request_vote" if isinstance(ask, RequestVote) else "pre_vote"
    give(active, peer, **{kind: ask})
    goes_on(born, active, term)


def test_a_new_connection_is_complained_about_anew(born: Cluster) -> None:
    active = born.elect()
    peer = born.peers_of(active.me)[0]
    for count in (1, 2):
        term, last = active.status.term, active.status.last_index
        give(active, peer, append_reply=AppendReply(term=term, next_index=last + 9, reset=True))
        assert len(complaints(active)) == count
        born.disconnect(active.me, peer)
        born.run(1, until=lambda: peer in active.engine._raft.connected_members)


SOUND = [
    PeerMessage(append_reply=AppendReply(term=5, next_index=8, success=True)),
    PeerMessage(append_reply=AppendReply(term=5, next_index=1, reset=True)),
    PeerMessage(append_reply=AppendReply(term=5)),
    PeerMessage(append_reply=AppendReply(term=4, next_index=99, success=True)),
    PeerMessage(append_entries=append(7, 0)),
    PeerMessage(append_entries=append(7, 99, (100, 1), (101, 7))),
    PeerMessage(request_vote=RequestVote(term=9, last_log_index=HUGE)),
]


@pytest.mark.parametrize("message", SOUND, ids=range(len(SOUND)))
def test_what_sound_peers_say_makes_sense(message: PeerMessage) -> None:
    assert nonsense(message, 5, 7) is None


def test_a_member_id_is_reported_as_operators_know_it(born: Cluster) -> None:
    active = born.elect()
    peer = born.peers_of(active.me)[0]
    give(active, peer, append_reply=AppendReply(term=HUGE))
    (fields,) = (fields for name, fields in active.events if name == "peer.nonsense")
    assert fields["member"] == f"{MemberId(peer):x}"
