"""Who leads after whom, and when nobody should; messages are moved by hand."""

from support.simulation import Cluster, give

from kvpb import raft_pb2
from kvserver.raft.status import Connected, Disconnected


def test_a_cut_off_standby_does_not_disturb_when_it_returns(born: Cluster) -> None:
    active = born.elect()
    standby = next(born.standbys())
    term = active.status.term
    born.isolate(standby.me)
    born.run(10)
    assert standby.status.term == term
    born.heal()
    born.run(2)
    assert born.active() is active
    assert active.status.term == term


def test_a_broken_connection_to_a_living_leader_changes_nothing(born: Cluster) -> None:
    active = born.elect()
    born.run(0.5)
    for standby in list(born.standbys()):
        born.disconnect(active.me, standby.me)
        born.run(0.5)
    assert born.active() is active
    assert active.status.term == 1


def test_a_leader_that_has_just_said_hello_anew_is_not_gone(born: Cluster) -> None:
    """Else two standbys stand, each for a broken connection, and elect one of themselves."""
    active = born.elect()
    born.run(0.5)
    one, other = born.peers_of(active.me)
    hello = Connected(active.me, active.engine.hello(active.attributes))
    born.block(active.me, other)
    for event in (Disconnected(active.me, replaced=True), hello):
        born.nodes[one].engine.post(event)
    born.nodes[one].due = 0.0
    born.hold(active.me, one)
    born.run(0.1)
    born.heal()
    born.run(0.5)
    assert born.active() is active
    assert active.status.term == 1


def test_a_cut_off_active_steps_down(born: Cluster) -> None:
    active = born.elect()
    born.isolate(active.me)
    assert born.run(0.7, until=lambda: not active.status.leading)
    assert active.status.leader is None


def test_a_dead_leader_is_replaced_at_once_by_the_first_in_rank(born: Cluster) -> None:
    active = born.elect()
    born.run(0.5)
    heir = min(born.peers_of(active.me))
    born.crash(active.me)
    assert born.run(0.02, until=lambda: born.active() is not None)
    assert born.active() is born.nodes[heir]


def test_who_knows_more_wins_even_if_not_first_in_rank(born: Cluster) -> None:
    active = born.elect()
    born.run(0.5)
    first, second = born.peers_of(active.me)
    born.link(active.me, first).auto = False
    active.proposals.waiting.append(b"only one standby has this")
    active.turn()
    born.run(0.01)
    assert born.nodes[second].status.last_index > born.nodes[first].status.last_index
    born.crash(active.me)
    assert born.run(0.05, until=lambda: born.active() is not None)
    assert born.active() is born.nodes[second]
    assert born.nodes[second].machine.applied[-2][2] == b"only one standby has this"


def test_two_replies_of_one_voter_are_one_vote() -> None:
    cluster = Cluster(5)
    cluster.run(0.2, until=lambda: all(n.status.established for n in cluster.nodes.values()))
    node = cluster.node("n1")
    for link in cluster.links.values():
        link.auto = False
    node.engine._raft._pre_vote_won = True
    node.engine._raft.election_deadline = 0.0
    node.turn()
    assert node.status.term == 1
    voter = cluster.peers_of(node.me)[0]
    for _ in range(4):
        give(node, voter, vote_reply=raft_pb2.VoteReply(term=1))
    assert not node.status.leading
    give(node, cluster.peers_of(node.me)[1], vote_reply=raft_pb2.VoteReply(term=1))
    assert node.status.leading


def test_leadership_is_handed_over_without_waiting_for_a_timeout(born: Cluster) -> None:
    active = born.elect()
    born.commit(b"x")
    target = next(born.standbys())
    active.engine.hand_over(target.me)
    active.due = 0.0
    assert born.run(0.05, until=lambda: target.status.active)


def test_nothing_is_proposed_while_leadership_is_handed_over(born: Cluster) -> None:
    """Else the target would never have all there is, and what is new might be cut off."""
    active = born.elect()
    born.run(0.5)
    target, other = born.peers_of(active.me)
    born.hold(target, active.me)  # it can't say that it has everything
    active.proposals.waiting.append(b"proposed before")
    active.turn()
    last = active.status.last_index
    assert active.engine.hand_over(target) == target
    active.proposals.in_flight = None
    active.proposals.waiting.append(b"too late")
    born.run(0.1)
    assert active.status.active
    assert active.status.last_index == last
    assert list(active.proposals.waiting) == [b"too late"]
    assert born.nodes[target].status.term == 1, "and it is not told to stand before it has all"
    assert born.nodes[other].status.last_index == last
    born.heal()
    assert born.run(0.2, until=lambda: born.nodes[target].status.active)


def test_a_target_stands_only_when_it_reaches_a_quorum() -> None:
    """A member that was just taken in: the active's connection to it is up before the others'."""
    cluster = Cluster(5)
    active = cluster.elect()
    cluster.run(0.5)
    target, *others = (node.me for node in cluster.standbys())
    for other in others:
        cluster.block(target, other)
    assert active.engine.hand_over(target) == target
    cluster.run(0.1)
    assert cluster.active() is active
    assert active.status.term == 1
    cluster.heal()
    assert cluster.run(0.3, until=lambda: cluster.nodes[target].status.active)
    assert cluster.nodes[target].status.term == 2


def test_a_dead_target_leaves_the_leader_in_place(born: Cluster) -> None:
    active = born.elect()
    target = next(born.standbys())
    active.engine.hand_over(target.me)
    born.crash(target.me)
    born.run(1.0)
    assert born.active() is active
    born.commit(b"goes on")
