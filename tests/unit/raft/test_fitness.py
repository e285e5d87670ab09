"""Who may serve, who yields to whom, to whom a leader hands over: decided by named reasons."""

from dataclasses import replace

import pytest

from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Fitness, Reason, Trust, Unfit

A, B, C = MemberId(1), MemberId(2), MemberId(3)
BOTH = frozenset({Reason.UNVERIFIED, Reason.DISQUALIFIED})


@pytest.mark.parametrize(
    ("reasons", "trusted", "may_serve"),
    [
        ((), False, True),
        ((Reason.LAGGING,), False, True),
        ((Reason.UNVERIFIED,), False, False),
        ((Reason.UNVERIFIED,), True, True),
        ((Reason.DISQUALIFIED,), False, False),
        ((Reason.DISQUALIFIED,), True, False),
        ((Reason.DISQUALIFIED, Reason.UNVERIFIED), True, False),
    ],
)
def test_who_may_serve(reasons: tuple[Reason, ...], trusted: bool, may_serve: bool) -> None:
    assert Fitness(frozenset(reasons), trusted=trusted).may_serve is may_serve


def test_reasons_are_told_in_the_order_of_their_weight() -> None:
    assert Fitness(frozenset(Reason)).text == "disqualified, unverified, lagging"
    assert Fitness().text == ""


UNVERIFIED = Unfit(unverified=frozenset({A}))
ALL_UNVERIFIED = Unfit(unverified=frozenset({A, B, C}))
DISQUALIFIED = Unfit(disqualified=frozenset({A}))


@pytest.mark.parametrize(
    ("unfit", "present", "yields"),
    [
        (Unfit(), (B, C), False),
        (UNVERIFIED, (B, C), True),
        (UNVERIFIED, (), False),  # nobody verified is there
        (replace(UNVERIFIED, trusted=True), (B, C), False),
        (Unfit(unverified=frozenset({A, B})), (B,), False),
        (Unfit(unverified=frozenset({A, B})), (B, C), True),
        (ALL_UNVERIFIED, (B, C), False),
        (Unfit(frozenset({B}), frozenset({A})), (B,), False),  # B must not serve either
        (Unfit(unverified=frozenset({B})), (B, C), False),
        (DISQUALIFIED, (), True),  # its state is wrong: it waits for those who are not there
        (Unfit(disqualified=frozenset({A, B, C})), (B, C), False),
    ],
)
def test_who_yields(unfit: Unfit, present: tuple[MemberId, ...], yields: bool) -> None:
    assert unfit.must_yield(A, (B, C), present) is yields


@pytest.mark.parametrize(
    ("unfit", "matches", "wanted", "chosen"),
    [
        (Unfit(), {B: 5, C: 9}, None, C),
        (Unfit(), {B: 9, C: 9}, None, B),
        (Unfit(), {B: 5, C: 9}, B, B),
        (Unfit(unverified=frozenset({C})), {B: 5, C: 9}, None, B),
        (Unfit(unverified=frozenset({C})), {B: 5, C: 9}, C, None),
        (Unfit(unverified=frozenset({B, C})), {B: 5, C: 9}, None, None),
        (Unfit(unverified=frozenset({A, B, C})), {B: 5, C: 9}, None, C),
        (Unfit(frozenset({A}), frozenset({B, C})), {B: 5, C: 9}, None, C),
        (Unfit(disqualified=frozenset({C})), {B: 5, C: 9}, None, B),
        (Unfit(disqualified=frozenset({B, C})), {B: 5, C: 9}, None, None),
        (Unfit(), {}, None, None),
        (Unfit(), {B: 5}, C, None),
    ],
)
def test_to_whom_a_leader_hands_over(
    unfit: Unfit, matches: dict[MemberId, int], wanted: MemberId | None, chosen: MemberId | None
) -> None:
    assert unfit.successor(A, matches, wanted) == chosen


def test_trust_ends_when_somebody_verified_is_met() -> None:
    trust = Trust()
    trust.look(leading=False, met=False)
    assert trust.given
    trust.look(leading=False, met=True)
    assert not trust.given
    trust.look(leading=True, met=False)
    assert not trust.given
    assert trust.met_verified


def test_a_leadership_that_began_in_trust_keeps_it() -> None:
    trust = Trust()
    trust.look(leading=True, met=False)
    trust.look(leading=True, met=True)
    assert trust.given
    trust.look(leading=False, met=False)
    assert not trust.given
    trust.look(leading=True, met=False)
    assert not trust.given


def test_who_is_elected_in_the_moment_of_meeting_is_not_trusted() -> None:
    trust = Trust()
    trust.look(leading=False, met=False)
    trust.look(leading=True, met=True)
    assert not trust.given
