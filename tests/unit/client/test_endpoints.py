"""Which endpoint is next, and when: no sockets, no clock."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvclient._endpoints import (
    CONNECT_S,
    LEARNED_MAX,
    LOOK_EVERY_S,
    Attempts,
    Endpoints,
    parse_address,
    parse_addresses,
)
from kvclient._outcomes import LeaderHint, Outcome
from kvclient.errors import DeadlineExceeded, Unavailable

A, B, C, D = "a:1", "b:1", "c:1", "d:1"
NOW = 1000.0


def attempts(endpoints: Endpoints, *, timeout_s: float = 5.0, write: bool = True) -> Attempts:
    return Attempts(endpoints, NOW + timeout_s, write=write, rng=Random(1))


def ask(call: Attempts, now: float = NOW) -> str:
    assert call.pause_s(now) == 0
    return call.next(now).address


@pytest.mark.parametrize(
    ("given_as", "address"),
    [
        ("host:2379", "host:2379"),
        ("http://host:2379", "host:2379"),
        (" http://host:2379/ ", "host:2379"),
        ("[::1]:2379", "[::1]:2379"),
    ],
)
def test_an_endpoint_is_an_address_with_or_without_scheme(given_as: str, address: str) -> None:
    assert parse_address(given_as) == address


@pytest.mark.parametrize(
    "given_as",
    ["", "host", ":1", "host:", "host:x", "host:0", "host:65536", "host:²", "::1:1", "h/x:1"],
)
def test_what_is_no_address_is_refused(given_as: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_address(given_as)


def test_tls_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="only http:// is spoken, not https://"):
        parse_address("https://host:1")


def test_addresses_come_as_a_list_or_with_commas_and_count_once() -> None:
    assert parse_addresses("a:1, http://b:1,,a:1") == (A, B)
    assert parse_addresses([A, B, A]) == (A, B)
    for nothing in ("", " , "):
        with pytest.raises(ValueError, match="no endpoint given"):
            parse_addresses(nothing)
    with pytest.raises(ValueError, match="no endpoint given"):
        parse_addresses([])


def test_the_active_is_asked_first_until_it_fails() -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.follow(LeaderHint(B, 3))
    assert endpoints.order() == (B, A, C)
    endpoints.failed(B)
    assert endpoints.order() == (A, B, C)
    endpoints.follow(LeaderHint(C, 2))
    assert endpoints.order() == (A, B, C), "still an older hint"


def test_one_that_failed_is_asked_last() -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.failed(A)
    assert endpoints.order() == (B, C, A)
    endpoints.failed(C)
    assert endpoints.order() == (B, C, A), "only the first one gives way"


def test_the_hint_of_the_newest_term_wins() -> None:
    endpoints = Endpoints([A, B, C])
    for hint in (LeaderHint(B, 5), LeaderHint(C, 4)):
        endpoints.follow(hint)
    assert endpoints.order()[0] == B
    endpoints.follow(LeaderHint(C, 6))
    assert endpoints.order()[0] == C


def test_a_hint_that_is_no_address_is_ignored() -> None:
    endpoints = Endpoints([A])
    assert endpoints.follow(LeaderHint("nonsense", 9)) is None
    assert endpoints.order() == (A,)


def test_learned_addresses_are_bounded_and_given_ones_stay() -> None:
    endpoints = Endpoints([A, B])
    forgotten = [endpoints.follow(LeaderHint(f"n{i}:1", i)) for i in range(LEARNED_MAX + 3)]
    assert forgotten == [None] * LEARNED_MAX + ["n0:1", "n1:1", "n2:1"]
    assert len(endpoints.addresses) == LEARNED_MAX + 2
    assert set(endpoints.addresses) >= {A, B}


def test_a_round_asks_each_once_and_without_waiting() -> None:
    call = attempts(Endpoints([A, B, C]))
    assert [ask(call) for _ in range(3)] == [A, B, C]
    assert call.pause_s(NOW) > 0


def test_a_hint_in_the_middle_of_a_round_is_asked_next_unless_it_was_already() -> None:
    endpoints = Endpoints([A, B, C])
    call = attempts(endpoints)
    assert ask(call) == A
    endpoints.follow(LeaderHint(C, 2))
    assert ask(call) == C
    endpoints.follow(LeaderHint(A, 3))
    assert ask(call) == B
    endpoints.follow(LeaderHint(D, 4))
    assert ask(call) == D
    assert call.pause_s(NOW) > 0
    assert call.next(NOW).address == D, "a new round begins with the active"


def test_pauses_double_up_to_a_tenth_of_a_second() -> None:
    call = attempts(Endpoints([A]), timeout_s=1e9)
    pauses = []
    for _ in range(100):
        call.next(NOW)
        pauses.append(call.pause_s(NOW))
    full = [min(0.1, 0.005 * 2**i) for i in range(100)]
    for pause, longest in zip(pauses, full, strict=True):
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == 100, "jitter keeps clients apart"


def test_a_pause_ends_with_the_deadline() -> None:
    call = attempts(Endpoints([A]), timeout_s=1.0)
    call.next(NOW)
    assert call.pause_s(NOW + 0.999) == pytest.approx(0.001)
    call.next(NOW)
    assert call.pause_s(NOW + 2) == 0


def test_a_write_may_take_all_the_time_and_a_read_leaves_some_for_another_node() -> None:
    several, one = Endpoints([A, B]), Endpoints([A])
    assert attempts(several, timeout_s=10).next(NOW).timeout_s == 10
    assert attempts(several, timeout_s=10, write=False).next(NOW).timeout_s == 5
    assert attempts(several, timeout_s=2, write=False).next(NOW).timeout_s == 1.5
    assert attempts(several, timeout_s=1, write=False).next(NOW).timeout_s == 1
    assert attempts(one, timeout_s=10, write=False).next(NOW).timeout_s == 10


def test_no_attempt_begins_in_the_last_millisecond() -> None:
    call = attempts(Endpoints([A]), timeout_s=1.0)
    with pytest.raises(DeadlineExceeded):
        call.next(NOW + 0.9995)


def test_unavailable_means_that_none_could_be_reached() -> None:
    call = attempts(Endpoints([A, B]))
    call.note(A, Outcome.NEVER_SENT, "refused")
    call.note(B, Outcome.NEVER_SENT, "no such name")
    with pytest.raises(Unavailable) as caught:
        call.next(NOW + 6)
    assert caught.value.said == ((A, "refused"), (B, "no such name"))
    assert "a:1: refused; b:1: no such name" in str(caught.value)


def test_deadline_exceeded_means_that_some_were_reached() -> None:
    call = attempts(Endpoints([A, B]))
    call.note(A, Outcome.NOT_ACTIVE, "refused")
    call.note(A, Outcome.NEVER_SENT, "refused")
    call.note(B, Outcome.NOT_ACTIVE, "a standby")
    with pytest.raises(DeadlineExceeded) as caught:
        call.next(NOW + 6)
    assert dict(caught.value.said) == {A: "refused", B: "a standby"}


def test_an_attempt_waits_for_a_connection_once_and_not_for_long() -> None:
    call = attempts(Endpoints([A, B]))
    assert [call.next(NOW).connect_s for _ in range(2)] == [CONNECT_S] * 2
    assert call.pause_s(NOW) > 0
    assert call.next(NOW).connect_s == 0
    assert attempts(Endpoints([A]), timeout_s=0.1).next(NOW).connect_s == pytest.approx(0.05)


def test_an_attempt_is_given_up_for_the_active_of_a_newer_term() -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.heard(5)
    attempt = attempts(endpoints).next(NOW)
    assert (attempt.address, attempt.term) == (A, 5)
    assert endpoints.moved(attempt, silent=False) is None
    endpoints.follow(LeaderHint(B, 6))
    assert endpoints.moved(attempt, silent=False) == LeaderHint(B, 6)
    assert endpoints.moved(attempts(endpoints).next(NOW), silent=True) is None, (
        "at the active itself"
    )


@pytest.mark.parametrize(
    ("known", "claims"),
    [
        (5, [LeaderHint(B, 5)]),  # it was so before: etcd's followers serve too
        (5, [LeaderHint(B, 4)]),  # deposed, and does not know it yet
        (0, [LeaderHint(B, 6)]),  # nobody knows what was before
        (5, [LeaderHint(B, 6), LeaderHint(A, 7)]),  # it is the active again
    ],
)
def test_an_attempt_is_not_given_up_for_less(known: int, claims: list[LeaderHint]) -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.heard(known)
    attempt = attempts(endpoints).next(NOW)
    for claim in claims:
        endpoints.follow(claim)
    assert endpoints.moved(attempt, silent=False) is None


@pytest.mark.parametrize("known", [0, 5, 6])
def test_an_attempt_at_a_silent_node_is_given_up_for_any_other_active(known: int) -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.heard(known)
    attempt = attempts(endpoints).next(NOW)
    assert endpoints.moved(attempt, silent=True) is None, "nobody else is"
    endpoints.follow(LeaderHint(B, 6))
    assert endpoints.moved(attempt, silent=True) == LeaderHint(B, 6)
    endpoints.heard(7)
    assert endpoints.moved(attempt, silent=True) is None, "not even B, maybe"


def test_a_claim_is_out_of_date_once_a_newer_term_is_heard_of() -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.heard(5)
    attempt = attempts(endpoints).next(NOW)
    endpoints.follow(LeaderHint(B, 6))
    endpoints.heard(7)
    assert endpoints.moved(attempt, silent=False) is None
    endpoints.follow(LeaderHint(B, 6))
    assert endpoints.moved(attempt, silent=False) is None
    endpoints.heard(3)
    assert endpoints.term == 7


def test_looks_are_spaced_however_many_calls_are_slow() -> None:
    endpoints = Endpoints([A, B])
    moments = [NOW + step * LOOK_EVERY_S / 10 for step in range(31)]
    assert sum(endpoints.look_due(now) for now in moments for _ in range(50)) in (3, 4)


@given(
    given_ones=st.lists(st.sampled_from([A, B, C]), min_size=1, unique=True),
    events=st.lists(
        st.tuples(
            st.sampled_from(["failed", "follow"]),
            st.sampled_from([A, B, C, D, "e:1"]),
            st.integers(0, 5),
        )
    ),
)
def test_whatever_is_learned_a_round_asks_nobody_twice_and_omits_nobody(
    given_ones: list[str], events: list[tuple[str, str, int]]
) -> None:
    endpoints = Endpoints(given_ones)
    call = attempts(endpoints)
    asked: list[str] = []
    for kind, address, term in events:
        if kind == "failed":
            endpoints.failed(address)
        else:
            endpoints.follow(LeaderHint(address, term))
        if call.pause_s(NOW) > 0:
            assert sorted(asked) == sorted(set(asked))
            assert set(asked) == set(endpoints.addresses)
            asked = []
        asked.append(call.next(NOW).address)
        assert len(asked) == len(set(asked))
