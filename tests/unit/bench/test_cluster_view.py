"""Who is active and who is in step, from what the nodes say."""

from dataclasses import replace

from kvbench.cluster import active_of, in_step, verified
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
