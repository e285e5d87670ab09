"""Only time in which the watcher itself ran counts as a stall."""

import pytest

from kvserver.pipeline.watchdog import (
    STEP_S_MAX,
    STUCK,
    MainStep,
    MainWatch,
    RaftWatch,
    StallMeter,
)


def test_progress_is_no_stall() -> None:
    meter = StallMeter(0.0)
    assert [meter.look(look * 0.05, progress=look) for look in range(1, 50)] == [0.0] * 49


def test_the_first_look_is_no_stall_whatever_the_count() -> None:
    for progress in (0, 1, 10**12):
        assert StallMeter(0.0).look(0.05, progress) == 0.0


def test_a_stall_adds_up_between_looks() -> None:
    meter = StallMeter(0.0)
    meter.look(0.0, 7)
    for look in range(1, 101):
        meter.look(look * 0.05, 7)
    assert meter.stalled_s == pytest.approx(5.0)


def test_progress_ends_a_stall_and_the_next_begins_at_nothing() -> None:
    meter = StallMeter(0.0)
    meter.look(0.0, 7)
    meter.look(0.05, 7)
    assert meter.look(0.10, 8) == 0.0
    assert meter.look(0.15, 8) == pytest.approx(0.05)


def test_a_pause_of_the_watcher_is_not_the_watcheds_stall() -> None:
    """SIGSTOP, a suspended machine: both stood still."""
    meter = StallMeter(0.0)
    meter.look(0.05, 7)
    assert meter.look(3_600.0, 7) == STEP_S_MAX
    assert meter.look(7_200.0, 7) == 2 * STEP_S_MAX


def test_looks_are_measured_one_from_the_other() -> None:
    meter = StallMeter(100.0)
    meter.look(100.0, 1)
    meter.look(100.02, 1)
    meter.look(100.03, 1)
    assert meter.stalled_s == pytest.approx(0.03)


def test_a_node_without_turns_steps_aside_and_is_back_with_the_next_turn() -> None:
    watch = RaftWatch(0.0, stuck_after_s=0.62)
    obstacles = []
    for look in range(16):
        watch.look(look * 0.05, turns=1, steps=0)
        obstacles.append(watch.obstacle)
    assert obstacles == [None] * 13 + [STUCK] * 3
    watch.look(0.8, turns=2, steps=0)
    assert watch.obstacle is None


def test_steps_within_a_turn_are_signs_of_life_and_no_turns() -> None:
    watch = RaftWatch(0.0, stuck_after_s=0.6)
    for look in range(40):
        watch.look(look * 0.05, turns=1, steps=look)
    assert watch.obstacle == STUCK
    assert watch.silent_s == 0.0
    watch.look(2.0, turns=1, steps=39)
    assert watch.silent_s == pytest.approx(0.05)


def test_a_main_thread_that_stands_still_is_handed_over_for_once_then_left_to_the_others() -> None:
    watch = MainWatch(0.0, hand_over_after_s=0.62, withhold_after_s=0.4)
    steps = [watch.look(look * 0.05, beats=1) for look in range(26)]
    assert steps[:13] == [MainStep.NONE] * 13
    assert steps[13] is MainStep.HAND_OVER
    assert steps[14:22] == [MainStep.NONE] * 8
    assert set(steps[22:]) == {MainStep.WITHHOLD}
    assert watch.silent_s > 1.2
    assert watch.look(1.3, beats=2) is MainStep.NONE
    assert watch.silent_s == 0.0
