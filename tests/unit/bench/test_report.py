"""Percentiles, histograms and what is written for machines."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvbench.failover import Fault, Options, Result, Round
from kvbench.failover_report import failover_document, rounds_table
from kvbench.flavor import KVSERVER
from kvbench.history import judge
from kvbench.report import (
    distribution,
    file_system,
    histogram,
    histogram_lines,
    machine,
    ms,
    percentile,
    plain,
    print_table,
    save_json,
    shown_version,
)
from kvbench.timeline import Parts

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("percent", "expected"), [(5, 15), (30, 20), (40, 20), (50, 35), (90, 50), (100, 50)]
)
def test_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([35, 20, 15, 50, 40], percent) == expected


def test_no_rounding_error_moves_a_rank() -> None:
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile(list(range(1, 101)), 7) == 7
    assert percentile(list(range(1, 11)), 90) == 9


@given(NUMBERS, st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    smaller = [value for value in values if value < found]
    assert len(smaller) * 100 < percent * len(values)


def test_a_distribution() -> None:
    found = distribution([0.4, 0.1, 0.3, 0.2])
    assert found is not None
    assert (found.count, found.min, found.median, found.max) == (4, 0.1, 0.2, 0.4)
    assert found.p90 == found.p99 == 0.4


def test_nothing_has_no_distribution() -> None:
    assert distribution([]) is None
    assert histogram([]) == []
    assert histogram_lines([]) == []


@given(NUMBERS, st.integers(1, 12))
def test_every_value_is_in_one_bin(values: list[float], bins: int) -> None:
    found = histogram(values, bins)
    assert sum(each.count for each in found) == len(values)
    assert len(found) <= bins
    assert found[0].low == min(values)
    assert found[-1].high == pytest.approx(max(values))


def test_the_bars_of_a_histogram() -> None:
    lines = histogram_lines([0.001, 0.001, 0.001, 0.001, 0.009])
    assert lines[0].count("#") == 40
    assert lines[-1].count("#") == 10
    assert lines[1].count("#") == 0


def test_milliseconds() -> None:
    assert ms(0.01234) == "12.3"
    assert ms(None) == "-"


def test_our_version_is_the_servers_own() -> None:
    assert shown_version("3.5.0+kvserver.0.1.0") == "0.1.0"
    assert shown_version("3.5.1") == "3.5.1"


@pytest.mark.parametrize("width", [30, 80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_cell_of_a_table_is_cut(width: int, terminal: bool) -> None:
    out = io.StringIO()
    parts = Parts(12.5, 12.4, 1.1, None, 0.1, 0.2)
    one = Round(10, "n1", "n2", parts, 1, 2345, 6789, 12.345, 54321, {"UNAVAILABLE": 46600})
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    print_table(console, rounds_table(Result([one], judge([], {}), "1")))
    said = out.getvalue()
    assert "…" not in said
    head, _, row = (line.split() for line in said.splitlines()[2:5])
    assert head[-3:] == ["s", "reads", "declined"]
    assert row == [
        "10", "n1", "->", "n2", "12500.0", "12400.0", "1100.0", "-", "100.0", "200.0", "2345",
        "6789", "12.35", "54321", "46600",
    ]  # fmt: skip


def test_the_document_of_a_run_says_how_often_each_answer_was_declined() -> None:
    parts = Parts(0.1, 0.1, None, None, None, None)
    one = Round(1, "n1", None, parts, 0, 1, 2, 0.5, 3, {"UNAVAILABLE: no": 4})
    options = Options(KVSERVER, Fault.STOP, 1, 3, 7, 0.05)
    made = failover_document(options, Result([one], judge([], {}), "1"), {"cores": 2})
    found = json.loads(json.dumps(plain(made)))
    assert found["options"]["fault"] == "stop"
    (only,) = found["rounds"]
    assert only["declined"] == {"UNAVAILABLE: no": 4}
    assert only["parts"]["recovery"] == 0.1
    assert found["distributions"]["window"]["median"] == 0.1
    assert found["distributions"]["detection"] is None
    assert (found["verdict"]["lost"], found["broken"]) == ([], {})


def test_json_holds_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    save_json(file, {"verdict": judge([], {}), "s": 0.12345678, "k": ("é", None, True), "p": file})
    found = json.loads(file.read_text())
    assert found["verdict"]["lost"] == []
    assert (found["s"], found["k"], found["p"]) == (0.123457, ["é", None, True], str(file))
    assert plain({1: 2.0}) == {"1": 2.0}


def test_facts_of_the_machine(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert found["cores"]
    assert found["data_file_system"] == file_system(tmp_path)
    json.dumps(plain(found))
