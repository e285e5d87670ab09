"""What a person reads in the log of what happens again and again."""

from kvserver.telemetry import TOLD_AGAIN_S, TOLD_KEPT_MAX, Repeats


def test_what_repeats_is_told_now_and_then() -> None:
    repeats = Repeats()
    times = [now / 2 for now in range(int(4 * TOLD_AGAIN_S))]
    assert [now for now in times if repeats.is_news("a", now)] == [0.0, TOLD_AGAIN_S]
    assert repeats.is_news("b", times[-1])
    assert not repeats.is_news("b", times[-1])


def test_after_forgetting_all_is_news() -> None:
    repeats = Repeats()
    assert repeats.is_news("a", 1.0)
    repeats.forget()
    assert repeats.is_news("a", 1.0)


def test_a_flood_of_different_events_takes_no_memory() -> None:
    repeats = Repeats()
    for number in range(10 * TOLD_KEPT_MAX):
        repeats.is_news(number, 0.0)
    assert len(repeats._told) == TOLD_KEPT_MAX
