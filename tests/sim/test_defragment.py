"""Nodes are defragmented again and again while everything else goes wrong: no promise breaks."""

import pytest
from support.chaos import Chaos
from support.kinds import Kind
from support.memory_storage import MemoryCopies, MemoryStorage
from support.simulation import Cluster

from kvserver.errors import DiskError
from kvserver.raft import defragment
from kvserver.raft.journal import LogBounds

EVERY_S = 0.3


class Defragmenting(Chaos):
    """All nodes are asked to, the active too."""

    done = failed = 0
    _ask_to_defragment_at = 0.0

    def _step(self, end: float) -> None:
        now = self.cluster.clock.now
        if now >= self._ask_to_defragment_at:
            self._ask_to_defragment_at = now + EVERY_S
            for node in self.cluster.nodes.values():
                node.engine.defragment(self._ended)
        super()._step(end)

    def _ended(self, done: bool) -> None:
        if done:
            self.done += 1
        else:
            self.failed += 1


@pytest.mark.parametrize(
    "kind", [Kind(1), Kind(3), Kind(3, members=True), Kind(3, whole=True)], ids=str
)
def test_no_promise_breaks(
    kind: Kind, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # much happens while a copy is made, and it takes many turns to catch up
    monkeypatch.setattr(MemoryCopies, "COMPACT_TURNS", 200)
    monkeypatch.setattr(defragment, "SLICE_ENTRIES", 3)
    seeds = max(1, pytestconfig.getoption("--seeds") // 3)
    done = 0
    for seed in range(seeds):
        chaos = Defragmenting(seed, kind)
        chaos.run(seconds=15.0)
        done += chaos.done
    assert done > 10 * seeds


def test_a_copy_that_is_given_up_just_before_it_would_take_the_place() -> None:
    """The commit before that finds the log too long: here, since a restart allows it less."""
    cluster = Cluster(1, bounds=LogBounds(keep_entries=1000, hold_entries=5000))
    node = cluster.elect()
    for number in range(300):
        cluster.commit(b"w%d" % number)
    cluster.crash(node.me)
    cluster.bounds = LogBounds(keep_entries=10, hold_entries=20, trimmed_per_turn=8)
    node = cluster.start(node.name)
    cluster.run(1)  # all is committed: the next one is that before the switch
    assert node.status.active
    told: list[bool] = []
    node.engine.defragment(told.append)
    cluster.run(0.5)
    assert told == [False]
    for number in range(50):  # each commit of the state lets go of some old entries
        cluster.commit(b"x%d" % number)
        cluster.run(0.1)
    node.engine.defragment(told.append)
    cluster.run(0.5)
    assert told == [False, True]


@pytest.mark.parametrize("step", ["commit", "writer"])
def test_a_disk_that_fails_the_copy_ends_only_the_copy(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    cluster = Cluster(1)
    node = cluster.elect()
    cluster.commit(b"before")
    compacted = MemoryCopies.compacted

    def failed(*_: object, **__: object) -> None:
        raise DiskError("no room")

    def bad(copies: MemoryCopies) -> MemoryStorage | None:
        fresh = compacted(copies)
        if fresh is not None:
            monkeypatch.setattr(fresh, step, failed)
        return fresh

    told: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(MemoryCopies, "compacted", bad)
        node.engine.defragment(told.append)
        cluster.run(0.5)
    assert told == [False]
    cluster.commit(b"after")
    node.engine.defragment(told.append)
    cluster.run(0.5)
    assert told == [False, True]
