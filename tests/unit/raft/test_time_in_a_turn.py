"""Time passes within a turn: what was not due when a guard looked may be due a moment later."""

import pytest
from support.sim_disk import SimClock
from support.simulation import Cluster


@pytest.mark.parametrize("step_s", [1e-6, 1e-4, 0.01])
def test_a_deadline_that_passes_within_a_turn_raises_no_term(
    step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found on a busy machine: the library stood by itself, without a pre-vote."""
    cluster = Cluster(3)
    active = cluster.elect()
    cluster.run(0.5)
    guest = next(iter(cluster.standbys()))
    # its connections stand, so that the library would ask for votes, and nothing comes through
    for other in cluster.nodes.keys() - {guest.me}:
        cluster.hold(other, guest.me)
    term = active.status.term

    def monotonic(clock: SimClock) -> float:
        clock.now += step_s
        return clock.now

    monkeypatch.setattr(SimClock, "monotonic", monotonic)
    cluster.run(1.4)
    assert guest.status.term == term
