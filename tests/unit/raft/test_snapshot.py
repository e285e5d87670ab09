"""Members that are behind the log get a copy of the state; the log itself stays bounded."""

import pytest
from support.memory_storage import MemoryCopy
from support.simulation import Cluster, SimNode

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage, SnapshotChunk
from kvserver.errors import SnapshotFailedError
from kvserver.raft.journal import LogBounds
from kvserver.raft.snapshot import SILENT_S, SnapshotReceiver
from kvserver.raft.status import Received

BOUNDS = LogBounds(keep_entries=10, hold_entries=20, trimmed_per_turn=8)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster(3, bounds=BOUNDS)
    cluster.elect()
    return cluster


def write(cluster: Cluster, count: int) -> None:
    for number in range(count):
        cluster.commit(b"w%d" % number)


def leave_behind(cluster: Cluster) -> tuple[SimNode, str]:
    """Crash a standby and write on until the log can't help it any more."""
    active = cluster.elect()
    standby = next(iter(cluster.standbys()))
    cluster.crash(standby.me)
    write(cluster, 40)
    assert active.engine._journal.first_index > standby.machine.applied_index + 1
    return active, standby.name


def in_step(cluster: Cluster, name: str, active: SimNode) -> bool:
    node = cluster.node(name)
    return (
        node.machine.applied_index == active.machine.applied_index
        and node.machine.digest == active.machine.digest
    )


def events(node: SimNode) -> list[str]:
    return [name for name, _ in node.events]


def test_the_log_stays_bounded_while_a_standby_is_dead(cluster: Cluster) -> None:
    active, _ = leave_behind(cluster)
    write(cluster, 100)
    for node in cluster.nodes.values():
        entries, _ = node.engine._journal.size
        assert entries <= BOUNDS.keep_entries + BOUNDS.trimmed_per_turn
        assert min(node.storage.log.entries) == node.engine._journal.first_index
    assert active.engine._journal.first_index > 100


def test_a_standby_behind_the_log_gets_a_copy_and_follows_again(cluster: Cluster) -> None:
    active, name = leave_behind(cluster)
    node = cluster.start(name)
    identity, term = node.identity, node.engine._journal.term
    assert cluster.run(2, until=lambda: in_step(cluster, name, active))
    assert events(node).count("snapshot.adopted") == 1
    write(cluster, 3)
    assert cluster.run(1, until=lambda: in_step(cluster, name, active))
    # its own identity, never its sender's; a term at least as high as before
    cluster.crash(node.me)
    again = cluster.start(name)
    assert again.identity == identity
    assert again.engine._journal.term >= term
    assert cluster.run(2, until=lambda: in_step(cluster, name, active))


def test_who_adopts_a_copy_keeps_the_vote_it_cast(cluster: Cluster) -> None:
    active, name = leave_behind(cluster)
    node = cluster.start(name)
    cluster.run(2, until=lambda: "snapshot.receive" in events(node))
    before = (node.engine._journal.term, node.engine._journal.voted_for)
    cluster.run(2, until=lambda: "snapshot.adopted" in events(node))
    assert (node.engine._journal.term, node.engine._journal.voted_for) == before
    assert before[0] == active.status.term


def test_the_log_stays_bounded_while_no_copy_can_be_made(cluster: Cluster) -> None:
    """It is the disk without room for one on which the log would grow."""
    active, name = leave_behind(cluster)
    active.copies.failing = True
    cluster.start(name)
    for number in range(100):
        active.proposals.waiting.append(b"%d" % number)
        active.due = 0.0
        cluster.run(0.02)
    assert active.status.applied_index > 140
    entries, _ = active.engine._journal.size
    assert entries <= BOUNDS.keep_entries + BOUNDS.trimmed_per_turn
    assert not active.engine._sender.busy
    active.copies.failing = False
    assert cluster.run(3, until=lambda: in_step(cluster, name, active))


