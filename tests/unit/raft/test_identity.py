"""How a cluster is born, and who is believed afterwards."""

import pytest
from support.simulation import Cluster

from kvpb.raft_pb2 import Hello, Identity, Joining
from kvserver.raft.entry import MemberId
from kvserver.raft.identity import next_identity, plan_cluster, take_in


def reasons(cluster: Cluster) -> list[str]:
    return [
        str(fields["reason"])
        for node in cluster.nodes.values()
        for name, fields in node.events
        if name == "peer.rejected"
    ]


def test_ids_depend_on_names_addresses_and_token() -> None:
    members = {"n1": "a:1", "n2": "b:1"}
    plan = plan_cluster(members, "t")
    assert plan == plan_cluster(dict(reversed(members.items())), "t")
    assert plan.cluster_id != plan_cluster(members, "other").cluster_id
    assert plan.cluster_id != plan_cluster({**members, "n2": "c:1"}, "t").cluster_id
    assert plan.configuration().payload() == plan_cluster(members, "t").configuration().payload()


def test_nobody_votes_before_all_members_have_met() -> None:
    cluster = Cluster(3)
    absent = cluster.id_of("n3")
    cluster.crash(absent)
    cluster.run(5)
    assert not any(node.status.established for node in cluster.nodes.values())
    assert cluster.active() is None
    cluster.start("n3")
    cluster.elect()
    cluster.commit(b"x")


def test_birth_survives_a_crash_at_every_moment() -> None:
    for moment in range(1, 40):
        cluster = Cluster(3, seed=moment)
        cluster.run(0.0005 * moment)
        victim = cluster.id_of("n2")
        cluster.crash(victim)
        cluster.run(0.3)
        cluster.start("n2")
        cluster.elect()
        cluster.commit(b"x")


def test_a_wiped_member_is_refused_and_never_votes() -> None:
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.commit(b"x")
    wiped = next(cluster.standbys())
    other = next(node for node in cluster.standbys() if node is not wiped)
    cluster.crash(wiped.me)
    cluster.storages[wiped.name] = cluster.new_disk()
    reborn = cluster.start(wiped.name)
    cluster.run(2)
    assert any("lost its data directory" in reason for reason in reasons(cluster))
    assert any("is new, but the cluster" in reason for reason in reasons(cluster))
    # of three, one is wiped and one is dead: a quorum would need the memory that was lost
    cluster.crash(active.me)
    cluster.run(5)
    assert not reborn.status.established
    assert reborn.status.term == 0
    assert not other.status.active


def test_two_wiped_of_three_do_not_make_a_new_cluster() -> None:
    cluster = Cluster(3)
    cluster.elect()
    cluster.commit(b"x")
    for name in ("n1", "n2"):
        cluster.crash(cluster.id_of(name))
        cluster.storages[name] = cluster.new_disk()
    cluster.start("n1")
    cluster.start("n2")
    cluster.run(5)
    assert cluster.active() is None
    assert not cluster.node("n1").status.established


def test_a_member_of_another_cluster_is_refused() -> None:
    cluster = Cluster(3)
    cluster.elect()
    hello = cluster.hello(cluster.id_of("n1")).hello
    hello.cluster_id += 1
    reason = cluster.node("n2").engine.refuse_reason(hello)
    assert reason is not None
    assert "--initial-cluster-token" in reason


# ---------------------------------------------------------------------------- decisions

PLAN = plan_cluster({"n1": "a:1", "n2": "b:1", "n3": "c:1"}, "t")
ME, *OTHERS = PLAN.members
PINS = {int(member): 100 + place for place, member in enumerate(PLAN.members)}


def identity(pins: dict[int, int], *, established: bool = False) -> Identity:
    return Identity(member_id=ME, incarnation=PINS[ME], pins=pins, established=established)


def hellos(
    pins: dict[int, int], *, established: bool = False, of: tuple[MemberId, ...] = tuple(OTHERS)
) -> dict[MemberId, Hello]:
    return {
        member: Hello(
            member_id=member, incarnation=PINS[member], pins=pins, established=established
        )
        for member in of
    }


def test_a_member_pins_all_only_when_it_has_met_all() -> None:
    assert next_identity(identity({}), PLAN, hellos({}, of=(OTHERS[0],))) is None
    born = next_identity(identity({}), PLAN, hellos({}))
    assert born is not None
    assert (dict(born.pins), born.established) == (PINS, False)


def test_a_member_is_established_only_when_all_show_the_same_pins() -> None:
    """Else one whose disk was wiped in between would vote twice and nobody would notice."""
    pinned = identity(PINS)
    born = next_identity(pinned, PLAN, hellos(PINS))
    assert born is not None
    assert (dict(born.pins), born.established) == (PINS, True)
    other = {**PINS, int(OTHERS[1]): 999}
    for place in range(2):
        mixed = hellos(PINS) | hellos(other, of=(OTHERS[place],))
        assert next_identity(pinned, PLAN, mixed) is None
        mixed = hellos(PINS) | hellos({}, of=(OTHERS[place],))
        assert next_identity(pinned, PLAN, mixed) is None, "one has not pinned yet"
    assert next_identity(pinned, PLAN, hellos(PINS, of=(OTHERS[0],))) is None


def test_a_member_that_missed_the_birth_adopts_pins_that_name_its_own_incarnation() -> None:
    said = hellos(PINS, established=True, of=(OTHERS[0],))
    born = next_identity(identity({}), PLAN, said)
    assert born is not None
    assert (dict(born.pins), born.established) == (PINS, True)
    wiped = hellos({**PINS, int(ME): 999}, established=True, of=(OTHERS[0],))
    assert next_identity(identity({}), PLAN, wiped) is None
    assert next_identity(identity(PINS, established=True), PLAN, said) is None


@pytest.mark.parametrize(
    ("name", "address", "present", "taken"),
    [
        ("n2", "b:1", (), True),
        ("n2", "b:1", ("n1", "n3"), True),
        ("n2", "b:1", ("n2",), False),
        ("n2", "elsewhere:1", (), False),
        ("other", "b:1", (), False),
    ],
)
def test_a_node_takes_the_place_of_an_absent_member_of_its_name_and_address(
    name: str, address: str, present: tuple[str, ...], taken: bool
) -> None:
    configuration = PLAN.configuration()
    connected = {found for each in present if (found := PLAN.member_named(each)) is not None}
    hello = Hello(incarnation=7, joining=Joining(name=name, peer_address=address))
    wanted = take_in(configuration, hello, connected)
    assert (wanted is not None) is taken
    if wanted is None:
        return
    (fresh,) = (wanted.members[each] for each in wanted.members.keys() - PLAN.members.keys())
    assert (fresh.name, fresh.incarnation) == ("n2", 7)
    assert fresh.learner, "it may have forgotten a vote, so it has none"
    assert fresh.promote_in_step
    assert PLAN.member_named("n2") not in wanted.members
