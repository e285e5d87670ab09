"""Text logs on stderr: one line per event that a person cares about, logfmt."""

import atexit
import logging
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO, cast

import structlog

from kvserver.log_output import LogOutput

Event = Callable[..., None]
"""Logs one event: its name with dots, then fields by keyword."""

TOLD_AGAIN_S: Final = 30.0
TOLD_KEPT_MAX: Final = 256

DRAIN_S: Final = 1.0
"""How long a process that ends waits for its last lines to get out."""

LEVELS = ("debug", "info", "warning", "error")

_WARNINGS = frozenset({
    "peer.rejected", "transfer.failed", "node.stuck", "node.restart", "config.ignored",
    "config.advice", "alarm.raised", "node.disqualified", "node.removed", "compare.differs",
    "compare.undecided", "turn.slow", "log.dropped",
})  # fmt: skip


class Repeats:
    """Which of many equal events a person should read: the first, then one every TOLD_AGAIN_S.

    What a node tries again twice a second it may try for days. Remembers the newest
    TOLD_KEPT_MAX events.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[Hashable, float] = OrderedDict()
        """Event -> when it was told, in that order."""

    def is_news(self, event: Hashable, now: float) -> bool:
        """Whether `event` should be told at `now`; then it counts as told."""
        told = self._told.get(event)
        if told is not None and now < told + TOLD_AGAIN_S:
            return False
        self._told[event] = now
        self._told.move_to_end(event)
        if len(self._told) > TOLD_KEPT_MAX:
            self._told.popitem(last=False)
        return True

    def forget(self) -> None:
        """What comes next is another story."""
        self._told.clear()


def _value(value: object) -> str:
    text = str(value)
    if text == "" or any(c in text for c in ' "=\n'):
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return text


def _dropped(lines: int) -> str:
    return _render(None, "warning", {"event": "log.dropped", "lines": lines})


def _render(_logger: object, level: str, fields: MutableMapping[str, Any]) -> str:
    """`2026-11-23T08:30:00.123456Z info    role.changed role=active term=3`."""
    name = fields.pop("event")
    moment = datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    rest = "".join(f" {key}={_value(value)}" for key, value in fields.items())
    return f"{moment} {level:<7} {name}{rest}"


def log_stacks() -> None:
    """Log what every thread is doing now, the newest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - for this
        # without the lines themselves: a thread may be stuck since the disk does not answer
        calls = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
        told = "".join(f"  {c.filename}:{c.lineno} {c.name}\n" for c in reversed(calls))
        sys.stderr.write(f"Thread {names.get(ident, ident)}:\n{told}")


def drain_log() -> None:
    """Let what was logged get out, before the process ends or becomes another one."""
    if isinstance(sys.stderr, LogOutput):
        sys.stderr.drain(DRAIN_S)


def start_logging(level: str) -> Event:
    """Send everything of `level` and above to stderr; returns what logs an event.

    From here on nobody in this process waits for stderr, whoever writes to it.
    """
    if not isinstance(sys.stderr, LogOutput):
        sys.stderr = LogOutput(sys.__stderr__.fileno() if sys.__stderr__ else 2, _dropped)
        atexit.register(drain_log)
    structlog.configure(
        processors=[_render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", sys.stderr)),
    )
    logger = structlog.get_logger()

    def event(name: str, /, **fields: object) -> None:
        if name in _WARNINGS:
            logger.warning(name, **fields)
        elif name.endswith(".failed"):
            logger.error(name, **fields)
        else:
            logger.info(name, **fields)

    return event
