"""What nodes log, as events with a time: pure parsers, one for each flavor's dialect.

Both dialects end in the same names: `node.ready`, `election.campaign`, `election.won` and, from
kvserver alone, `role.changed`. Lines that are no event, such as a traceback's, are left out.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z) (?:debug|info|warning|error) +"
    r"(?P<name>[a-z_]+(?:\.[a-z_]+)+)(?P<rest>(?: .*)?)"
)
_FIELD = re.compile(r' (?P<key>[^\s="]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s"]*))')
_ESCAPE = re.compile(r"\\(.)")

_ETCD_EVENTS = (
    (re.compile(r"\w+ is starting a new election at term (?P<before>\d+)"), "election.campaign"),
    (
        re.compile(r"\w+ \[term (?P<before>\d+)\] received MsgTimeoutNow .* starts an election"),
        "election.campaign",
    ),
    (re.compile(r"\w+ became leader at term (?P<term>\d+)"), "election.won"),
    (re.compile(r"ready to serve client requests"), "node.ready"),
)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of a node's log."""

    time: float
    """Seconds since the epoch, by the node's clock."""
    name: str
    fields: Mapping[str, str] = field(default_factory=dict)


Parser = Callable[[str], LogEvent | None]


def parse_kvserver(line: str) -> LogEvent | None:
    """One line of `<time> <level> <event> key=value ...`."""
    match = _LINE.fullmatch(line.rstrip("\n"))
    if match is None:
        return None
    fields: dict[str, str] = {}
    rest, position = match["rest"], 0
    while position < len(rest):
        found = _FIELD.match(rest, position)
        if found is None:
            return None
        quoted = found["quoted"]
        fields[found["key"]] = found["plain"] if quoted is None else _ESCAPE.sub(_plain, quoted)
        position = found.end()
    return LogEvent(_seconds(match["time"]), match["name"], fields)


def _plain(escape: re.Match[str]) -> str:
    return "\n" if escape[1] == "n" else escape[1]


def parse_etcd(line: str) -> LogEvent | None:
    """One line of JSON; its times have milliseconds only."""
    try:
        entry = json.loads(line)
        text, stamp = str(entry["msg"]), _seconds(entry["ts"])
    except (ValueError, KeyError, TypeError):
        return None
    for pattern, name in _ETCD_EVENTS:
        match = pattern.match(text)
        if match is not None:
            return LogEvent(stamp, name, _term(match.groupdict()))
    return None


def _term(found: Mapping[str, str]) -> dict[str, str]:
    if "before" in found:
        return {"term": str(int(found["before"]) + 1)}
    return dict(found)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def parse_lines(lines: Iterable[str], parser: Parser, *, since: float = 0.0) -> list[LogEvent]:
    """All events from `since` on, in the order logged."""
    events = (parser(line) for line in lines)
    return [event for event in events if event is not None and event.time >= since]
