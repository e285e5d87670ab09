"""The window of what is on its way to a peer."""

from kvserver.raft.flow import WINDOW_BYTES_MAX, SendWindow


def test_a_window_is_open_until_it_holds_its_bytes() -> None:
    window = SendWindow()
    assert window.open()
    window.sent(1, WINDOW_BYTES_MAX - 1)
    assert window.open(), "the last message may go over the bound"
    window.sent(2, 1)
    assert not window.open()


def test_an_acknowledgement_frees_the_messages_that_it_covers_whole() -> None:
    window = SendWindow()
    window.sent(10, WINDOW_BYTES_MAX // 2)
    window.sent(20, WINDOW_BYTES_MAX // 2)
    window.acknowledged(9)
    assert not window.open(), "of a message that arrived in part nothing is freed"
    window.acknowledged(10)
    assert window.open()
    window.sent(30, WINDOW_BYTES_MAX // 2)
    assert not window.open()
    window.acknowledged(19)
    assert not window.open()
    window.acknowledged(30)
    window.sent(31, WINDOW_BYTES_MAX - 1)
    assert window.open(), "both were freed"


def test_what_is_acknowledged_again_frees_nothing_more() -> None:
    window = SendWindow()
    window.sent(10, WINDOW_BYTES_MAX)
    window.acknowledged(10)
    window.acknowledged(10)
    window.sent(20, WINDOW_BYTES_MAX)
    window.acknowledged(10)
    assert not window.open()


def test_a_cleared_window_holds_nothing() -> None:
    window = SendWindow()
    window.sent(10, WINDOW_BYTES_MAX)
    window.clear()
    window.sent(5, WINDOW_BYTES_MAX - 1)
    assert window.open()
    window.sent(6, 1)
    window.acknowledged(6)
    assert window.open(), "what was lost waits for no acknowledgement"
