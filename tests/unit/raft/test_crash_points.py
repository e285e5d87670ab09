"""The log is durable first, the state follows: whatever a crash leaves of the two fits together."""

import itertools

import pytest
from support.simulation import Cluster, SimNode

from kvserver.errors import DataDirError, DiskError
from kvserver.raft.engine import EFFECTS_HELD_S, RaftEngine
from kvserver.raft.journal import LogBounds

BOUNDS = LogBounds(keep_entries=1, hold_entries=2, trimmed_per_turn=100)


def begin(size: int = 3) -> Cluster:
    cluster = Cluster(size, bounds=BOUNDS)
    cluster.elect()
    cluster.run(0.2)  # what follows an election is over
    return cluster


NUMBERS = itertools.count()


def write(cluster: Cluster, count: int) -> None:
    for _ in range(count):
        cluster.commit(b"w%d" % next(NUMBERS))


def stored(node: SimNode) -> int:
    """Applied index of the state on the disk."""
    with node.storage.read() as txn:
        return node.machine.applied_of(txn)[0]


def again(cluster: Cluster, node: SimNode, *, back: bool = False) -> SimNode:
    cluster.crash(node.me, back=back)
    return cluster.start(node.name)


def test_effects_that_were_not_committed_come_again_from_the_log() -> None:
    cluster = begin()
    standby, active = next(cluster.standbys()), cluster.elect()
    active.proposals.waiting.extend(b"w%d" % next(NUMBERS) for _ in range(3))
    active.due = 0.0
    assert cluster.run(1, until=lambda: stored(standby) < standby.machine.applied_index)
    before = standby.machine.applied_index
    node = again(cluster, standby)
    assert node.status.applied_index < before
    write(cluster, 1)
    assert node.machine.digest == cluster.elect().machine.digest


@pytest.mark.parametrize("size", [1, 3])
def test_the_newest_commit_of_the_state_may_be_taken_back(size: int) -> None:
    cluster = begin(size)
    for _ in range(5):
        write(cluster, 3)
        cluster.run(2 * EFFECTS_HELD_S)
        write(cluster, 1)
        cluster.run(2 * EFFECTS_HELD_S)
        node = cluster.elect()
        before = node.machine.applied_index
        assert stored(node) == before
        node = again(cluster, node, back=True)
        assert node.status.applied_index < before, "else this shows nothing"
        assert cluster.elect().machine.applied_index >= before


def test_nothing_is_trimmed_whose_effects_a_crash_may_take_back() -> None:
    cluster = begin(1)
    node = cluster.elect()
    seen = set()
    for _ in range(10):
        write(cluster, 2)
        before = stored(node)
        cluster.run(2 * EFFECTS_HELD_S)
        assert stored(node) == node.machine.applied_index > before
        first = node.engine._journal.first_index
        assert first <= before
        seen.add(first)
    assert len(seen) > 5, "it is trimmed at all"


def test_a_log_trimmed_at_the_newest_commit_would_not_reach_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What that guard is worth."""
    real = RaftEngine._trim

    def trim(self: RaftEngine) -> None:
        self._settled_index = self._visible_index
        real(self)

    monkeypatch.setattr(RaftEngine, "_trim", trim)
    cluster = begin(1)
    write(cluster, 5)
    cluster.run(2 * EFFECTS_HELD_S)
    with pytest.raises(DataDirError, match="the state is that of log entry"):
        again(cluster, cluster.elect(), back=True)


def test_the_state_is_never_ahead_of_the_log() -> None:
    """A standby applies in the turn that brought the entry; its log goes first."""
    cluster = begin()
    standby = next(cluster.standbys())
    order: list[str] = []
    sync, commit = standby.storage.log.sync, standby.storage.commit

    def synced(state: bytes) -> None:
        order.append("log")
        sync(state)

    def committed(*, durable: bool = False) -> bool:
        log = standby.storage.log
        assert not log._pending
        order.append("state")
        return commit(durable=durable)

    standby.storage.log.sync = synced  # type: ignore[method-assign]
    standby.storage.commit = committed  # type: ignore[method-assign]
    for _ in range(5):
        write(cluster, 5)
        cluster.run(2 * EFFECTS_HELD_S)
    assert order.count("log") >= 25
    assert order.count("state") >= 5


def test_a_vote_is_named_by_the_state_soon() -> None:
    """So that damage to it can't pass for a torn end, though it brings no effects."""
    cluster = begin()
    standby = next(cluster.standbys())
    commits: list[float] = []
    commit = standby.storage.commit

    def committed(*, durable: bool = False) -> bool:
        commits.append(cluster.clock.now)
        return commit(durable=durable)

    standby.storage.commit = committed  # type: ignore[method-assign]
    syncs = standby.storage.log.syncs
    standby.engine._raft.follow(standby.status.term + 1)
    standby.due = 0.0
    began = cluster.clock.now
    cluster.run(EFFECTS_HELD_S / 2)
    assert standby.storage.log.syncs == syncs + 1
    cluster.run(EFFECTS_HELD_S)
    assert commits
    assert commits[0] - began <= 1.5 * EFFECTS_HELD_S


def test_a_log_that_does_not_reach_the_state_is_refused() -> None:
    cluster = begin(1)
    node = cluster.elect()
    write(cluster, 5)
    cluster.run(2 * EFFECTS_HELD_S)
    cluster.crash(node.me)
    log = node.storage.log
    log.entries.popitem()
    log._synced_last -= 1
    with pytest.raises(DataDirError, match="the state is that of log entry"):
        cluster.start(node.name)


def test_a_sync_that_fails_commits_no_state() -> None:
    cluster = begin(1)
    node = cluster.elect()
    node.storage.fail_next_sync = True
    commits = node.storage.commits
    node.proposals.waiting.append(b"x")
    with pytest.raises(DiskError):
        node.turn()
    assert node.storage.commits == commits
