"""What is told of a node over HTTP, from a picture of it."""

from dataclasses import replace

import pytest

from kvserver.api.standing import (
    SILENT_S_MAX,
    Standing,
    why_not_healthy,
    why_not_live,
    why_not_ready,
    why_unfit,
)
from kvserver.raft.fitness import Fitness, Reason

ACTIVE = Standing(active=True, leader_known=True, fit=True)
STANDBY = Standing(active=False, leader_known=True, fit=True)
ALONE = Standing(active=False, leader_known=False, fit=False)

DISQUALIFIED = Fitness(frozenset({Reason.DISQUALIFIED}))
BUSY = Fitness(frozenset({Reason.UNVERIFIED, Reason.LAGGING}))


@pytest.mark.parametrize("node", [ACTIVE, STANDBY])
def test_all_is_well(node: Standing) -> None:
    assert why_not_live(node) == ""
    assert why_not_ready(node) == ""
    assert why_not_healthy(node) == ""


def test_who_knows_no_leader_lives_but_is_good_for_nothing() -> None:
    assert why_not_live(ALONE) == ""
    assert why_not_ready(ALONE) == "no leader"
    assert why_not_healthy(ALONE) == "RAFT NO LEADER"


def test_a_raft_thread_may_be_busy_but_not_for_ever() -> None:
    assert why_not_live(replace(ACTIVE, raft_silent_s=SILENT_S_MAX)) == ""
    assert why_not_live(replace(ACTIVE, raft_silent_s=SILENT_S_MAX + 0.1)) == "raft thread stuck"


@pytest.mark.parametrize(
    ("standby", "said"),
    [
        (replace(STANDBY, removed=True), "removed from the cluster"),
        (replace(STANDBY, fitness=DISQUALIFIED, fit=False), "disqualified"),
        (replace(STANDBY, fitness=BUSY, fit=False), "unverified, lagging"),
        (replace(STANDBY, learner=True), "learner"),
        (replace(STANDBY, fit=False), "not fit for promotion"),
        (replace(STANDBY, obstacle="stopping"), "stopping"),
    ],
)
def test_a_standby_that_can_not_take_over_is_not_ready(standby: Standing, said: str) -> None:
    assert why_not_ready(standby) == said


def test_a_full_node_is_ready_for_all_but_puts() -> None:
    assert why_not_ready(replace(ACTIVE, out_of_space=True)) == ""


def test_alarms_are_told_as_by_etcd() -> None:
    full = replace(STANDBY, out_of_space=True)
    assert why_not_healthy(full) == "ALARM NOSPACE"
    assert why_not_healthy(full, ["NOSPACE"]) == ""
    assert why_not_healthy(full, ["CORRUPT"]) == "ALARM NOSPACE"
    odd = replace(full, fitness=DISQUALIFIED)
    assert why_not_healthy(odd, ["NOSPACE"]) == "ALARM CORRUPT"
    assert why_not_healthy(odd, ["NOSPACE", "CORRUPT"]) == ""


def test_an_alarm_comes_before_the_leader_as_with_etcd() -> None:
    full = replace(ALONE, out_of_space=True)
    assert why_not_healthy(full) == "ALARM NOSPACE"
    assert why_not_healthy(full, ["NOSPACE"]) == "RAFT NO LEADER"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (replace(STANDBY, obstacle="stopping"), "STOPPING"),
        (replace(STANDBY, obstacle="raft thread stuck"), "RAFT THREAD STUCK"),
        (replace(STANDBY, removed=True), "NODE REMOVED"),
    ],
)
def test_our_own_reasons_look_like_etcds(node: Standing, said: str) -> None:
    assert why_not_healthy(node) == said


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (STANDBY, ""),
        (replace(STANDBY, fitness=DISQUALIFIED), "disqualified"),
        (
            replace(STANDBY, fitness=BUSY, verified_part=0.634),
            "unverified, lagging: 63% of its data is read; it serves nothing before",
        ),
        (
            replace(ACTIVE, fitness=BUSY, verified_part=0.0),
            "unverified, lagging: 0% of its data is read; it serves all the same, as all were "
            "restarted",
        ),
    ],
    ids=["fit", "disqualified", "unverified", "trusted"],
)
def test_why_a_node_is_unfit_is_told_to_its_operator(node: Standing, said: str) -> None:
    assert why_unfit(node) == said
