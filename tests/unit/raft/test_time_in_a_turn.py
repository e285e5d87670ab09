"""Time passes within a turn: what was not due when a guard looked may be due a moment later."""

import pytest
from support.sim_disk import SimClock
from support.simulation import Cluster

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
