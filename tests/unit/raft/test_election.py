"""Decisions about elections, without members."""

import itertools

import pytest

from kvserver.raft.election import Answer, Campaign, LogPosition, Standing, answer_pre_vote

TERM = 7
MINE = LogPosition(5, 10)
LOGS = {
    "older and longer": LogPosition(4, 99),
    "shorter": LogPosition(5, 9),
    "the same": MINE,
    "longer": LogPosition(5, 11),
    "newer and shorter": LogPosition(6, 2),
}
ENOUGH = {"the same", "longer", "newer and shorter"}


@pytest.mark.parametrize("log", LOGS)
def test_a_pre_vote_is_granted_to_who_could_lead_by_who_lost_its_leader(log: str) -> None:
    """All cases: only a later term and a log that lacks nothing are worth more than a refusal."""
    for leading, term, lost in itertools.product(
        (False, True), (TERM - 1, TERM, TERM + 1, TERM + 5), (False, True)
    ):
        mine = Standing(leading, TERM, MINE, leader_lost=lost)
        if leading or term <= TERM or log not in ENOUGH:
            wanted = Answer.REFUSE
        else:
            wanted = Answer.GRANT if lost else Answer.HOLD
        assert answer_pre_vote(mine, term, LOGS[log]) is wanted, (leading, term, lost)


def test_a_search_for_a_quorum_is_news_once_and_again_after_a_leader_was_heard() -> None:
    campaign = Campaign(silence_s=0.3)
    lost = (2, "connection to the leader lost")
    assert campaign.is_news(*lost, 1.0)
    assert not campaign.is_news(*lost, 1.5)
    campaign.leader_heard(1.6)
    assert campaign.is_news(*lost, 1.7)
