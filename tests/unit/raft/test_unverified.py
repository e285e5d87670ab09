"""A member whose state nobody has read since it came back leads only if nobody verified can."""

import pytest
from support.sim_network import NEVER
from support.simulation import Cluster, SimNode

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage
from kvserver.raft.fitness import Reason
from kvserver.raft.journal import LogBounds

LONG_S = 1000.0


@pytest.fixture
def born() -> Cluster:
    """Three members, all verified, one of which leads."""
    cluster = Cluster(3)
    cluster.verify_s = LONG_S
    everybody = lambda: all(node.status.established for node in cluster.nodes.values())  # noqa: E731
    assert cluster.run(0.2, until=everybody)
    cluster.elect()
    cluster.run(0.5)
    return cluster


def back(cluster: Cluster, *nodes: SimNode) -> list[SimNode]:
    """Crash and start these, at once: they are unverified."""
    for node in nodes:
        cluster.crash(node.me)
    found = [cluster.start(node.name) for node in nodes]
    cluster.run(0.5)
    return found


def active_of(cluster: Cluster) -> SimNode:
    active = cluster.active()
    assert active is not None
    return active


def ranked(cluster: Cluster) -> list[SimNode]:
    """The standbys in the order of succession."""
    return [cluster.nodes[member] for member in sorted(cluster.peers_of(active_of(cluster).me))]


def serving(cluster: Cluster) -> list[SimNode]:
    nodes = cluster.nodes.values()
    return [node for node in nodes if node.status.active and node.status.fitness.may_serve]


def restart_all(cluster: Cluster) -> None:
    names = [node.name for node in cluster.nodes.values()]
    for member in list(cluster.nodes):
        cluster.crash(member)
    for name in names:
        cluster.start(name)


def test_who_comes_back_is_unverified_and_the_others_know(born: Cluster) -> None:
    (first,) = back(born, ranked(born)[0])
    assert first.status.fitness.reasons == {Reason.UNVERIFIED}
    assert not first.status.fitness.may_serve
    assert not first.status.fit
    assert active_of(born).engine._raft.unfit.unverified == {first.me}
    first.end_verification()
    born.run(0.1)
    assert first.status.fitness.reasons == set()
    assert first.status.fit
    assert active_of(born).engine._raft.unfit.unverified == set()


def test_the_next_in_rank_is_passed_over(born: Cluster) -> None:
    first, second = ranked(born)
    back(born, first)
    born.crash(active_of(born).me)
    assert born.run(0.02, until=lambda: second.status.active)
    born.run(2.0)
    assert active_of(born) is second
    born.commit(b"needs the acknowledgement of the unverified one")


def test_nobody_hands_over_to_it_while_somebody_else_is_there(born: Cluster) -> None:
    first, second = ranked(born)
    (first,) = back(born, first)
    active = active_of(born)
    assert active.engine.hand_over(first.me) == first.me  # to be asked for again
    born.run(0.5)
    assert active_of(born) is active
    born.commit(b"nothing has begun")
    assert active.engine.hand_over() == second.me


def test_a_fit_leader_hands_over_to_nobody_rather_than_to_it(born: Cluster) -> None:
    """It would leave it to the leader, who would have nothing proposed meanwhile."""
    first, second = ranked(born)
    (first,) = back(born, first)
    born.crash(second.me)
    born.run(0.1)
    active = active_of(born)
    assert active.engine.hand_over() is None
    assert active.engine.hand_over(first.me) == first.me  # to be asked for again
    born.commit(b"nothing has begun")


def test_who_is_told_to_stand_and_may_not_forgets_it(born: Cluster) -> None:
    """Else it stood once it is verified, without a pre-vote, beside a leader that is well."""
    first, second = ranked(born)
    (first,) = back(born, first)
    active, term = active_of(born), active_of(born).status.term
    born.crash(second.me)
    born.run(0.1)
    raft = active.engine._raft
    tell = PeerMessage(timeout_now=raft_pb2.TimeoutNow(term=term))
    active.engine.send(first.me, tell, after_sync=False)
    born.run(0.2)
    first.engine._raft.told_to_stand = True  # as by one that came while it might
    born.run(0.2)
    assert not first.engine._raft.told_to_stand
    first.end_verification()
    born.run(5.0)
    assert active_of(born) is active
    assert active.status.term == term
    assert raft.leading


