"""What a member is fit for: named reasons, and what follows from each. Pure.

Everybody who asks whether a member may serve, should stand for election, is ready, or is a good
choice to hand over to, asks here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Final

from kvserver.raft.entry import MemberId

LAG_ENTRIES: Final = 1_000
"""A standby whose state lacks more entries than this would take a moment to serve: about as many as
are applied within an election timeout."""


class Reason(Enum):
    """Why a member is not fit."""

    DISQUALIFIED = "disqualified"
    """Its state differs from that of the others: the log has the alarm."""
    UNVERIFIED = "unverified"
    """Nobody has read the whole of its state since its process began with it."""
    LAGGING = "lagging"
    """Its state lacks many entries that are committed."""


@dataclass(frozen=True)
class Fitness:
    """Of one member, as it knows itself."""

    reasons: frozenset[Reason] = frozenset()
    trusted: bool = False
    """It may serve unverified: it had met nobody who was verified, nor anybody who had, when its
    leadership began, or until now if it does not lead: so after a restart of all. See `Trust`."""

    @property
    def may_serve(self) -> bool:
        """True if clients may be answered from its state."""
        if Reason.DISQUALIFIED in self.reasons:
            return False
        return self.trusted or Reason.UNVERIFIED not in self.reasons

    @property
    def text(self) -> str:
        """The reasons, for people; empty if it is fit."""
        return ", ".join(reason.value for reason in Reason if reason in self.reasons)


@dataclass(frozen=True)
class Unfit:
    """Members whose state must not be served, as far as one member knows."""

    disqualified: frozenset[MemberId] = frozenset()
    unverified: frozenset[MemberId] = frozenset()
    """This member, and of the others those whose connection is up."""
    trusted: bool = False
    """This member may serve though it is unverified."""

    @cached_property
    def all(self) -> frozenset[MemberId]:
        """For whatever reason."""
        return self.disqualified | self.unverified

    def must_yield(
        self, me: MemberId, voters: Iterable[MemberId], present: Iterable[MemberId]
    ) -> bool:
        """Whether a member leaves it to others to lead, since one of them could serve.

        Args:
            me: the member.
            voters: the other voters.
            present: those of them whose connection is up. Who is disqualified waits for others
                though they are not there, as its state is wrong; who is unverified does not, as it
                is most likely right.
        """
        if me in self.disqualified:
            return any(voter not in self.disqualified for voter in voters)
        unverified = me in self.unverified and not self.trusted
        return unverified and any(peer not in self.all for peer in present)

    def successor(
        self, me: MemberId, candidates: Mapping[MemberId, int], wanted: MemberId | None
    ) -> MemberId | None:
        """To whom a leader hands over; None if there is nobody it should be.

        Args:
            me: the leader.
            candidates: voters whose connection is up, and the newest entry that each has.
            wanted: the one that is asked for; None for the best.
        """
        able = candidates.keys() - self.disqualified
        choice = able - self.unverified
        if not choice and me in self.all:
            # One that is unverified would serve nothing, for a while, which is better than nobody.
            # A fit leader has none of them: they leave it to who is fit, as long as it is there.
            choice = able
        if wanted is not None:
            return wanted if wanted in choice else None
        return max(choice, key=lambda member: (candidates[member], -member), default=None)


class Trust:
    """Whether a member may serve though its state is unverified.

    When all members restart together nobody is verified: the first to lead then serves at once, as
    if its disk could be believed, until its verification has ended. In every other case somebody
    was verified when it came back, and what it holds is not believed before it was read.

    Invariant: who has met a verified member since its process began, directly or through others,
    serves nothing unverified, but for a leadership that began before.
    """

    def __init__(self) -> None:
        self._met = False
        self._leading = False
        self.given = True

    @property
    def met_verified(self) -> bool:
        """Since the process began this member was verified, or has heard of one that was."""
        return self._met

    def look(self, *, leading: bool, met: bool) -> None:
        """A turn begins.

        Args:
            leading: this member is the leader.
            met: it is verified, or a peer says that it is or has met one that is.
        """
        self._met = self._met or met
        if not (leading and self._leading):
            self.given = not self._met
        self._leading = leading
