"""A node that can do nothing but wait does nothing else: its turns are as rare as heartbeats."""

from support.simulation import Cluster, SimNode

from kvpb.raft_pb2 import PeerMessage, TimeoutNow
from kvserver.raft.status import Received

WATCHED_S = 2.0


def turns_of(cluster: Cluster, node: SimNode) -> int:
    turns = 0

    def turned(each: SimNode) -> None:
        nonlocal turns
        turns += each is node

    cluster.on_turned = turned
    cluster.run(WATCHED_S)
    return turns


def at_rest(cluster: Cluster) -> float:
    return 1.5 * WATCHED_S / cluster.timings.heartbeat


def test_while_the_other_initial_members_are_missing() -> None:
    cluster = Cluster(3)
    alone, *others = sorted(cluster.nodes)
    for member in others:
        cluster.crash(member)
    assert not cluster.nodes[alone].status.established
    assert turns_of(cluster, cluster.nodes[alone]) < at_rest(cluster)


def test_without_a_quorum() -> None:
    cluster = Cluster(3)
    cluster.elect()
    alone, *others = sorted(cluster.nodes)
    for member in others:
        cluster.crash(member)
    # and a round of pre-votes now and then, asked again every 5 ms for a while
    assert turns_of(cluster, cluster.nodes[alone]) < 3 * at_rest(cluster)


def test_when_told_to_stand_and_then_left_alone() -> None:
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.run(0.5)
    standby = next(iter(cluster.standbys()))
    order = PeerMessage(timeout_now=TimeoutNow(term=active.status.term))
    standby.engine.post(Received(active.me, order))
    cluster.isolate(standby.me)
    assert turns_of(cluster, standby) < 3 * at_rest(cluster)
