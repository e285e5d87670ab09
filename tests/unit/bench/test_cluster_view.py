"""Who is active and who is in step, from what the nodes say."""

from dataclasses import replace
from pathlib import Path

from kvbench.cluster import Node, active_of, in_step, verified
from kvbench.flavor import KVSERVER, NodePlan
from kvclient import Status

ACTIVE = Status(
    cluster_id=1, member_id=11, revision=5, term=3, leader=11, index=9, applied_index=9,
    db_size_bytes=0, db_size_in_use_bytes=0, version="3.5", learner=False, errors=(),
)  # fmt: skip
STANDBY = replace(ACTIVE, member_id=12)


def test_the_one_that_leads_is_active() -> None:
    assert active_of({"n1": STANDBY, "n2": ACTIVE, "n3": None}) == "n2"


def test_nobody() -> None:
    assert active_of({"n1": STANDBY, "n2": None}) is None
    assert active_of({}) is None


def test_of_two_that_believe_to_lead_the_later_term_counts() -> None:
    deposed = replace(ACTIVE, member_id=12, leader=12, term=2)
    assert active_of({"n1": deposed, "n2": ACTIVE}) == "n2"
    assert active_of({"n2": ACTIVE, "n1": deposed}) == "n2"


def test_in_step() -> None:
    assert in_step({"n1": ACTIVE, "n2": STANDBY}, ACTIVE, 9)
    assert not in_step({"n1": ACTIVE, "n2": replace(STANDBY, applied_index=8)}, ACTIVE, 9)
    assert not in_step({"n1": ACTIVE, "n2": replace(STANDBY, leader=0)}, ACTIVE, 9)
    assert not in_step({"n1": ACTIVE, "n2": replace(STANDBY, term=2)}, ACTIVE, 9)
    assert not in_step({"n1": ACTIVE, "n2": None}, ACTIVE, 9)


def test_verified_is_who_says_nothing_else() -> None:
    mark = "kvserver: unverified: 40% of its data is read; it "
    assert verified(ACTIVE)
    assert verified(replace(ACTIVE, errors=("memberID:11 alarm:CORRUPT",)))
    assert not verified(replace(STANDBY, errors=(f"{mark}serves nothing before",)))
    assert not verified(replace(ACTIVE, errors=(f"{mark}serves all the same",)))
    assert not verified(None)


def test_a_log_is_read_from_a_place_on(tmp_path: Path) -> None:
    node = Node(NodePlan("n1", tmp_path, "c", "p", {}), KVSERVER, (), tmp_path / "n1.log")
    node.log.write_text("2026-11-23T08:30:00.000000Z info    node.ready\n")
    place = node.log_bytes
    with node.log.open("a") as log:
        log.write("2026-11-23T08:30:00.000000Z info    node.stopped\n")
    assert [event.name for event in node.events()] == ["node.ready", "node.stopped"]
    assert [event.name for event in node.events(place=place)] == ["node.stopped"]
