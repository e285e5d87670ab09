"""Which changes of the members are allowed, as decisions without members."""

from collections.abc import Callable

import pytest

from kvpb import raft_pb2
from kvserver.errors import (
    LearnerNotReadyError,
    MemberExistsError,
    MemberNotFoundError,
    NotEnoughMembersError,
    NotLearnerError,
    PeerUrlExistsError,
    RequestError,
    TooManyLearnersError,
)
from kvserver.raft.entry import REGULAR, Entry, MemberId
from kvserver.raft.membership import (
    Configuration,
    added,
    configuration_of,
    is_membership,
    promotable,
    readdressed,
    removed,
    spanning,
    voters_changed,
)

CLUSTER = 77


def member(number: int, *, learner: bool = False, address: str = "") -> raft_pb2.Member:
    where = address or f"n{number}:1"
    return raft_pb2.Member(id=number, name=f"n{number}", peer_address=where, learner=learner)


def configuration(*voters: int, learners: tuple[int, ...] = (), index: int = 5) -> Configuration:
    members = {MemberId(number): member(number) for number in voters}
    members |= {MemberId(number): member(number, learner=True) for number in learners}
    return Configuration(index, CLUSTER, members)


def ids(*numbers: int) -> frozenset[MemberId]:
    return frozenset(map(MemberId, numbers))


# ---------------------------------------------------------------------------- adding

Adding = tuple[Configuration, raft_pb2.Member, frozenset[MemberId]]

ADDED: dict[str, tuple[Adding, type[RequestError] | None]] = {
    "a voter, all are there": ((configuration(1, 2, 3), member(4), ids(1, 2, 3)), None),
    "a voter to one": ((configuration(1), member(2), ids(1)), NotEnoughMembersError),
    "a learner to one": ((configuration(1), member(2, learner=True), ids(1)), None),
    "a voter, and the old quorum would not do": (
        (configuration(1, 2, 3), member(4), ids(1, 2)), NotEnoughMembersError,
    ),
    "a learner, a quorum is there": (
        (configuration(1, 2, 3), member(4, learner=True), ids(1, 2)), None,
    ),
    "a learner, no quorum is there": (
        (configuration(1, 2, 3), member(4, learner=True), ids(1)), NotEnoughMembersError,
    ),
    "learners who are there are no quorum": (
        (configuration(1, 2, 3, learners=(5,)), member(4), ids(1, 2, 5)), NotEnoughMembersError,
    ),
    "an id that is taken": ((configuration(1, 2), member(2), ids(1, 2)), MemberExistsError),
    "an address that is taken": (
        (configuration(1, 2, 3), member(4, address="n2:1"), ids(1, 2, 3)), PeerUrlExistsError,
    ),
    "a second learner": (
        (configuration(1, 2, 3, learners=(5,)), member(4, learner=True), ids(1, 2, 3)),
        TooManyLearnersError,
    ),
    "a voter beside a learner": (
        (configuration(1, 2, 3, learners=(5,)), member(4), ids(1, 2, 3)), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "refusal"), ADDED.values(), ids=ADDED)
def test_a_member_is_added_or_refused(asked: Adding, refusal: type[RequestError] | None) -> None:
    before, fresh, present = asked
    if refusal is not None:
        with pytest.raises(refusal):
            added(before, fresh, present)
        return
    after = added(before, fresh, present)
    assert after.members == {**before.members, MemberId(fresh.id): fresh}
    assert after.cluster_id == CLUSTER
    assert voters_changed(before, after) == (not fresh.learner)


# ---------------------------------------------------------------------------- removing

Removing = tuple[Configuration, int, frozenset[MemberId]]

REMOVED: dict[str, tuple[Removing, type[RequestError] | None]] = {
    "one of three": ((configuration(1, 2, 3), 3, ids(1, 2, 3)), None),
    "one of three that is gone": ((configuration(1, 2, 3), 3, ids(1, 2)), None),
    "one of three, another is gone": (
        (configuration(1, 2, 3), 3, ids(1, 3)), NotEnoughMembersError,
    ),
    "one of two": ((configuration(1, 2), 2, ids(1)), None),
    "the last voter": ((configuration(1), 1, ids(1)), NotEnoughMembersError),
    "the last voter beside a learner": (
        (configuration(1, learners=(2,)), 1, ids(1, 2)), NotEnoughMembersError,
    ),
    "a learner": ((configuration(1, 2, 3, learners=(4,)), 4, ids(1, 2)), None),
    "nobody that is known": ((configuration(1, 2, 3), 9, ids(1, 2, 3)), MemberNotFoundError),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "refusal"), REMOVED.values(), ids=REMOVED)
