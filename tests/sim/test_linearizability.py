"""The judge of the histories, judged: by hand, by trying all orders, and by spoiling good ones."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.linearizability import (
    NEVER,
    UNSEEN,
    Call,
    Kind,
    Rows,
    Stamp,
    State,
    linearizable,
    revisions_follow_time,
)

GET, PUT, DELETE, SWAP = Kind.GET, Kind.PUT, Kind.DELETE, Kind.SWAP


def get(began: float, ended: float, seen: State) -> Call:
    return Call("r", GET, began, ended, seen=seen)


def put(began: float, ended: float, value: bytes) -> Call:
    return Call("w", PUT, began, ended, value)


def swap(began: float, ended: float, expected: State, value: bytes, seen: State) -> Call:
    return Call("s", SWAP, began, ended, value, expected, seen)


GOOD: dict[str, list[Call]] = {
    "nothing": [],
    "a read of what was written": [put(0, 1, b"a"), get(2, 3, b"a")],
    "a read beside a write sees either": [put(0, 9, b"a"), get(1, 2, None), get(3, 4, b"a")],
    "unknown and never seen": [put(0, NEVER, b"a"), get(2, 3, None)],
    "unknown and seen late": [put(0, NEVER, b"a"), get(1, 2, None), get(8, 9, b"a")],
    "unknown, over a later write": [put(0, NEVER, b"a"), put(1, 2, b"b"), get(3, 4, b"b"),
                                    get(5, 6, b"a")],
    "unknown delete": [put(0, 1, b"a"), Call("d", DELETE, 2), get(3, 4, b"a"), get(5, 6, None)],
    "a swap and one that comes too late": [put(0, 1, b"a"), swap(2, 5, b"a", b"b", b"a"),
                                           swap(3, 6, b"a", b"c", b"b"), get(7, 8, b"b")],
    "unknown swaps in a chain": [put(0, 1, b"a"), Call("s", SWAP, 2, NEVER, b"b", b"a"),
                                 Call("s", SWAP, 3, NEVER, b"c", b"b"), get(4, 5, b"c")],
}  # fmt: skip

BAD: dict[str, list[Call]] = {
    "stale read": [put(0, 1, b"a"), put(2, 3, b"b"), get(4, 5, b"a")],
    "acknowledged write lost": [put(0, 1, b"a"), get(2, 3, None)],
    "lost update": [put(0, 1, b"a"), swap(2, 5, b"a", b"b", b"a"), swap(3, 6, b"a", b"c", b"a")],
    "a value from nowhere": [put(0, 1, b"a"), get(2, 3, b"z")],
    "a value from the future": [get(0, 1, b"a"), put(2, 3, b"a")],
    "a write applied twice": [put(0, 1, b"a"), put(2, 3, b"b"), get(4, 5, b"b"), get(6, 7, b"a")],
    "an unknown one applied twice": [put(0, NEVER, b"a"), get(1, 2, b"a"), put(3, 4, b"b"),
                                     get(5, 6, b"b"), get(7, 8, b"a")],
    "reads going backwards": [put(0, 9, b"a"), get(1, 2, b"a"), get(3, 4, None)],
    "a delete undone": [put(0, 1, b"a"), Call("d", DELETE, 2, 3, seen=b"a"), get(4, 5, b"a")],
    "a swap that should have failed": [put(0, 1, b"a"), swap(2, 3, b"b", b"c", b"b")],
    "one unknown delete for two": [put(0, 1, b"a"), Call("d", DELETE, 2), get(3, 4, None),
                                   put(5, 6, b"b"), get(7, 8, None)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_does_not(name: str) -> None:
    assert not linearizable(BAD[name])


# ---------------------------------------------------------------------------- all orders tried


def possible(calls: Sequence[Call]) -> bool:
    """The definition, word for word."""
    known = [call for call in calls if call.known]
    unknown = [call for call in calls if not call.known]
    for chosen in range(1 << len(unknown)):
        happened = known + [call for bit, call in enumerate(unknown) if chosen >> bit & 1]
        if any(in_order(order) for order in permutations(happened)):
            return True
    return False


def in_order(order: Sequence[Call]) -> bool:
    state: State = None
    latest = float("-inf")
    for call in order:
        latest = max(latest, call.began)
        if call.ended < latest or not call.allowed(state):
            return False
        state = call.after(state)
    return True


@st.composite
def any_history(draw: st.DrawFn) -> list[Call]:
    """Calls with made-up answers: most are impossible."""
    count = draw(st.integers(1, 6))
    moments = draw(st.permutations(range(2 * count)))
    values = [b"%d" % number for number in range(count)]
    states = st.sampled_from([None, *values])
    calls = []
    for number in range(count):
        began, ended = sorted(moments[2 * number : 2 * number + 2])
        kind = draw(st.sampled_from(list(Kind)))
        known = draw(st.integers(0, 2)) > 0
        blind = not known or (kind is PUT and draw(st.booleans()))
        calls.append(
            Call("c", kind, began, ended if known else NEVER,
                 values[number] if kind in (PUT, SWAP) else None,
                 draw(states) if kind is SWAP else None, UNSEEN if blind else draw(states))
        )  # fmt: skip
    return calls


@settings(max_examples=400, deadline=None)
@given(any_history())
def test_it_judges_as_trying_all_orders_does(calls: list[Call]) -> None:
    assert linearizable(calls) == possible(calls)


# ---------------------------------------------------------------------------- good ones, spoiled


@st.composite
def correct_history(draw: st.DrawFn) -> list[Call]:
    """Calls on a register that works; each takes effect at one moment within its time."""
    count = draw(st.integers(2, 40))
    state: State = None
    calls = []
    for number in range(count):  # in the order of effect, which is at `10 * number`
        began = 10 * number - draw(st.integers(1, 60)) - number / 1000
        ended = 10 * number + draw(st.integers(1, 60)) + number / 1000
        kind = draw(st.sampled_from([GET, PUT, PUT, DELETE, SWAP]))
        value = b"%d" % number if kind in (PUT, SWAP) else None
        expected = draw(st.sampled_from([state, b"x"])) if kind is SWAP else None
        call = Call("c", kind, began, ended, value, expected, seen=state)
        fate = draw(st.integers(0, 9))
        if fate == 0:  # it happened and nobody was told
            call = replace(call, ended=NEVER, seen=UNSEEN)
        if fate != 1:
            state = call.after(state)
        else:  # it never happened
            call = replace(call, ended=NEVER, seen=UNSEEN)
        calls.append(call)
    return calls


@settings(max_examples=200, deadline=None)
@given(correct_history())
def test_a_correct_register_passes(calls: list[Call]) -> None:
    assert linearizable(calls)


@settings(max_examples=200, deadline=None)
@given(correct_history(), st.integers(0, 100))
def test_a_spoiled_history_fails(calls: list[Call], number: int) -> None:
    end = max(call.began if call.ended == NEVER else call.ended for call in calls) + 1
    written = [c for c in calls if c.known and c.kind is PUT]
    spoiled = list(calls)
    if written and number % 2:
        # overwritten before the end, and seen again after it
        spoiled += [put(end, end + 1, b"new"), get(end + 2, end + 3, written[0].value)]
    else:
        position = number % len(calls)
        spoiled[position] = replace(calls[position], ended=end, seen=b"from nowhere")
    assert not linearizable(spoiled)


# ---------------------------------------------------------------------------- revisions and rows


def test_revisions_follow_time() -> None:
    first, second = Stamp(0, 1, 5, wrote=True), Stamp(2, 3, 6, wrote=True)
    assert revisions_follow_time([first, second, Stamp(2, 4, 5, wrote=False)]) is None
    assert revisions_follow_time([first, second, Stamp(4, 5, 5, wrote=False)]) is not None
    assert revisions_follow_time([first, Stamp(2, 3, 5, wrote=True)]) is not None
    assert revisions_follow_time([first, Stamp(0.5, 3, 5, wrote=True)]) is not None


def test_rows_are_the_same_for_everybody() -> None:
    rows = Rows()
    assert rows.saw(b"k", b"a", mod=2, version=1, create=2) is None
    assert rows.saw(b"k", b"a", mod=2, version=1, create=2) is None
    assert rows.saw(b"k", b"b", mod=3, version=2, create=2) is None
    assert rows.saw(b"k", b"c", mod=3, version=2, create=2) is not None
    assert rows.saw(b"k", b"a", mod=4, version=3, create=2) is not None
    assert rows.saw(b"k", b"d", mod=5, version=5, create=2) is not None
