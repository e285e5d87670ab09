"""A failover's parts, from logs and acknowledgements made by hand."""

import pytest

from kvbench.history import Fate, Write
from kvbench.nodelog import LogEvent
from kvbench.timeline import Milestones, Outage, milestones, outage, parts

OFFSET = -1_000.0
"""Log times are 1000 s ahead of the client's clock."""


def event(at: float, name: str, **fields: str) -> LogEvent:
    return LogEvent(at - OFFSET, name, fields)


def write(begun: float, ended: float, fate: Fate = Fate.ACKNOWLEDGED) -> Write:
    return Write("k", "v", begun, ended, fate)


def test_the_parts_add_up_to_the_recovery() -> None:
    events = {
        "n1": [event(9.0, "election.won", term="1")],
        "n2": [
            event(10.02, "election.campaign", term="2"),
            event(10.05, "election.won", term="2"),
            event(10.06, "role.changed", role="active", term="2"),
        ],
        "n3": [event(10.03, "election.campaign", term="2")],
    }
    nodes = milestones(events, 10.0, OFFSET, "n1")
    assert nodes.successor == "n2"
    assert nodes.campaigns == 2
    found = parts(10.0, Outage(0.081, 10.08), nodes)
    assert found.window == pytest.approx(0.081)
    assert found.recovery == pytest.approx(0.08)
    assert found.detection == pytest.approx(0.02, abs=1e-6)
    assert found.election == pytest.approx(0.03, abs=1e-6)
    assert found.activation == pytest.approx(0.01, abs=1e-6)
    assert found.first_write == pytest.approx(0.02, abs=1e-6)
    steps = (found.detection, found.election, found.activation, found.first_write)
    assert sum(step for step in steps if step is not None) == pytest.approx(found.recovery)


def test_what_happened_before_the_fault_or_to_the_victim_does_not_count() -> None:
    events = {
        "n1": [event(10.5, "election.campaign"), event(10.5, "election.won")],
        "n2": [event(9.9, "election.campaign"), event(9.9, "election.won")],
        "n3": [],
    }
    assert milestones(events, 10.0, OFFSET, "n1") == Milestones(None, None, None, None)


def test_times_cut_to_the_millisecond_do_not_fall_before_the_fault() -> None:
    events = {"n2": [event(9.9995, "election.campaign"), event(10.001, "election.won")]}
    nodes = milestones(events, 10.0, OFFSET, "n1")
    assert nodes.campaign == 10.0


def test_stepping_down_is_not_serving() -> None:
    events = {"n2": [event(10.1, "election.won"), event(10.2, "role.changed", role="standby")]}
    assert milestones(events, 10.0, OFFSET, "n1").active is None


def test_the_successor_is_who_serves_and_not_who_was_elected_first() -> None:
    events = {
        "n2": [event(10.1, "election.campaign"), event(10.2, "election.won")],
        "n3": [
            event(10.5, "election.campaign"),
            event(10.6, "election.won"),
            event(10.7, "role.changed", role="active"),
        ],
    }
    nodes = milestones(events, 10.0, OFFSET, "n1")
    assert nodes.successor == "n3"
    found = parts(10.0, Outage(0.9, 10.9), nodes)
    assert found.detection == pytest.approx(0.1, abs=1e-6)
    assert found.election == pytest.approx(0.5, abs=1e-6), "the lost election is part of it"
    assert found.activation == pytest.approx(0.1, abs=1e-6)
    assert found.first_write == pytest.approx(0.2, abs=1e-6)


def test_of_two_elections_of_the_successor_the_one_before_it_served_counts() -> None:
    events = {
        "n2": [
            event(10.1, "election.won"),
            event(10.3, "election.won"),
            event(10.4, "role.changed", role="active"),
            event(11.0, "election.won"),
        ]
    }
    nodes = milestones(events, 10.0, OFFSET, "n1")
    assert nodes.won == pytest.approx(10.3, abs=1e-6)


def test_serving_begins_with_the_activation_or_else_with_the_election() -> None:
    assert Milestones("n2", 1.0, 2.0, 3.0).serves == 3.0
    assert Milestones("n2", 1.0, 2.0, None).serves == 2.0
    assert Milestones(None, 1.0, None, None).serves is None


def test_no_part_is_negative_if_the_old_active_answers_between_election_and_activation() -> None:
    """A switchover: elected at 10.07, serves at 10.08."""
    nodes = Milestones("n2", 10.05, 10.07, 10.08)
    writes = [
        write(9.98, 9.99),
        write(10.01, 10.075),  # committed before by the old active, its answer late
        write(10.076, 10.1),
    ]
    seen = outage(writes, 10.0, nodes.serves)
    assert seen is not None
    assert seen.recovered == 10.1
    assert parts(10.0, seen, nodes).first_write == pytest.approx(0.02)


def test_a_server_that_logs_no_activation() -> None:
    nodes = Milestones("n2", campaign=11.0, won=11.1, active=None)
    found = parts(10.0, Outage(1.3, 11.3), nodes)
    assert found.activation is None
    assert found.first_write == pytest.approx(0.2)


def test_no_log_at_all_leaves_the_clients_view() -> None:
    found = parts(10.0, Outage(1.3, 11.3), Milestones(None, None, None, None))
    assert found.recovery == pytest.approx(1.3)
    assert (found.detection, found.election, found.first_write) == (None, None, None)


def test_a_crash() -> None:
    writes = [
        write(9.98, 9.99),
        write(9.99, 10.2, Fate.UNKNOWN),
        write(10.2, 10.5, Fate.REFUSED),
        write(10.5, 10.6),
        write(10.6, 10.61),
    ]
    found = outage(writes, 10.0, 10.4)
    assert found is not None
    assert found.window_s == pytest.approx(0.61)
    assert found.recovered == 10.6


def test_an_answer_of_the_dead_that_was_under_way_is_not_the_recovery() -> None:
    writes = [write(9.98, 9.99), write(9.99, 10.0001), write(10.01, 10.6)]
    found = outage(writes, 10.0, None)
    assert found is not None
    assert found.window_s == pytest.approx(0.5999)
    assert found.recovered == 10.6


def test_a_switchover_counts_the_longest_gap_until_the_successor_answers() -> None:
    writes = [
        write(9.98, 9.99),
        write(9.99, 10.01),
        write(10.01, 10.05),  # still the old active
        write(10.05, 10.06),
        write(10.06, 10.08),  # the successor
        write(10.08, 11.0),  # has nothing to do with it
    ]
    found = outage(writes, 10.0, 10.07)
    assert found is not None
    assert found.window_s == pytest.approx(0.04)
    assert found.recovered == 10.08


@pytest.mark.parametrize(
    "writes",
    [
        [],
        [write(9.98, 9.99)],
        [write(9.98, 9.99), write(10.1, 10.2, Fate.UNKNOWN)],
        [write(9.98, 9.99), write(10.1, 10.2)],
    ],
    ids=["none", "none after", "none acknowledged", "none after the election"],
)
def test_an_outage_that_has_not_ended(writes: list[Write]) -> None:
    assert outage(writes, 10.0, 10.3) is None
