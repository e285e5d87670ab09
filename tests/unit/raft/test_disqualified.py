"""A member whose state must not be served votes and acknowledges, but leads only to hand over."""

import pytest
from support.simulation import Cluster, SimNode

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Reason
from kvserver.raft.journal import LogBounds
from kvserver.raft.status import Received


@pytest.fixture
def born() -> Cluster:
    """Three members, one of which leads."""
    cluster = Cluster(3)
    everybody = lambda: all(node.status.established for node in cluster.nodes.values())  # noqa: E731
    assert cluster.run(0.2, until=everybody)
    cluster.elect()
    cluster.run(0.5)
    return cluster


def disqualify(cluster: Cluster, *members: MemberId) -> None:
    """As if the alarms were applied everywhere."""
    for node in cluster.nodes.values():
        node.machine.disqualified = frozenset(members)
        node.due = 0.0


def standbys(cluster: Cluster) -> tuple[SimNode, SimNode]:
    """In the order of succession."""
    active = cluster.active()
    assert active is not None
    first, second = (cluster.nodes[member] for member in sorted(cluster.peers_of(active.me)))
    return first, second


def test_the_next_in_rank_is_passed_over(born: Cluster) -> None:
    first, second = standbys(born)
    disqualify(born, first.me)
    active = born.active()
    assert active is not None
    born.crash(active.me)
    assert born.run(0.02, until=lambda: second.status.active)
    born.run(2.0)
    born.commit(b"needs the acknowledgement of the disqualified one")


def test_it_does_not_stand_by_itself(born: Cluster) -> None:
    first, second = standbys(born)
    disqualify(born, first.me)
    active = born.active()
    assert active is not None
    born.link(first.me, second.me).auto = False
    born.crash(second.me)
    born.crash(active.me)
    term = first.status.term
    first.events.clear()
    born.run(5.0)
    assert first.status.term == term
    assert "election.campaign" not in [name for name, _ in first.events]


def test_what_only_it_has_is_not_lost(born: Cluster) -> None:
    """It stands in for one that lacks it, leads until that one has it, and hands over."""
    first, second = standbys(born)
    disqualify(born, second.me)
    active = born.active()
    assert active is not None
    born.link(active.me, first.me).auto = False
    active.proposals.waiting.append(b"acknowledged")
    active.turn()
    born.run(0.05)
    assert second.status.last_index > first.status.last_index
    born.crash(active.me)
    assert born.run(3.0, until=lambda: first.status.active)
    assert b"acknowledged" in [payload for _, _, payload in first.machine.applied]
    born.run(2.0)
    assert born.active() is first


def test_an_active_hands_over(born: Cluster) -> None:
    active = born.active()
    assert active is not None
    disqualify(born, active.me)
    assert born.run(0.1, until=lambda: born.active() not in (None, active))
    assert Reason.DISQUALIFIED in active.status.fitness.reasons
    assert not active.status.active


def test_nobody_hands_over_to_it(born: Cluster) -> None:
    first, second = standbys(born)
    disqualify(born, first.me)
    born.run(0.1)
    active = born.active()
    assert active is not None
    assert active.engine.hand_over(first.me) is None
    assert active.engine.hand_over() == second.me


def test_told_to_stand_it_does_not(born: Cluster) -> None:
    first, _ = standbys(born)
    disqualify(born, first.me)
    born.run(0.1)
    active, term = born.active(), first.status.term
    assert active is not None
    message = PeerMessage(timeout_now=raft_pb2.TimeoutNow(term=term))
    first.engine.post(Received(active.me, message))
    first.turn()
    born.run(1.0)
    assert first.status.term == term
    reasons = [fields["reason"] for name, fields in first.events if name == "election.campaign"]
    assert "leader hands over" not in reasons


def test_where_all_are_somebody_leads_all_the_same(born: Cluster) -> None:
    """Else nobody could disarm an alarm."""
    disqualify(born, *born.nodes)
    active = born.active()
    assert active is not None
    born.crash(active.me)
    assert born.run(0.1, until=lambda: born.active() is not None)
    born.commit(b"an alarm is disarmed")


def test_copies_of_its_state_are_not_given_away() -> None:
    cluster = Cluster(3, bounds=LogBounds(keep_entries=5, hold_entries=10))
    active = cluster.elect()
    cluster.run(0.5)
    disqualify(cluster, *cluster.nodes)
    behind = next(cluster.standbys())
    cluster.crash(behind.me)
    for number in range(50):
        cluster.commit(b"%d" % number)
    behind = cluster.start(behind.name)
    behind.machine.disqualified = active.machine.disqualified
    cluster.run(2.0)
    assert cluster.active() is active
    assert behind.status.applied_index < active.status.applied_index
    disqualify(cluster)
    assert cluster.run(5.0, until=lambda: behind.status.applied_index >= 50)
