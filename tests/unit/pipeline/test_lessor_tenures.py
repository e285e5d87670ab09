"""The clock of the leases whoever the active is."""

import gc
import warnings
from typing import Any

import pytest
from support.lessor_bench import LOOK, Bench

from kvserver.errors import (
    NotActiveError,
    NotCapableError,
    OutcomeUnknownError,
    TooManyRequestsError,
)
from kvserver.mvcc.leases import SLACK_TTLS, LeaseChange, leases_after
from kvserver.pipeline import lessor as module


def test_a_standby_answers_nothing(bench: Bench) -> None:
    bench.grant(1, 5)
    assert bench.lessor.count == 1
    bench.loop.call_soon(bench.lessor.close)
    bench.loop.run()
    assert bench.lessor.count is None
    for ask in (bench.lessor.keep_alive([1]), bench.lessor.remaining(1), bench.lessor.all()):
        with pytest.raises(NotActiveError):
            bench.do(ask)
    bench.pass_time(10)
    assert bench.living == [1], "only an active ends leases"


def test_a_new_active_gives_everybody_the_full_time(bench: Bench) -> None:
    bench.grant(1, 5)
    bench.pass_time(4)
    bench.keep(1)
    bench.pass_time(4)
    heir = bench.crash()
    heir.pass_time(4.8)
    assert heir.living == [1]
    heir.pass_time(0.2 + LOOK)
    assert heir.living == []


@pytest.mark.parametrize("reign_s", [0.7, 2.0, 4.0, 9.0])
def test_failovers_keep_no_lease_alive(bench: Bench, reign_s: float) -> None:
    """The log knows of at least half of every reign, though nothing else is written."""
    ttl_s, began = 5, bench.clock.now
    bench.grant(1, ttl_s)
    while bench.living:
        assert bench.clock.now - began < 2 * ttl_s * (1 + SLACK_TTLS) + reign_s, "for ever"
        bench.pass_time(reign_s)
        bench = bench.crash()


@pytest.mark.parametrize("reign_s", [0.5, 2.0, 7.0])
def test_failovers_cost_no_lease_that_is_kept_alive(bench: Bench, reign_s: float) -> None:
    bench.grant(1, 3)
    for _ in range(20):
        end = bench.clock.now + reign_s
        while bench.clock.now < end:
            bench.pass_time(min(1.0, reign_s))
            assert bench.keep(1) == [3]
        bench = bench.crash()
    assert bench.living == [1]


def test_what_changes_while_the_rows_are_read_wins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOADED_PER_SLICE", 2)
    for lease in range(1, 10):
        bench.grant(lease, 100)
    heir = bench.crash()
    other = Bench(heir.log, 3)
    read = leases_after
    turns = iter([LeaseChange(7, None), LeaseChange(1, None)])

    def reading(*args: Any) -> Any:
        other.lessor.publish([each for each in [next(turns, None)] if each is not None])
        return read(*args)

    monkeypatch.setattr(module, "leases_after", reading)
    other.activate()
    assert other.do(other.lessor.all()) == [2, 3, 4, 5, 6, 8, 9]


def test_nothing_is_answered_before_all_rows_are_read(bench: Bench) -> None:
    bench.grant(1, 100)
    bench.loop.kill()
    heir = Bench(bench.log, 2)
    heir.confirmed = False
    heir.activate()
    task = heir.begin(heir.lessor.keep_alive([1]))
    heir.pass_time(1)
    assert not task.done()
    heir.confirmed = True
    heir.pass_time(0.2)
    assert task.result() == [100]


def test_an_end_that_an_earlier_tenure_decided_is_waited_for(bench: Bench) -> None:
    """The raft thread was stuck for a moment: this node lost its role and has it back, in one term.

    The end of a lease that was appended before is applied after it.
    """
    bench.let_an_end_be_in_flight()
    bench.become_standby()
    bench.become_active()
    asked = bench.begin(bench.lessor.keep_alive([1]))
    bench.pass_time(1)
    assert not asked.done(), "the lease is about to end"
    assert bench.lessor.count is None
    bench.commit()
    bench.pass_time(0.1)
    assert asked.result() == [0]
    assert bench.living == []


def test_a_tenure_insists_on_its_own_entry(bench: Bench) -> None:
    """What became of one is unknown, another was not taken: neither says anything of the past."""
    bench.grant(1, 60)
    bench.become_standby()
    bench.hold_commits()
    bench.outcomes = [OutcomeUnknownError(), NotActiveError(), TooManyRequestsError()]
    bench.become_active()
    asked = bench.begin(bench.lessor.keep_alive([1]))
    bench.pass_time(1)
    assert not bench.outcomes
    assert not asked.done()
    bench.commit()
    bench.pass_time(0.1)
    assert asked.result() == [60]


def test_a_cluster_of_older_members_is_not_waited_for(bench: Bench) -> None:
    """None of its tenures can have proposed the end of a lease."""
    bench.become_standby()
    bench.outcomes = [NotCapableError()] * 20
    bench.become_active()
    assert bench.keep(1) == [0]


def test_a_tenure_may_be_over_before_its_tasks_have_begun(bench: Bench) -> None:
    """A coroutine that was made for them and never awaited would be a warning in the log."""

    def come_and_go() -> None:
        bench.lessor.activate(bench.term)
        bench.lessor.close()

    bench.loop.call_soon(come_and_go)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        bench.loop.run()
        gc.collect()
    assert [str(each.message) for each in told] == []
