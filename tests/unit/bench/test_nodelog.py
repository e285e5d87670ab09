"""Both dialects of logs, line by line."""

from datetime import UTC, datetime

import pytest

from kvbench.nodelog import LogEvent, parse_etcd, parse_kvserver, parse_lines

AT = datetime(2026, 11, 23, 8, 30, 0, 123456, tzinfo=UTC).timestamp()
AT_MS = datetime(2026, 11, 23, 8, 30, 0, 123000, tzinfo=UTC).timestamp()
STAMP = "2026-11-23T08:30:00.123456Z"


def test_a_line_of_the_server() -> None:
    line = f"{STAMP} info    node.ready client=127.0.0.1:2379 peer=127.0.0.1:2380\n"
    found = parse_kvserver(line)
    fields = {"client": "127.0.0.1:2379", "peer": "127.0.0.1:2380"}
    assert found == LogEvent(AT, "node.ready", fields)


def test_a_level_without_padding_and_an_event_without_fields() -> None:
    found = parse_kvserver(f"{STAMP} warning node.stopped")
    assert found is not None
    assert (found.name, found.fields) == ("node.stopped", {})


def test_quoted_values_with_escapes() -> None:
    line = rf'{STAMP} error node.failed reason="disk \"a\" is full\nback\\slash" exit_code=5 x=""'
    found = parse_kvserver(line)
    assert found is not None
    assert found.fields == {
        "reason": 'disk "a" is full\nback\\slash', "exit_code": "5", "x": ""
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Traceback (most recent call last):",
        '  File "node.py", line 1, in <module>',
        f"{STAMP} info    plain words without an event",
        f'{STAMP} info    node.ready reason="cut off',
        "2026-11-23 08:30:00 info    node.ready",
        '{"level":"info","ts":"2026-11-23T08:30:00.123Z","msg":"node.ready"}',
    ],
)
def test_lines_of_the_server_that_are_no_events(line: str) -> None:
    assert parse_kvserver(line) is None


def etcd_line(message: str, stamp: str = "2026-11-23T08:30:00.123Z") -> str:
    return f'{{"level":"info","ts":"{stamp}","caller":"zap_raft.go:77","msg":"{message}"}}\n'


@pytest.mark.parametrize(
    ("message", "name", "term"),
    [
        ("8e9e05c52164694d is starting a new election at term 2", "election.campaign", "3"),
        (
            "8e9e05c5 [term 4] received MsgTimeoutNow from 3f and starts an election to get leader",
            "election.campaign",
            "5",
        ),
        ("8e9e05c52164694d became leader at term 3", "election.won", "3"),
    ],
)
def test_lines_of_etcd(message: str, name: str, term: str) -> None:
    found = parse_etcd(etcd_line(message))
    assert found == LogEvent(AT_MS, name, {"term": term})


def test_etcd_with_a_local_time_zone() -> None:
    found = parse_etcd(etcd_line("ready to serve client requests", "2026-11-23T03:30:00.123-0500"))
    assert found == LogEvent(AT_MS, "node.ready", {})


@pytest.mark.parametrize(
    "line",
    ["", "panic: x", "[]", "3", '{"msg":"x"}', etcd_line("8e9e became follower at term 3")],
)
def test_lines_of_etcd_that_are_no_events(line: str) -> None:
    assert parse_etcd(line) is None


def test_only_what_was_logged_since() -> None:
    lines = [
        "2026-11-23T08:30:00.000000Z info    election.won term=1\n",
        "noise\n",
        "2026-11-23T08:30:05.000000Z info    election.won term=2\n",
    ]
    found = parse_lines(lines, parse_kvserver, since=AT + 1)
    assert [event.fields["term"] for event in found] == ["2"]
