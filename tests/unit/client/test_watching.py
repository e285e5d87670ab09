"""How a watch goes on: where the next stream begins, and what ends it."""

import pytest

from kvclient._watching import Course
from kvclient.errors import Compacted, ServerError
from kvpb.kv_pb2 import Event, KeyValue
from kvpb.rpc_pb2 import ResponseHeader, WatchCreateRequest, WatchResponse


def course(start: int = 0) -> Course:
    return Course(WatchCreateRequest(key=b"k", start_revision=start))


def created(revision: int) -> WatchResponse:
    return WatchResponse(created=True, header=ResponseHeader(revision=revision))


def changes(*revisions: int) -> WatchResponse:
    return WatchResponse(
        events=[Event(kv=KeyValue(key=b"k", mod_revision=revision)) for revision in revisions]
    )


def asked(watch: Course) -> int:
    return watch.request().create_request.start_revision


def test_a_watch_of_what_comes_goes_on_behind_the_moment_it_began() -> None:
    watch = course()
    assert asked(watch) == 0
    assert watch.take(created(7)) == []
    assert asked(watch) == 8
    assert watch.take(created(20)) == []  # of the second stream, which begins at 8
    assert asked(watch) == 8


def test_it_goes_on_behind_the_newest_event_and_skips_what_comes_again() -> None:
    watch = course(5)
    asked(watch)
    watch.take(created(9))
    assert [each.kv.mod_revision for each in watch.take(changes(6, 8, 8))] == [6, 8, 8]
    assert asked(watch) == 9
    assert [each.kv.mod_revision for each in watch.take(changes(8, 9))] == [9]


def test_a_sign_of_progress_of_its_own_moves_it_and_the_answer_to_a_request_does_not() -> None:
    watch = course(5)
    asked(watch)
    watch.take(WatchResponse(watch_id=-1, header=ResponseHeader(revision=30)))
    assert asked(watch) == 5
    watch.take(WatchResponse(watch_id=0, header=ResponseHeader(revision=30)))
    assert asked(watch) == 31


def test_what_ends_it() -> None:
    with pytest.raises(Compacted):
        course(1).take(WatchResponse(canceled=True, compact_revision=4))
    with pytest.raises(ServerError, match="range is empty"):
        course(1).take(WatchResponse(created=True, canceled=True, cancel_reason="range is empty"))
