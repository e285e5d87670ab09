"""Time passes within a turn: what was not due when a guard looked may be due a moment later."""

import pytest
from support.sim_disk import SimClock
from support.simulation import Cluster

from kvserver.raft.entry import REGULAR

STEP_S = 1e-6


def test_a_deadline_that_passes_within_a_turn_raises_no_term(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found on a busy machine: the library stood by itself, without a pre-vote.

    Each look at the clock takes a moment, and the deadline passes between any two of a turn.
    """
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.run(0.5)
    guest = next(iter(cluster.standbys()))
    # its connections stand, so that the library would ask for votes, and nothing comes through
    for other in cluster.nodes.keys() - {guest.me}:
        cluster.hold(other, guest.me)
    term, looks = active.status.term, 0

    def monotonic(clock: SimClock) -> float:
        nonlocal looks
        looks += 1
        clock.now += STEP_S
        return clock.now

    monkeypatch.setattr(SimClock, "monotonic", monotonic)
    guest.turn()
    in_a_turn, looks = looks, 0
    assert in_a_turn > 2
    for place in range(2 * in_a_turn):
        guest.engine._raft.election_deadline = cluster.clock.now + (place + 0.5) * STEP_S
        guest.turn()
        assert guest.status.term == term, place


@pytest.mark.parametrize("what", ["disk", "command"])
def test_a_turn_that_takes_long_is_told_now_and_then(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(3)
    active = cluster.elect()
    engine = active.engine
    slow = engine._journal if what == "disk" else engine
    name = "sync" if what == "disk" else "_take_compacted"
    plain = getattr(slow, name)

    def take_long() -> object:
        cluster.clock.now += 0.2
        return plain()

    monkeypatch.setattr(slow, name, take_long)
    for _ in range(3):
        active.turn()
    monkeypatch.undo()
    active.turn()
    told = [fields for name, fields in active.events if name == "turn.slow"]
    assert len(told) == 1
    assert int(str(told[0]["ms"])) >= 200
    assert ("disk" in str(told[0]["reason"])) is (what == "disk")


def test_entries_that_take_long_are_applied_in_several_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between them peers are answered: whoever is silent for too long is not followed any more."""
    cluster = Cluster(3)
    active = cluster.elect()
    machine, raft, journal = active.machine, active.engine._raft, active.engine._journal
    cluster.run(0.5)
    for number in range(10):
        journal.add(REGULAR + b"%d" % number, journal.last_index + 1, raft.term)
    plain = machine.apply
    applied: list[int] = []

    def take_long(index: int, term: int, batch: bytes | None) -> None:
        cluster.clock.now += 0.02
        applied.append(index)
        plain(index, term, batch)

    monkeypatch.setattr(machine, "apply", take_long)
    raft.commit_index = journal.last_index
    before = raft.applied_index
    raft.apply_committed()
    assert len(applied) == 2
    assert raft.behind
    while raft.behind:
        raft.apply_committed()
    assert applied == list(range(before + 1, raft.commit_index + 1))