def test_a_copy_that_can_not_be_read_is_made_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    active, name = leave_behind(cluster)
    reads = 0
    read = MemoryCopy.read

    def failing_once(copy: MemoryCopy, offset: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 1:
            raise SnapshotFailedError
        return read(copy, offset, size)

    monkeypatch.setattr(MemoryCopy, "read", failing_once)
    cluster.start(name)
    assert cluster.run(3, until=lambda: in_step(cluster, name, active))
    assert reads > 1


def test_a_copy_that_can_not_be_opened_is_sent_again(cluster: Cluster) -> None:
    active, name = leave_behind(cluster)
    node = cluster.start(name)
    node.copies.fail_next_opening = True
    assert cluster.run(3 * SILENT_S, until=lambda: in_step(cluster, name, active))
    assert events(node).count("snapshot.adopted") == 1


def test_a_broken_connection_resumes_where_it_broke(cluster: Cluster) -> None:
    active, name = leave_behind(cluster)
    node = cluster.start(name)
    link = cluster.link(active.me, node.me)

    def part_arrived() -> bool:
        link.auto = False
        return any(m.HasField("snapshot_chunk") for m in cluster.move(active.me, node.me, 1))

    assert cluster.run(2, until=part_arrived)
    cluster.run(0.005)  # its reply travels back
    cluster.disconnect(active.me, node.me)
    seen: list[SnapshotChunk] = []

    def watch() -> bool:
        seen.extend(
            each.snapshot_chunk
            for each in cluster.move(active.me, node.me)
            if each.HasField("snapshot_chunk")
        )
        return in_step(cluster, name, active)

    assert cluster.run(3, until=watch)
    assert seen
    assert min(chunk.offset for chunk in seen) > 0


def test_a_receiver_that_dies_in_between_starts_over(cluster: Cluster) -> None:
    active, name = leave_behind(cluster)
    node = cluster.start(name)
    assert cluster.run(2, until=lambda: "snapshot.receive" in events(node))
    cluster.crash(node.me)
    cluster.run(0.1)
    cluster.start(name)
    assert cluster.run(3 * SILENT_S, until=lambda: in_step(cluster, name, active))


def test_who_leads_again_sends_no_copy_of_its_earlier_time() -> None:
    """It was still being made when leadership went; the log does not reach back to it any more."""
    cluster = Cluster(3, bounds=BOUNDS, copy_turns=40)
    active, name = leave_behind(cluster)
    node = cluster.start(name)
    assert cluster.run(1, until=lambda: active.engine._sender.busy)
    cluster.crash(node.me)
    successor = next(iter(cluster.standbys()))
    assert active.engine.hand_over(successor.me) is not None
    assert cluster.run(2, until=lambda: successor.status.active)
    cluster.run(0.5)
    write(cluster, 60)
    assert successor.engine.hand_over(active.me) is not None
    assert cluster.run(2, until=lambda: active.status.active)
    cluster.start(name)
    assert cluster.run(5, until=lambda: in_step(cluster, name, active))


def copy_of(node: SimNode, term: int) -> SnapshotChunk:
    """A copy of what is on its disk now, in one part."""
    node.copies.begin_copy()
    while (copy := node.copies.copy()) is None:
        pass
    data = b""
    while len(data) < copy.total:
        data += copy.read(len(data), 1 << 20)
    return SnapshotChunk(
        term=term, copy=copy.number, offset=0, total=copy.total, data=data, digest=copy.digest
    )


@pytest.mark.parametrize("more", [5, 60], ids=["in the log", "dropped from the log"])
def test_an_old_copy_is_not_adopted(cluster: Cluster, more: int) -> None:
    active = cluster.elect()
    write(cluster, 5)
    standby = next(iter(cluster.standbys()))
    base, chunk = active.machine.applied_index, copy_of(active, active.status.term)
    write(cluster, more)
    assert (standby.engine._journal.first_index > base) is (more > 5)
    cluster.carry(active.me, standby.me, PeerMessage(snapshot_chunk=chunk))
    cluster.run(1)
    assert "snapshot.receive" in events(standby)
    assert "snapshot.adopted" not in events(standby)
    assert standby.copies.rejected == 1, "its files are not needed any more"
    assert in_step(cluster, standby.name, active)


def test_a_copy_takes_no_entry_away_that_was_acknowledged(cluster: Cluster) -> None:
    """It ends at an entry that the log holds, and more after it, though nobody said "committed".

    So it is when a leader dies with its copy just arrived, and the next one only sends entries.
    """
    active = cluster.elect()
    cluster.run(0.5)  # what follows an election is over
    standby = next(iter(cluster.standbys()))
    cluster.link(active.me, standby.me).auto = False
    for number in range(2):
        active.proposals.in_flight = None
        active.proposals.waiting.append(b"%d" % number)
        active.turn()
    appends = [m for m in cluster.move(active.me, standby.me) if m.append_entries.entries]
    cluster.run(0.05)
    assert len(appends) == 2
    base, last = active.machine.applied_index, standby.engine._journal.last_index
    assert base == last
    chunk = copy_of(active, active.status.term)
    after = raft_pb2.AppendEntries(
        term=active.status.term, prev_log_index=last, prev_log_term=active.status.term,
        entries=[raft_pb2.Entry(index=last + 1, term=active.status.term, payload=b"\0more")],
        commit_index=standby.status.commit_index,
    )  # fmt: skip
    assert standby.status.commit_index < base
    standby.engine.post(Received(active.me, PeerMessage(append_entries=after)))
    standby.turn()
    standby.engine.post(Received(active.me, PeerMessage(snapshot_chunk=chunk)))
    for _ in range(10):
        standby.turn()
    assert "snapshot.receive" in events(standby)
    assert standby.engine._journal.last_index == last + 1


def test_in_every_turn_a_copy_of_which_no_more_comes_may_go(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in (cluster.elect(), next(iter(cluster.standbys()))):
        looked: list[bool] = []
        monkeypatch.setattr(node.copies, "forget_silent", lambda looked=looked: looked.append(True))
        node.turn()
        assert looked


def test_nothing_else_is_received_while_a_copy_is_opened(cluster: Cluster) -> None:
    """The parts of another leader's would be written where the first one's file still is."""
    active = cluster.elect()
    write(cluster, 1)
    term, standby = active.status.term, next(iter(cluster.standbys()))
    first = copy_of(active, term)
    active.copies.end_copy()
    cluster.commit(b"more")
    cluster.run(0.05)
    other = copy_of(active, term)
    receiver = SnapshotReceiver(standby.copies, standby.machine.applied_of, lambda *_, **__: None)
    assert receiver.on_chunk(first) == first.total
    assert receiver.on_chunk(first) == first.total
    assert receiver.on_chunk(other) == 0
    while (taken := receiver.take()) is None:
        pass
    assert taken[1].index < active.machine.applied_index
    assert receiver.on_chunk(other) == other.total


def test_parts_that_are_not_kept_are_no_news(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: they come again every other second."""
    active = cluster.elect()
    write(cluster, 1)
    chunk, standby = copy_of(active, active.status.term), next(iter(cluster.standbys()))
    told: list[str] = []
    receiver = SnapshotReceiver(
        standby.copies, standby.machine.applied_of, lambda name, **_: told.append(name)
    )
    with monkeypatch.context() as patch:
        patch.setattr(standby.copies, "receive", lambda *_: 0)
        assert receiver.on_chunk(chunk) == 0
    assert told == []
    assert receiver.on_chunk(chunk) == chunk.total
    assert told == ["snapshot.receive"]
