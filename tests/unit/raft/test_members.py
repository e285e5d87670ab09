"""What a leader does about members, and when it must not."""

import pytest
from support.simulation import Cluster, SimNode, give

from kvpb import raft_pb2
from kvpb.raft_pb2 import Hello, Joining, PeerMessage
from kvserver.raft.entry import MemberId
from kvserver.raft.membership import removed

INCARNATION = 4711


@pytest.fixture
def running() -> Cluster:
    """Three members and an active, some time after the election."""
    cluster = Cluster(3)
    cluster.elect()
    cluster.run(1)
    return cluster


def asks_to_join(name: str) -> Hello:
    """The hello of a node of that name and address with an empty disk."""
    asking = Joining(name=name, peer_address=f"{name}:1", lost_disk=True)
    return Hello(protocol=1, incarnation=INCARNATION, joining=asking)


def ask(cluster: Cluster, active: SimNode, name: str) -> PeerMessage:
    answer = active.engine.answer_joining(asks_to_join(name))
    active.due = 0.0
    cluster.run(0.01)
    return answer


def members_of(node: SimNode) -> set[MemberId]:
    return set(node.engine._raft.configuration.members)


def test_nobody_takes_the_place_of_a_member_that_is_connected(running: Cluster) -> None:
    """Its name and address are no secret, and it would lose its vote in the middle of its work."""
    active = running.elect()
    victim = next(running.standbys())
    before = members_of(active)
    for _ in range(5):
        assert ask(running, active, victim.name).HasField("refusal")
        running.run(0.1)
    assert members_of(active) == before
    running.crash(victim.me)
    running.run(0.1)
    ask(running, active, victim.name)
    assert running.run(1, until=lambda: victim.me not in members_of(active))
    assert ask(running, active, victim.name).HasField("welcome")


def test_nobody_takes_the_place_of_the_active(running: Cluster) -> None:
    active = running.elect()
    before = members_of(active)
    for _ in range(5):
        assert ask(running, active, active.name).HasField("refusal")
    running.run(0.5)
    assert members_of(active) == before


def test_a_welcome_is_given_only_once_the_new_member_is_committed(running: Cluster) -> None:
    """Else it might take part under an id that the next leader knows nothing of."""
    active = running.elect()
    victim, witness = running.standbys()
    running.crash(victim.me)
    running.run(0.1)
    running.hold(witness.me, active.me)  # its acknowledgements do not arrive
    ask(running, active, victim.name)
    assert victim.me not in members_of(active), "the entry is in the log"
    assert active.engine._raft.configuration.index > active.status.commit_index
    assert ask(running, active, victim.name).HasField("refusal")
    running.heal()
    assert running.run(
        0.2, until=lambda: active.engine._raft.configuration.index <= active.status.commit_index
    )
    welcome = ask(running, active, victim.name)
    assert welcome.welcome.member_id in members_of(active)


def test_no_member_is_changed_before_the_no_op_of_the_term_is_committed(born: Cluster) -> None:
    """An earlier leader may have left a change that this one can't see committed or cut off yet.

    Two changes that each count on another majority would then be in force at once.
    """
    node = born.node("n1")
    for link in born.links.values():
        link.auto = False
    raft = node.engine._raft
    raft._pre_vote_won = True
    raft.election_deadline = 0.0
    node.turn()
    voter, other = born.peers_of(node.me)
    give(node, voter, vote_reply=raft_pb2.VoteReply(term=1))
    assert node.status.leading
    assert not node.status.active
    wanted = removed(raft.configuration, other, set(born.nodes))
    assert raft.change_members(wanted) is None
    assert node.engine._journal.last_index == 2, "the no-op, and not the incarnations either"
    for link in born.links.values():
        link.auto = True
    assert born.run(0.5, until=lambda: node.status.active)
    born.run(0.5)  # the incarnations of all are written first
    assert raft.change_members(removed(raft.configuration, other, set(born.nodes))) is not None
