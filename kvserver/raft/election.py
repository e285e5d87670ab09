"""Decisions about elections, as functions of what a member knows. Pure.

Three signals start one: the connection to the leader broke, its heartbeats stopped, or it hands
over. Each leads to a pre-vote first, which changes nothing and is granted only by a member that
lost the leader itself; so a false signal has no effect (Raft thesis 9.6, with connection loss
added).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from kvpb.raft_pb2 import PreVote, PreVoteReply
from kvserver.raft.entry import MemberId
from kvserver.telemetry import Repeats

HOLD_S: Final = 0.05
"""How long a pre-vote waits for this member to notice itself that the leader is gone."""

REPEAT_S: Final = 0.005
"""A pre-vote is asked again this often: the first asking may meet members that still hold on."""

REPEAT_FOR_S: Final = 0.1


class LogPosition(NamedTuple):
    """End of a log. Greater means more up to date (Raft paper 5.4.1)."""

    term: int
    index: int  # type: ignore[assignment] # hides tuple.index


class Answer(Enum):
    """To a pre-vote."""

    GRANT = "grant"
    REFUSE = "refuse"
    HOLD = "hold"


@dataclass(frozen=True)
class Standing:
    """What a member knows when it is asked for a pre-vote."""

    leading: bool
    term: int
    log: LogPosition
    leader_lost: bool
    """Its own connection to the leader broke, or it was silent for an election timeout."""


def answer_pre_vote(mine: Standing, term: int, log: LogPosition) -> Answer:
    """Answer to "would you vote for me in `term`, with this log?"."""
    if mine.leading or term <= mine.term or log < mine.log:
        return Answer.REFUSE
    return Answer.GRANT if mine.leader_lost else Answer.HOLD


def rank(member: MemberId, voters: Iterable[MemberId], lost: MemberId) -> int:
    """Place of `member` in the order of succession after `lost`, from 0."""
    return sorted(voter for voter in voters if voter != lost).index(member)


@dataclass(frozen=True)
class _Held:
    """A pre-vote whose answer waits until this member knows more."""

    member: MemberId
    ask: PreVote
    until: float


@dataclass
class _Round:
    """One asking around."""

    number: int
    """Tells late answers of earlier rounds apart."""
    term: int
    """Term of the asking member; the election would be for the next one."""
    started: float
    repeat_at: float
    granted: set[MemberId] = field(default_factory=set)


class Campaign:
    """A member's side of pre-votes: asks, answers, and remembers whether the leader is there."""

    def __init__(self, silence_s: float) -> None:
        """Start without a leader; one that says nothing for `silence_s` seconds is lost."""
        self.peers: Sequence[MemberId] = ()
        """The other voters of the configuration in force."""
        self._silence_s = silence_s
        self._heard = float("-inf")
        self._connection_lost = True
        self._number = 0
        self._round: _Round | None = None
        self._held: list[_Held] = []
        self._told = Repeats()

    # ------------------------------------------------------------------ the leader

    def leader_heard(self, now: float) -> None:
        """The leader gave a sign of life: whatever was suspected is over."""
        self._heard = now
        self._connection_lost = False
        self._round = None
        self._told.forget()

    def leader_gone(self) -> None:
        """The connection to the leader broke."""
        self._connection_lost = True

    def leader_lost(self, now: float) -> bool:
        """True if this member would follow another one."""
        return self._connection_lost or now - self._heard > self._silence_s

    @property
    def connection_lost(self) -> bool:
        """True if the connection broke, or there never was one."""
        return self._connection_lost

    def end(self) -> None:
        """This member leads, or a higher term exists: nothing is asked any more."""
        self._round = None
        self._held.clear()

    # ------------------------------------------------------------------ asking

    def begin(self, term: int, now: float) -> None:
        """Start a round, to win the term after `term`."""
        self._connection_lost = self.leader_lost(now)
        self._number += 1
        self._round = _Round(self._number, term, now, repeat_at=now)

    def is_news(self, term: int, reason: str, now: float) -> bool:
        """Whether the log should say that this member stands for `term`."""
        return self._told.is_news((term, reason), now)

    def to_ask(self, log: LogPosition, now: float) -> tuple[Sequence[MemberId], PreVote] | None:
        """Whom to ask what now: at the start, and again while answers may still change."""
        asking = self._round
        if asking is None or not asking.repeat_at <= now <= asking.started + REPEAT_FOR_S:
            return None
        asking.repeat_at = now + REPEAT_S
        ask = PreVote(
            term=asking.term + 1, round=asking.number,
            last_log_index=log.index, last_log_term=log.term,
        )  # fmt: skip
        return [peer for peer in self.peers if peer not in asking.granted], ask

    def take_reply(self, member: MemberId, reply: PreVoteReply, term: int) -> bool:
        """Count an answer; True if it makes a quorum."""
        asking = self._round
        if asking is None or not reply.granted or member not in self.peers:
            return False
        if asking.number != reply.round or asking.term != term:
            return False
        asking.granted.add(member)
        if len(asking.granted) + 1 < quorum(len(self.peers) + 1):
            return False
        self._round = None
        return True

    # ------------------------------------------------------------------ answering

    def answer(self, member: MemberId, ask: PreVote, mine: Standing, now: float) -> Answer:
        """Answer to a pre-vote; HOLD means that `answers` will give it."""
        answer = answer_pre_vote(mine, ask.term, LogPosition(ask.last_log_term, ask.last_log_index))
        if answer is not Answer.HOLD:
            self._held = [held for held in self._held if held.member != member]
        elif all((held.member, held.ask) != (member, ask) for held in self._held):
            self._held = [held for held in self._held if held.member != member]
            self._held.append(_Held(member, ask, now + HOLD_S))
        return answer

    @property
    def holds_any(self) -> bool:
        """Whether a pre-vote waits for its answer."""
        return bool(self._held)

    def answers(self, mine: Standing, now: float) -> list[tuple[MemberId, PreVote, bool]]:
        """Held pre-votes that can be answered now: by whom, which, granted or not."""
        waiting, self._held = self._held, []
        decided = []
        for held in waiting:
            log = LogPosition(held.ask.last_log_term, held.ask.last_log_index)
            answer = answer_pre_vote(mine, held.ask.term, log)
            if answer is Answer.HOLD and now < held.until:
                self._held.append(held)
            else:
                decided.append((held.member, held.ask, answer is Answer.GRANT))
        return decided

    def next_deadline(self) -> float:
        """When something must be asked again or answered at the latest."""
        times = [held.until for held in self._held]
        if self._round is not None and self._round.repeat_at <= self._round.started + REPEAT_FOR_S:
            times.append(self._round.repeat_at)
        return min(times, default=float("inf"))


def quorum(voters: int) -> int:
    """Votes that make a majority."""
    return voters // 2 + 1