def test_who_says_that_it_is_unverified_as_it_connects_is_not_taken_for_fit(born: Cluster) -> None:
    """An unverified leader yields to who is fit; nobody here is."""
    active = active_of(born)
    first, second = back(born, *ranked(born))
    born.crash(active.me)
    born.run(5.0)
    leader = active_of(born)
    assert not leader.status.fitness.may_serve, "it has met who is gone"
    term = leader.status.term
    other = second if leader is first else first
    for _ in range(3):
        born.crash(other.me)
        other = born.start(other.name)
        born.run(1.0)
        assert active_of(born) is leader
        assert leader.status.term == term


def test_who_asks_again_has_it_lead_once_it_is_verified(born: Cluster) -> None:
    first, _ = ranked(born)
    (first,) = back(born, first)
    active = active_of(born)
    assert active.engine.hand_over(first.me) == first.me
    first.engine.set_verified(0)
    born.run(0.5)
    assert active_of(born) is active
    assert active.engine.hand_over(first.me) == first.me
    assert born.run(0.5, until=lambda: first.status.active)


def test_with_the_longest_log_it_leads_until_the_other_has_it_too(born: Cluster) -> None:
    active = active_of(born)
    first, second = ranked(born)
    (first,) = back(born, first)
    born.hold(active.me, second.me)
    active.proposals.waiting.append(b"acknowledged")
    active.due = 0.0
    born.run(0.1, until=lambda: first.status.last_index > second.status.last_index)
    born.run(0.05)
    assert first.status.last_index > second.status.last_index
    born.crash(active.me)
    born.heal()
    led: list[SimNode] = []

    def taken_over() -> bool:
        led.extend(serving(born))
        return second.status.active

    assert born.run(5.0, until=taken_over)
    assert first not in led, "it served a state that nobody had read"
    assert b"acknowledged" in [payload for _, _, payload in second.machine.applied]
    born.run(2.0)
    assert active_of(born) is second


def test_where_the_verified_one_does_not_stand_another_does_after_a_delay() -> None:
    """Its process stands still, and its connections are up for a while yet."""
    cluster = Cluster(5)
    cluster.elect()
    cluster.run(0.5)
    cluster.verify_s = LONG_S
    *others, verified = ranked(cluster)
    back(cluster, *others)
    cluster.pause(verified.me, 100.0)
    cluster.crash(active_of(cluster).me)
    timings = cluster.timings
    assert not cluster.run(timings.election_timeout_max, until=lambda: cluster.active() is not None)
    soon = timings.election_timeout_max + 0.1
    assert soon + timings.election_timeout_max < timings.dead_peer, "else nothing is shown"
    assert cluster.run(soon, until=lambda: cluster.active() is not None)


def test_after_a_restart_of_all_the_first_to_lead_serves_at_once(born: Cluster) -> None:
    restart_all(born)
    assert born.run(2.0, until=lambda: bool(serving(born)))
    active = active_of(born)
    assert active.status.fitness.trusted
    assert active.status.fitness.reasons == {Reason.UNVERIFIED}
    standby = next(born.standbys())
    standby.end_verification()
    born.run(2.0)
    assert serving(born) == [active], "no failover for it"
    assert not standby.status.fitness.reasons


def test_a_second_one_is_trusted_as_long_as_nobody_is_verified(born: Cluster) -> None:
    restart_all(born)
    assert born.run(2.0, until=lambda: bool(serving(born)))
    first = active_of(born)
    born.crash(first.me)
    assert born.run(2.0, until=lambda: bool(serving(born)))