def test_a_member_is_removed_or_not(asked: Removing, refusal: type[RequestError] | None) -> None:
    before, number, present = asked
    if refusal is not None:
        with pytest.raises(refusal):
            removed(before, MemberId(number), present)
        return
    after = removed(before, MemberId(number), present)
    assert after.members.keys() == before.members.keys() - {number}
    assert voters_changed(before, after) == (number in before.voters)


# ---------------------------------------------------------------------------- promoting


@pytest.mark.parametrize(
    ("number", "match", "commit", "refusal"),
    [
        (4, 100, 100, None),
        (4, 90, 100, None),
        (4, 89, 100, LearnerNotReadyError),
        (4, 1, 1, None),
        (4, 0, 0, LearnerNotReadyError),
        (4, 0, 100, LearnerNotReadyError),
        (4, 200, 100, None),
        (3, 100, 100, NotLearnerError),
        (9, 100, 100, MemberNotFoundError),
    ],
)
def test_a_learner_is_promoted_once_it_has_most_of_the_log(
    number: int, match: int, commit: int, refusal: type[RequestError] | None
) -> None:
    before = configuration(1, 2, 3, learners=(4,))
    before.members[MemberId(4)].promote_in_step = True
    if refusal is not None:
        with pytest.raises(refusal):
            promotable(before, MemberId(number), match, commit)
        return
    after = promotable(before, MemberId(number), match, commit)
    assert after.voters == ids(1, 2, 3, 4)
    expected = raft_pb2.Member()
    expected.CopyFrom(before.members[MemberId(4)])
    expected.learner = expected.promote_in_step = False
    assert after.members[MemberId(4)] == expected, "nothing else of it changes"
    assert expected.name
    assert before.voters == ids(1, 2, 3), "the configuration in force is not touched"


# ---------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("number", "address", "refusal"),
    [
        (2, "other:1", None),
        (2, "n2:1", None),
        (2, "n3:1", PeerUrlExistsError),
        (9, "other:1", MemberNotFoundError),
    ],
)
def test_a_member_gets_another_address_or_not(
    number: int, address: str, refusal: type[RequestError] | None
) -> None:
    before = configuration(1, 2, 3)
    change: Callable[[], Configuration] = lambda: readdressed(before, MemberId(number), address)  # noqa: E731
    if refusal is not None:
        with pytest.raises(refusal):
            change()
        return
    after = change()
    assert after.members[MemberId(number)].peer_address == address
    assert before.members[MemberId(number)].peer_address == f"n{number}:1"
    assert voters_changed(before, after) == 0


# ---------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        (configuration(1, 2, 3), configuration(1, 2, 3), 0),
        (configuration(1, 2, 3), configuration(1, 2, 3, 4), 1),
        (configuration(1, 2, 3), configuration(1, 2), 1),
        (configuration(1, 2, 3), configuration(1, 2, 4), 2),
        (configuration(1, 2, 3), configuration(1, 2, 3, learners=(4,)), 0),
        (configuration(1, 2, 3, learners=(4,)), configuration(1, 2, 3, 4), 1),
        (configuration(1, 2, 3), configuration(1, 2, learners=(3,)), 1),
        (configuration(1, 2, 3), configuration(4, 5), 5),
    ],
)
def test_voters_that_change_are_counted_on_both_sides(
    old: Configuration, new: Configuration, changed: int
) -> None:
    assert voters_changed(old, new) == voters_changed(new, old) == changed


def test_a_configuration_goes_through_the_log_unchanged() -> None:
    before = configuration(3, 1, 2, learners=(4,))
    payload = before.payload()
    assert configuration_of(5, payload) == before
    assert is_membership(Entry(payload, 5, 1))
    assert not is_membership(Entry(REGULAR + payload, 5, 1))
    turned = Configuration(5, CLUSTER, dict(reversed(list(before.members.items()))))
    assert turned.payload() == payload, "the same members, the same bytes"


def test_a_node_talks_to_all_who_may_turn_out_to_be_members() -> None:
    older, newer = configuration(1, 2, 3, index=5), configuration(1, 2, 4, index=9)
    assert spanning([older]) is older
    both = spanning([older, newer])
    assert both.members.keys() == ids(1, 2, 3, 4)
    assert both.index == 9
