"""Who the members are, as a function of the log, and which changes are allowed. Pure.

A membership entry carries the full list, so the newest one in the log, committed or not, is the
configuration in force (Raft paper 6). Changes go one voter at a time: the majorities of the old and
the new configuration then overlap (Raft thesis 4.1).
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from kvpb import raft_pb2
from kvserver.errors import (
    LearnerNotReadyError,
    MemberExistsError,
    MemberNotFoundError,
    NotEnoughMembersError,
    NotLearnerError,
    PeerUrlExistsError,
    TooManyLearnersError,
)
from kvserver.raft.election import quorum
from kvserver.raft.entry import MEMBERSHIP, Entry, MemberId

IN_SYNC_PART: Final = 0.9
"""A learner with this part of the leader's committed log may be promoted, as in etcd."""


@dataclass(frozen=True)
class Configuration:
    """The members as the entry at `index` names them."""

    index: int
    cluster_id: int
    members: Mapping[MemberId, raft_pb2.Member]

    @cached_property
    def voters(self) -> frozenset[MemberId]:
        """Members that vote and count."""
        return frozenset(m for m, member in self.members.items() if not member.learner)

    def payload(self) -> bytes:
        """Payload of its entry."""
        ordered = [self.members[member_id] for member_id in sorted(self.members)]
        membership = raft_pb2.Membership(cluster_id=self.cluster_id, members=ordered)
        return MEMBERSHIP + membership.SerializeToString(deterministic=True)

    def replaced(self, members: Mapping[MemberId, raft_pb2.Member]) -> "Configuration":
        """The same cluster with other members; not in a log yet."""
        return Configuration(0, self.cluster_id, members)


def configuration_of(index: int, payload: bytes) -> Configuration:
    """The configuration of a membership entry."""
    membership = raft_pb2.Membership.FromString(payload[1:])
    return Configuration(
        index,
        membership.cluster_id,
        {MemberId(member.id): member for member in membership.members},
    )


def spanning(configurations: Sequence[Configuration]) -> Configuration:
    """The newest of them, with the members of the others too: whom a node talks to.

    A change that is not committed may yet be cut off, and by a leader that it would have removed:
    who does not listen to that one would never learn of it.
    """
    newest = configurations[-1]
    if len(configurations) == 1:
        return newest
    members = {m: member for each in configurations for m, member in each.members.items()}
    return Configuration(newest.index, newest.cluster_id, members)


def is_membership(entry: Entry) -> bool:
    """True for an entry that carries a configuration."""
    return entry.payload[:1] == MEMBERSHIP


def voters_changed(old: Configuration, new: Configuration) -> int:
    """How many members vote in one of the two only. Invariant of a log: at most one a step."""
    return len(old.voters ^ new.voters)


def promoted(configuration: Configuration, member_id: MemberId) -> Configuration:
    """The configuration with a learner made a voter."""
    fresh = raft_pb2.Member()
    fresh.CopyFrom(configuration.members[member_id])
    fresh.learner = fresh.promote_in_step = False
    return configuration.replaced({**configuration.members, member_id: fresh})


# ---------------------------------------------------------------------------- what is asked for


def added(
    configuration: Configuration,
    member: raft_pb2.Member,
    present: AbstractSet[MemberId],
) -> Configuration:
    """The configuration with a new member, whose name is not known yet.

    Args:
        configuration: in force.
        member: id, address, learner or not.
        present: members that are connected, the active included.

    Raises:
        RequestError: etcd's reasons.
    """
    if MemberId(member.id) in configuration.members:
        raise MemberExistsError
    _check_address_free(configuration, MemberId(member.id), member.peer_address)
    if member.learner and any(each.learner for each in configuration.members.values()):
        raise TooManyLearnersError
    wanted = configuration.replaced({**configuration.members, MemberId(member.id): member})
    _check_quorum(wanted, present)
    return wanted


def removed(
    configuration: Configuration, member_id: MemberId, present: AbstractSet[MemberId]
) -> Configuration:
    """The configuration without a member. Raises etcd's reasons."""
    if member_id not in configuration.members:
        raise MemberNotFoundError
    others = {m: each for m, each in configuration.members.items() if m != member_id}
    wanted = configuration.replaced(others)
    if not wanted.voters:
        raise NotEnoughMembersError
    _check_quorum(wanted, present)
    return wanted


def readdressed(configuration: Configuration, member_id: MemberId, address: str) -> Configuration:
    """The configuration with another address of a member. Raises etcd's reasons."""
    if member_id not in configuration.members:
        raise MemberNotFoundError
    _check_address_free(configuration, member_id, address)
    fresh = raft_pb2.Member()
    fresh.CopyFrom(configuration.members[member_id])
    fresh.peer_address = address
    return configuration.replaced({**configuration.members, member_id: fresh})


def promotable(
    configuration: Configuration, member_id: MemberId, match_index: int, commit_index: int
) -> Configuration:
    """The configuration with a learner made a voter, if it has most of the log already.

    One that has nothing yet could be needed for the very commit that lets it in.

    Raises:
        RequestError: etcd's reasons.
    """
    member = configuration.members.get(member_id)
    if member is None:
        raise MemberNotFoundError
    if not member.learner:
        raise NotLearnerError
    if not match_index or match_index < commit_index * IN_SYNC_PART:
        raise LearnerNotReadyError
    return promoted(configuration, member_id)


def _check_address_free(configuration: Configuration, member_id: MemberId, address: str) -> None:
    for other, each in configuration.members.items():
        if other != member_id and each.peer_address == address:
            raise PeerUrlExistsError


def _check_quorum(wanted: Configuration, present: AbstractSet[MemberId]) -> None:
    """A change must not wait for members that are not there (etcd: strict reconfig check)."""
    if len(wanted.voters & present) < quorum(len(wanted.voters)):
        raise NotEnoughMembersError
