"""Decisions about elections, without members."""

from kvserver.raft.election import Campaign


def test_a_search_for_a_quorum_is_news_once_and_again_after_a_leader_was_heard() -> None:
    campaign = Campaign(silence_s=0.3)
    lost = (2, "connection to the leader lost")
    assert campaign.is_news(*lost, 1.0)
    assert not campaign.is_news(*lost, 1.5)
    campaign.leader_heard(1.6)
    assert campaign.is_news(*lost, 1.7)
