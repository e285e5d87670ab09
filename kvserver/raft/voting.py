"""The guarded vote: pre-votes before elections, voters counted as a set, learners that only help.

DESIGN.md of this room tells which gap of the library each guard closes.
"""

import random
from collections.abc import Callable
from typing import Any

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage
from kvserver.clock import Clock
from kvserver.raft.election import Answer, Campaign, LogPosition, Standing, quorum, rank
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Unfit
from kvserver.raft.journal import DurableJournal, SafetyError
from kvserver.raft.ports import Outbox, Timings
from kvserver.raft.seam import Node, Seam


class Voter(Seam):
    """A member as elections see it."""

    def __init__(  # noqa: PLR0913 - all that is not deterministic is handed in
        self,
        me: MemberId,
        *,
        timings: Timings,
        clock: Clock,
        rng: random.Random,
        journal: DurableJournal,
        applied_index: int,
        outbox: Outbox,
        on_event: Callable[..., None],
    ) -> None:
        self._me = me
        self._rng = rng
        self._timings = timings
        self._journal = journal
        self._outbox = outbox
        self._event = on_event
        self._nodes: dict[MemberId, Node] = {}
        """The other members of the configuration in force, learners too."""
        self._voting = False
        """A voter of its newest configuration: others do not campaign. They vote when asked, since
        one that was just promoted may not know it yet; a candidate counts the voters it knows."""
        self.unfit = Unfit()
        """Members whose state must not be served. Their logs are sound: they vote and acknowledge
        as others do, but leave it to others to lead while one of those could serve."""
        self._stand_in_until = float("-inf")
        """Until then such a member may stand after all: it knows what the others lack, and hands
        over when they have it."""
        self._leaderless_since: float | None = None
        """None while there is a leader."""
        self._campaign = Campaign(timings.election_timeout_min)
        self._pre_vote_won = False
        self._outbid_at = float("-inf")
        """When this member last stood because somebody asked who knows less."""
        self._voters_counted: set[MemberId] = set()
        super().__init__(
            me, timings=timings, clock=clock, journal=journal, applied_index=applied_index
        )

    def _log_position(self) -> LogPosition:
        return LogPosition(self._journal.last_term, self._journal.last_index)

    def _standing(self, now: float) -> Standing:
        lost = self._campaign.leader_lost(now)
        return Standing(self.leading, self.term, self._log_position(), lost)

    @property
    def _must_yield(self) -> bool:
        """This member must not serve, and one that may could lead."""
        if self._me not in self.unfit.all:
            return False
        voters = self._campaign.peers
        present = (node.id for node in self.connected_nodes if node.id in voters)
        return self.unfit.must_yield(self._me, voters, present)

    def _reaches_quorum(self) -> bool:
        reached = sum(node.id in self._campaign.peers for node in self.connected_nodes)
        return reached + 1 >= quorum(len(self._campaign.peers) + 1)

    def _may_stand(self, now: float) -> bool:
        if not self._voting:
            return False
        if now < self._stand_in_until or not self._must_yield:
            return True
        return self._me not in self.unfit.disqualified and self._waited(now)

    def _waited(self, now: float) -> bool:
        """Whether others had the time to win an election: then the longest log may be here."""
        since = self._leaderless_since
        return since is not None and now > since + self._timings.election_timeout_max

    def _look_for_leader(self, now: float) -> None:
        if self.leading or not self._campaign.leader_lost(now):
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = now

    def _maybe_campaign(self) -> None:
        """Let the library campaign only after a pre-vote, or when the leader hands over."""
        now = self._clock.monotonic()
        self._look_for_leader(now)
        if self.leading:
            return
        if not self._may_stand(now):
            self.told_to_stand = False  # else it would stand much later, and without a pre-vote
            self.election_deadline = now + self.draw_timeout()
            return
        if self.connected_nodes and (self._pre_vote_won or self.told_to_stand):
            self._pre_vote_won = False
            return  # the deadline is 0: the library campaigns in this tick, unless it is alone
        if self.election_deadline < now:
            reason = self._campaign_reason()
            if self._campaign.is_news(self.term + 1, reason, now):
                self._event("election.campaign", term=self.term + 1, reason=reason)
            if not self._campaign.peers:
                return
            self.election_deadline = now + self.draw_timeout()
            self._campaign.begin(self.term, now)
        to_ask = self._campaign.to_ask(self._log_position(), now)
        if to_ask is not None:
            members, ask = to_ask
            for member in members:
                self._outbox.send(member, PeerMessage(pre_vote=ask), after_sync=False)

    def _campaign_reason(self) -> str:
        if not self._campaign.peers:
            return "single voter"
        if self.leader_node is None:
            return "no leader known"
        lost = self._campaign.connection_lost
        return "connection to the leader lost" if lost else "leader silent"

    def _stand_in_rank(self, lost: MemberId) -> None:
        """Stand when those before this member in the order of succession have had their time."""
        if self._must_yield:
            return
        voters = {self._me, *self._campaign.peers}
        fit = voters - self.unfit.all
        place = rank(self._me, fit if self._me in fit else voters, lost)
        stand_at = self._clock.monotonic() + place * self._timings.rank_step
        self.election_deadline = min(self.election_deadline, stand_at)

    def _stand_now(self) -> None:
        self.election_deadline = 0.0

    def _on_pre_vote(self, node: Node, ask: raft_pb2.PreVote) -> None:
        now = self._clock.monotonic()
        mine = self._standing(now)
        answer = self._campaign.answer(node.id, ask, mine, now)
        if answer is Answer.HOLD:
            return
        self._reply_pre_vote(node.id, ask, granted=answer is Answer.GRANT)
        theirs = LogPosition(ask.last_log_term, ask.last_log_index)
        if theirs < mine.log and mine.leader_lost and not mine.leading:
            self._stand_instead_of(node.id, now)

    def _stand_instead_of(self, asker: MemberId, now: float) -> None:
        """Who knows more stands soon: the asker can't win.

        Several may know more, so they go in order; and once in an election timeout, since votes
        take a moment: else they outbid one another for as long as the asker asks.
        """
        if not self._voting or now < self._outbid_at + self._timings.election_timeout_min:
            return
        self._outbid_at = now
        self._stand_in_until = now + self._timings.election_timeout_max
        leader = self.leader_node
        lost = asker if leader is None else MemberId(leader.id)
        voters = [self._me, *(peer for peer in self._campaign.peers if peer != asker)]
        place = rank(self._me, voters, lost)
        stand_at = now + place * self._timings.rank_step if place else 0.0
        self.election_deadline = min(self.election_deadline, stand_at)

    def _answer_held(self) -> None:
        if not self._campaign.holds_any:
            return
        now = self._clock.monotonic()
        for member, ask, granted in self._campaign.answers(self._standing(now), now):
            self._reply_pre_vote(member, ask, granted=granted)

    def _reply_pre_vote(self, member: MemberId, ask: raft_pb2.PreVote, *, granted: bool) -> None:
        reply = raft_pb2.PreVoteReply(term=self.term, round=ask.round, granted=granted)
        self._outbox.send(member, PeerMessage(pre_vote_reply=reply), after_sync=False)

    def _on_pre_vote_reply(self, node: Node, reply: raft_pb2.PreVoteReply) -> None:
        if reply.term > self.term:
            self._adopt(reply.term)
            self._stand_now()
        elif not self.leading and self._campaign.take_reply(node.id, reply, self.term):
            self._pre_vote_won = True
            self._stand_now()

    def _on_request_vote(self, node: Node, ask: raft_pb2.RequestVote) -> None:
        self.to_library(node, {
            "type": "request_vote", "term": ask.term,
            "last_log_index": ask.last_log_index, "last_log_term": ask.last_log_term,
        })  # fmt: skip

    def _on_vote_reply(self, node: Node, reply: raft_pb2.VoteReply) -> None:
        may_count = node.id in self._campaign.peers and node.id not in self._voters_counted
        if reply.term == self.term and may_count:
            self._voters_counted.add(node.id)  # the library counts messages, not voters
            self.to_library(node, {"type": "response_vote", "term": reply.term})

    def _on_timeout_now(self, node: Node, message: raft_pb2.TimeoutNow) -> None:
        able = self._may_stand(self._clock.monotonic())
        # without a quorum it would only depose the leader; it is told again while that waits
        if message.term == self.term and able and self._reaches_quorum():
            self._event("election.campaign", term=self.term + 1, reason="leader hands over")
            self.to_library(node, {"type": "timeout_now", "term": message.term})

    def _adopt(self, term: int) -> None:
        self._campaign.end()
        self.follow(term)

    def on_term(self, term: int) -> None:
        """Votes of another term do not count."""
        if term != self.term:
            self._voters_counted.clear()

    def draw_timeout(self) -> float:
        """Seconds until the next election, drawn anew each time."""
        return self._rng.uniform(
            self._timings.election_timeout_min, self._timings.election_timeout_max
        )

    def send_for_library(self, member: MemberId, message: dict[str, Any]) -> None:
        """Votes only: everything else is sent by this class."""
        if message["type"] == "request_vote":
            ask = raft_pb2.RequestVote(
                term=message["term"], last_log_index=message["last_log_index"],
                last_log_term=message["last_log_term"],
            )  # fmt: skip
            self._outbox.send(member, PeerMessage(request_vote=ask), after_sync=True)
        elif message["type"] == "response_vote":
            reply = raft_pb2.VoteReply(term=message["term"])
            self._outbox.send(member, PeerMessage(vote_reply=reply), after_sync=True)
        else:
            raise SafetyError(f"the library sent {message['type']}")