def test_who_has_met_a_verified_one_serves_nothing_when_that_one_is_gone(born: Cluster) -> None:
    standbys = back(born, *ranked(born))
    born.crash(active_of(born).me)
    assert born.run(3.0, until=lambda: any(node.status.active for node in standbys))
    born.run(2.0)
    assert serving(born) == []
    leading = active_of(born)
    leading.end_verification()
    born.run(0.1)
    assert serving(born) == [leading]


def test_those_who_come_later_hear_of_it(born: Cluster) -> None:
    """One that has met a verified member tells one that has not."""
    active, (first, second) = active_of(born), ranked(born)
    born.crash(second.me)
    (first,) = back(born, first)
    born.crash(active.me)
    second = born.start(second.name)
    assert born.run(4.0, until=lambda: born.active() is not None)
    born.run(1.0)
    assert serving(born) == []
    assert not second.status.fitness.trusted


def test_it_hands_over_as_soon_as_another_one_is_verified(born: Cluster) -> None:
    standbys = back(born, *ranked(born))
    born.crash(active_of(born).me)
    assert born.run(3.0, until=lambda: any(node.status.active for node in standbys))
    leading = active_of(born)
    other = next(node for node in standbys if node is not leading)
    other.end_verification()
    assert born.run(1.0, until=lambda: serving(born) == [other])


def test_a_copy_that_takes_the_place_is_unverified() -> None:
    cluster = Cluster(3, bounds=LogBounds(keep_entries=5, hold_entries=10))
    cluster.elect()
    cluster.verify_s = LONG_S
    cluster.run(0.5)
    behind = next(cluster.standbys())
    cluster.crash(behind.me)
    for number in range(50):
        cluster.commit(b"%d" % number)
    behind = cluster.start(behind.name)
    behind.end_verification()
    assert cluster.run(5.0, until=lambda: behind.status.applied_index >= 50)
    assert behind.verify_at != NEVER
    assert Reason.UNVERIFIED in behind.status.fitness.reasons
    behind.engine.set_verified(0)
    behind.turn()
    assert Reason.UNVERIFIED in behind.status.fitness.reasons, "that was about another state"
    behind.end_verification()
    behind.turn()
    assert behind.status.fitness.reasons == set()


def test_copies_of_an_unverified_state_are_not_given_away() -> None:
    cluster = Cluster(3, bounds=LogBounds(keep_entries=5, hold_entries=10))
    cluster.verify_s = LONG_S
    cluster.elect()
    cluster.run(0.5)
    behind = next(cluster.standbys())
    cluster.crash(behind.me)
    for number in range(50):
        cluster.commit(b"%d" % number)
    for member in list(cluster.nodes):
        cluster.crash(member)
    for name in ("n1", "n2", "n3"):
        cluster.start(name)
    behind = cluster.node(behind.name)
    cluster.elect()
    cluster.run(2.0)
    assert behind.status.applied_index < 50
    active_of(cluster).end_verification()
    assert cluster.run(5.0, until=lambda: behind.status.applied_index >= 50)


def test_defragmenting_waits_for_the_verification(born: Cluster) -> None:
    """A compact copy of a state that lacks a key is as sound as can be."""
    (first,) = back(born, ranked(born)[0])
    told: list[bool] = []
    first.engine.defragment(told.append)
    assert told == [False]
    first.end_verification()
    first.engine.defragment(told.append)
    assert born.run(2.0, until=lambda: len(told) == 2)
    assert told == [False, True]


def test_a_standby_that_lags_says_so(born: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvserver.raft.engine.LAG_ENTRIES", 5)
    first = ranked(born)[0]
    active = active_of(born)
    monkeypatch.setattr("kvserver.raft.flow.APPLY_ENTRIES_MAX", 0)
    for number in range(7):
        active.proposals.in_flight = None
        active.proposals.waiting.append(b"%d" % number)
        active.due = 0.0
        born.run(0.1)
    assert first.engine.status().fitness.reasons == {Reason.LAGGING}
    assert not first.engine.status().fit
    monkeypatch.setattr("kvserver.raft.flow.APPLY_ENTRIES_MAX", 256)
    born.run(0.5)
    assert first.engine.status().fitness.reasons == set()
