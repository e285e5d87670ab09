"""Generated steps with watches, on a real etcd and on this server: the same is told.

The answers to the steps are compared as they are. Events are compared watcher by watcher: in which
responses they come depends, in the past, on when each server reads its history.

`KV_TEST_EXAMPLES=20000 pytest --timeout=7200 tests/compat/test_watch_sequences_against_etcd.py`
runs it long, with other sequences every time.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.etcd import running_etcd
from support.kv_requests import (
    KEYS,
    Request,
    any_key,
    compactions,
    deletes,
    ends,
    puts,
    safe_txns,
)
from support.node import CHANNEL_OPTIONS, running_node
from support.watch_play import Cancel, Close, Create, Do, Player, Progress, Step
from support.watch_streams import Side, Stream

from kvpb.rpc_pb2 import DeleteRangeRequest, PutRequest, WatchCreateRequest

pytestmark = pytest.mark.cluster

EXAMPLES = int(os.environ.get("KV_TEST_EXAMPLES", "0"))

streams = st.integers(0, 1)
numbers = st.sampled_from([0, 0, 0, 0, 1, 2, -3])
"""Watch ids: 0 is the server's choice."""
filters = st.lists(st.sampled_from(WatchCreateRequest.FilterType.values()), max_size=2)
creations = st.builds(
    WatchCreateRequest,
    key=st.one_of(any_key, st.just(b"\0")),
    range_end=st.one_of(ends, st.just(b"\0")),
    # 2 is the first change of the sequence; the last ones are mostly in the future
    start_revision=st.one_of(st.just(0), st.integers(2, 8), st.integers(2, 16)),
    filters=st.one_of(st.just([]), st.just([]), filters),
    prev_kv=st.booleans(),
    fragment=st.booleans(),
    watch_id=numbers,
)
good_puts = st.builds(PutRequest, key=st.sampled_from(KEYS), value=st.sampled_from([b"", b"1"]))
good_deletes = st.builds(DeleteRangeRequest, key=st.sampled_from(KEYS), range_end=ends)
_CHANGES: Sequence[st.SearchStrategy[Request]] = (
    good_puts,
    good_deletes,
    puts,
    deletes,
    safe_txns(),
    compactions,
)
_WATCHES: Sequence[st.SearchStrategy[Step]] = (
    st.builds(Create, streams, creations),
    st.builds(Cancel, streams, numbers),
    st.builds(Progress, streams),
    st.builds(Close, streams),
)


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    """Some changes, then changes and watches in turn, many of both."""
    found: list[Step] = [Do(draw(good_puts)) for _ in range(draw(st.integers(0, 4)))]
    for _ in range(draw(st.integers(1, 8))):
        found.append(draw(_WATCHES[max(draw(st.integers(-6, 3)), 0)]))
        for _ in range(draw(st.integers(0, 3))):
            found.append(Do(draw(_CHANGES[max(draw(st.integers(-6, 5)), 0)])))  # noqa: PERF401
    return found


@contextlib.contextmanager
def observed(endpoint: str) -> Iterator[tuple[Side, Stream]]:
    """A server, and a watch of all its keys."""
    with grpc.insecure_channel(endpoint, options=CHANNEL_OPTIONS) as channel:
        observer = Stream(channel)
        observer.ask(create_request=WatchCreateRequest(key=b"\0", range_end=b"\0"))
        assert observer.next().created
        yield Side(channel), observer
        observer.close()


Observed = tuple[Side, Stream]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Observed, Observed]]:
    with (
        running_etcd(tmp_path_factory.mktemp("etcd")) as etcd,
        running_node(tmp_path_factory.mktemp("node")) as node,
        observed(etcd.endpoint) as theirs,
        observed(node.endpoint) as ours,
    ):
        yield theirs, ours


@settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(sequences())
def test_any_sequence(both: tuple[Observed, Observed], sequence: list[Step]) -> None:
    players = [Player(*each) for each in both]
    for player in players:
        player.play(sequence)
        player.check()
    theirs, ours = (player.summary() for player in players)
    assert ours == theirs, f"\n--- etcd\n{theirs}\n--- kvserver\n{ours}"
