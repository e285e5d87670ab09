"""Which endpoint a call goes to next, and when: pure decisions; `now` and `rng` are handed in.

Within a round each endpoint is asked at most once and without waiting; rounds are spaced by a pause
that grows, so a call that nobody can serve neither spins nor misses the moment when somebody can.
A node that hangs keeps its connections, so nothing breaks: a call that is slow looks around among
the others, and is given up as soon as one of them is the active of a newer term.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from kvclient._outcomes import LeaderHint, Outcome
from kvclient.errors import DeadlineExceeded, Unavailable

PAUSE_MIN_S = 0.005
PAUSE_MAX_S = 0.1
LEARNED_MAX = 16
# In less time nothing is answered: a write that began so late would only end as unknown.
ATTEMPT_MIN_S = 0.001
# A standby may hold a request for 1 s before it answers; a shorter attempt would never hear it.
READ_ATTEMPT_MIN_S = 1.5
# A call without an answer for so long begins to look around. Most are answered in a tenth of it.
SLOW_S = 0.3
LOOK_EVERY_S = 0.1
# A node that does not even say where it stands for so long hangs, or can't be reached.
SILENT_S = 1.0
# How long a call waits for a connection before it tries the next endpoint, once for each.
CONNECT_S = 0.3


def parse_address(endpoint: str) -> str:
    """`host:port` of an endpoint given as `host:port` or `http://host:port`."""
    scheme, found, rest = endpoint.strip().rpartition("://")
    address = rest.rstrip("/")
    if found and scheme != "http":
        raise ValueError(f"endpoint {endpoint!r}: only http:// is spoken, not {scheme}://")
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or "/" in address:
        raise ValueError(f"endpoint {endpoint!r}: write it as host:port")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"endpoint {endpoint!r}: the port must be a number from 1 to 65535")
    return address


def parse_addresses(endpoints: str | Iterable[str]) -> tuple[str, ...]:
    """Distinct addresses of a list, or of one string with commas between them, in their order."""
    if isinstance(endpoints, str):
        endpoints = [part for part in endpoints.split(",") if part.strip()]
    addresses = tuple(dict.fromkeys(parse_address(endpoint) for endpoint in endpoints))
    if not addresses:
        raise ValueError("no endpoint given: name at least one as host:port")
    return addresses


class Endpoints:
    """All that a client knows of its cluster: the addresses, and which of them is the active.

    Shared by all calls of a client. Configured addresses stay; of those that hints have named, the
    latest `LEARNED_MAX` do.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._configured = tuple(addresses)
        self._learned: tuple[str, ...] = ()
        self._active: str | None = None
        self._active_term = 0
        self._term = 0
        self._first = 0
        self._looked = -LOOK_EVERY_S

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address that a call may go to."""
        return self._configured + self._learned

    @property
    def term(self) -> int:
        """The newest term that any node has spoken of, 0 if none has yet."""
        return self._term

    def order(self) -> tuple[str, ...]:
        """All addresses in the order to ask them."""
        addresses = self.addresses
        first = self._first % len(addresses)
        order = addresses[first:] + addresses[:first]
        if self._active is None:
            return order
        return (self._active, *(address for address in order if address != self._active))

    def follow(self, hint: LeaderHint) -> str | None:
        """Believe a hint unless an older term's; returns the address forgotten for it, if any."""
        if hint.term < self._term:
            return None
        try:
            address = parse_address(hint.address)
        except ValueError:
            return None
        self._active, self._active_term, self._term = address, hint.term, hint.term
        if address in self.addresses:
            return None
        self._learned = (*self._learned, address)
        if len(self._learned) <= LEARNED_MAX:
            return None
        forgotten, *kept = self._learned
        self._learned = tuple(kept)
        return forgotten

    def heard(self, term: int) -> None:
        """A node has answered in this term: word of older ones is out of date."""
        self._term = max(self._term, term)

    def look_due(self, now: float) -> bool:
        """Whether it is time to ask the others again who is active; true once, whoever asks."""
        if now - self._looked < LOOK_EVERY_S:
            return False
        self._looked = now
        return True

    def moved(self, attempt: "Attempt", *, silent: bool) -> LeaderHint | None:
        """Who is the active instead of the node that an attempt is at, if it is to be given up.

        In the term that it began in another may well have been active all along: etcd's followers
        serve too, and a slow call there is no reason to give it up. The same is true while no term
        is known. Unless the node does not even say where it stands: it is `silent`.
        """
        if self._active is None or self._active == attempt.address:
            return None
        if self._active_term < self._term:
            return None
        if not silent and not 0 < attempt.term < self._active_term:
            return None
        return LeaderHint(self._active, self._active_term)

    def failed(self, address: str) -> None:
        """An endpoint did not serve: it is not the first one to ask any more."""
        if address == self._active:
            self._active = None
        addresses = self.addresses
        if address == addresses[self._first % len(addresses)]:
            self._first = (self._first + 1) % len(addresses)


@dataclass(frozen=True)
class Attempt:
    """Where the next attempt goes, and how long it may take."""

    address: str
    timeout_s: float
    connect_s: float
    """How much of it may be spent on waiting for a connection."""
    term: int
    """The newest one known when it began, 0 if none was."""


class Attempts:
    """The course of one call: what was asked, what was said, and until when it may go on."""

    def __init__(self, endpoints: Endpoints, deadline: float, *, write: bool, rng: Random) -> None:
        self._endpoints = endpoints
        self._deadline = deadline
        self._write = write
        self.doubt: tuple[str, str] | None = None
        """The endpoint that may have done what was asked, and its last word."""
        self._rng = rng
        self._rounds = 0
        self._asked: set[str] = set()
        self._awaited: set[str] = set()
        self._said: dict[str, tuple[Outcome, str]] = {}

    def pause_s(self, now: float) -> float:
        """How long to wait before `next`: 0 within a round; else a new round begins after it."""
        if self._untried() is not None:
            return 0.0
        self._asked.clear()
        pause = min(PAUSE_MAX_S, PAUSE_MIN_S * 2.0 ** min(self._rounds, 16))
        self._rounds += 1
        return min(pause * self._rng.uniform(0.5, 1.0), max(0.0, self._deadline - now))

    def next(self, now: float) -> Attempt:
        """The next attempt; raises `Unavailable` or `DeadlineExceeded` when there is no time."""
        left = self._deadline - now
        if left < ATTEMPT_MIN_S:
            raise self._out_of_time()
        address = self._untried() or self._endpoints.order()[0]
        connect_s = 0.0 if address in self._awaited else min(CONNECT_S, left / 2)
        self._asked.add(address)
        self._awaited.add(address)
        if not self._write and len(self._endpoints.addresses) > 1:
            # Should nobody know of another active: leave time to read from another node.
            left = min(left, max(READ_ATTEMPT_MIN_S, left / 2))
        return Attempt(address, left, connect_s, self._endpoints.term)

    def note(self, address: str, outcome: Outcome, said: str) -> None:
        """Remember what became of an attempt."""
        self._said[address] = (outcome, said)

    def _untried(self) -> str | None:
        order = self._endpoints.order()
        return next((address for address in order if address not in self._asked), None)

    def _out_of_time(self) -> Unavailable | DeadlineExceeded:
        said = [(address, text) for address, (_, text) in self._said.items()]
        outcomes = {outcome for outcome, _ in self._said.values()}
        if outcomes == {Outcome.NEVER_SENT}:
            return Unavailable(
                "no endpoint could be reached: check the addresses and whether the nodes run", said
            )
        return DeadlineExceeded(
            "no answer in time and nothing was changed: try again, or raise the timeout", said
        )
