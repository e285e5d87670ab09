"""A failover taken apart: from a client's acknowledgements and the nodes' logs to its parts. Pure.

All times are seconds on the client's monotonic clock; log times are moved onto it beforehand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from kvbench.history import Fate, Write
from kvbench.nodelog import LogEvent

CAMPAIGN = "election.campaign"
WON = "election.won"
ROLE = "role.changed"

LOG_GRAIN_S = 0.001
"""Logs of some servers cut their times off at the millisecond."""


@dataclass(frozen=True)
class Milestones:
    """When the other nodes had got how far; None for what no log tells."""

    successor: str | None
    campaign: float | None
    """The first of them began to stand for election."""
    won: float | None
    """The successor became leader."""
    active: float | None
    """The successor began to serve; etcd does not log it."""
    campaigns: int = 0
    """How often any of them stood for election."""

    @property
    def serves(self) -> float | None:
        """From when on the successor serves, as far as the logs tell."""
        return self.active if self.active is not None else self.won


@dataclass(frozen=True)
class Outage:
    """What a fault did to a client's writes."""

    window_s: float
    """Longest time between two acknowledgements."""
    recovered: float
    """When the first write was acknowledged that only the successor can have served."""


@dataclass(frozen=True)
class Parts:
    """Where the time from the fault to the first acknowledged write went, in seconds."""

    window: float
    """Longest time without an acknowledgement, which includes a write's own time."""
    recovery: float
    """Fault to first acknowledgement; the sum of the four below."""
    detection: float | None
    election: float | None
    activation: float | None
    first_write: float | None


def milestones(
    events: Mapping[str, Iterable[LogEvent]], fault: float, offset: float, victim: str
) -> Milestones:
    """What the logs tell about the election after a fault.

    Args:
        events: of each node by name, with the times of its log.
        fault: when it was injected, on the client's clock.
        offset: what to add to a log's time to get the client's.
        victim: the node that was hurt; its own events do not count.
    """
    seen = [
        (max(fault, event.time + offset), name, event)
        for name, of_node in events.items()
        for event in of_node
        if name != victim and event.time + offset >= fault - LOG_GRAIN_S
    ]
    seen.sort(key=lambda item: item[0])
    campaigns = [at for at, _, event in seen if event.name == CAMPAIGN]
    campaign = campaigns[0] if campaigns else None
    victories = [(at, name) for at, name, event in seen if event.name == WON]
    # Who wins need not get to serve: another may be elected right after it.
    for active, name in ((at, name) for at, name, event in seen if _serves(event)):
        own = [at for at, winner in victories if winner == name and at <= active]
        if own:
            return Milestones(name, campaign, own[-1], active, len(campaigns))
    if victories:
        won, name = victories[0]
        return Milestones(name, campaign, won, None, len(campaigns))
    return Milestones(None, campaign, None, None, len(campaigns))


def _serves(event: LogEvent) -> bool:
    return event.name == ROLE and event.fields.get("role") == "active"


def outage(writes: Iterable[Write], fault: float, serves: float | None) -> Outage | None:
    """The gap in a client's acknowledgements that a fault made; None if it has not ended.

    It ends with the first acknowledgement, after the successor began to serve, of a write that
    began after the fault: until then an old active that is only asked to stop goes on serving, and
    an answer may arrive just after the fault that killed its sender.

    Args:
        writes: in the order made, from the last one acknowledged before the fault on.
        fault: when it was injected.
        serves: when the successor began to serve, if known.
    """
    until = fault if serves is None else max(fault, serves)
    ends = [write for write in writes if write.fate is Fate.ACKNOWLEDGED]
    window = 0.0
    for before, after in pairwise(ends):
        if after.ended >= fault:
            window = max(window, after.ended - before.ended)
            if after.ended >= until and after.begun >= fault:
                return Outage(window, after.ended)
    return None


def parts(fault: float, seen: Outage, nodes: Milestones) -> Parts:
    """Split the time to recovery; a part is None if one of its two ends is not known."""
    return Parts(
        window=seen.window_s,
        recovery=seen.recovered - fault,
        detection=_between(fault, nodes.campaign),
        election=_between(nodes.campaign, nodes.won),
        activation=_between(nodes.won, nodes.active),
        first_write=_between(nodes.serves, seen.recovered),
    )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
