"""How a cluster is born, and who is believed afterwards."""

from support.simulation import Cluster

from kvserver.raft.identity import plan_cluster


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
