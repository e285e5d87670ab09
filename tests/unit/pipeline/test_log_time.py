"""Log time goes on from the newest stamp, with the active's own clock, and never back."""

from hypothesis import given
from hypothesis import strategies as st

from kvserver.pipeline.log_time import LogClock


def test_a_leadership_begins_at_the_newest_stamp() -> None:
    assert LogClock(5_000.0, 1_234).stamp(5_000.0) == 1_234


def test_it_counts_milliseconds_of_the_clock() -> None:
    clock = LogClock(50.0, 7)
    assert clock.stamp(50.25) == 257
    assert clock.stamp(50.2509) == 257, "a millisecond counts when it is over"
    assert clock.stamp(3_650.0) == 3_600_007


def test_a_clock_of_another_age_does_not_matter() -> None:
    """The next active's monotonic clock began at another moment."""
    last = LogClock(1_000_000.0, 0).stamp(1_000_001.0)
    assert LogClock(3.0, last).stamp(3.5) == 1_500


def test_a_clock_that_steps_back_can_not_undo_what_was_stamped_before() -> None:
    assert LogClock(50.0, 7).stamp(49.0) == 7


@given(
    st.integers(0, 2**50),
    st.floats(0, 1e9),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=20),
)
def test_stamps_never_go_back(last: int, start: float, steps: list[float]) -> None:
    clock = LogClock(start, last)
    stamps = [clock.stamp(start + step) for step in sorted(steps)]
    assert stamps == sorted(stamps)
    assert stamps[0] >= last
