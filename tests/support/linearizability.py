"""Is a history of calls on one key possible if each took effect at one moment within its time?

Wing and Gong's search with Lowe's memory of what was tried. A call whose outcome nobody was told
may take effect at any moment after it began, or never.

Two facts keep the search short, and neither changes its verdict. Every written value is unique, so
a write of unknown outcome whose value nobody saw can be left out. And one that somebody saw can be
moved to just before the call that saw it: whatever stood between would have seen it too, or would
have hidden it from everybody.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

State = bytes | None
"""Value of a key, None if it does not exist."""

NEVER: Final = float("inf")
STEPS_MAX: Final = 2_000_000


class Unseen(Enum):
    """The call did not tell what stood there."""

    UNSEEN = "unseen"


UNSEEN: Final = Unseen.UNSEEN


class Kind(Enum):
    """What a call does to a key."""

    GET = "get"
    PUT = "put"
    DELETE = "delete"
    SWAP = "swap"
    """Write `value` if `expected` stands there, else tell what does."""


class UndecidedError(AssertionError):
    """The search was given up."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one client on one key, as the client saw it."""

    client: str
    kind: Kind
    began: float
    ended: float = NEVER
    """NEVER if the outcome is not known."""
    value: State = None
    """Written by a put or a swap. Invariant: unique in the history."""
    expected: State = None
    """Of a swap."""
    seen: State | Unseen = UNSEEN
    """What stood there before. Invariant: told by every call but a put whose end is known."""

    @property
    def known(self) -> bool:
        """True if the client was told how it ended."""
        return self.ended != NEVER

    def allowed(self, state: State) -> bool:
        """Whether what the client saw fits a moment when `state` stood there."""
        return self.seen is UNSEEN or self.seen == state

    def after(self, state: State) -> State:
        """What stands there afterwards."""
        match self.kind:
            case Kind.GET:
                return state
            case Kind.PUT:
                return self.value
            case Kind.DELETE:
                return None
            case Kind.SWAP:
                return self.value if state == self.expected else state


def relevant(calls: Iterable[Call]) -> list[Call]:
    """Without the calls of unknown outcome that changed nothing anybody saw."""
    kept = [call for call in calls if call.known or call.kind is not Kind.GET]
    while True:
        told = {call.seen for call in kept if call.known}
        told |= {call.expected for call in kept if call.kind is Kind.SWAP}
        fewer = [c for c in kept if c.known or c.kind is Kind.DELETE or c.value in told]
        if len(fewer) == len(kept):
            return fewer
        kept = fewer


class _Search:
    """Depth first: takes calls out of the row of those left, one possible next after the other."""

    def __init__(self, calls: Sequence[Call]) -> None:
        known = sorted((c for c in calls if c.known), key=lambda c: c.began)
        unknown = sorted((c for c in calls if not c.known), key=lambda c: c.began)
        self._known, self._unknown = known, unknown
        self._calls = known + unknown
        self._tried: set[tuple[int, State, bool]] = set()
        self._steps = 0

    def run(self, initial: State) -> bool:
        everything = (1 << len(self._known)) - 1
        # calls done, state, whether the next must see it, first known call left
        waiting = [(0, initial, False, 0)]
        while waiting:
            done, state, must_see, first = waiting.pop()
            if done & everything == everything:
                return True
            self._steps += 1
            if self._steps > STEPS_MAX:
                raise UndecidedError(f"{len(self._calls)} calls: given up")
            while done >> first & 1:
                first += 1
            following = self._next(done, state, must_see=must_see, first=first)
            for position, after, unsettled in reversed(following):
                key = (done | 1 << position, after, unsettled)
                if key not in self._tried:
                    self._tried.add(key)
                    waiting.append((*key, first))
        return False

    def _next(
        self, done: int, state: State, *, must_see: bool, first: int
    ) -> list[tuple[int, State, bool]]:
        """Calls that may be next: position, state after it, whether the one after must see that."""
        deadline = NEVER
        known = self._known
        possible = []
        for position in range(first, len(known)):
            call = known[position]
            if call.began > deadline:
                break
            if not done >> position & 1:
                possible.append(position)
                deadline = min(deadline, call.ended)
        following = []
        for position in possible:
            call = known[position]
            if call.began <= deadline and call.allowed(state):
                if must_see and call.seen is UNSEEN:
                    continue
                following.append((position, call.after(state), False))
        return following + self._unknown_next(done, state, must_see=must_see, deadline=deadline)

    def _unknown_next(
        self, done: int, state: State, *, must_see: bool, deadline: float
    ) -> list[tuple[int, State, bool]]:
        following = []
        deletes = 0
        for position, call in enumerate(self._unknown, len(self._known)):
            if call.began > deadline:
                break
            if done >> position & 1:
                continue
            if call.kind is Kind.SWAP:
                if call.expected == state:
                    following.append((position, call.after(state), True))
            elif must_see:
                continue  # it would hide what must be seen
            elif call.kind is Kind.PUT:
                following.append((position, call.after(state), True))
            elif state is not None and not deletes:
                deletes += 1  # all that have begun are alike
                following.append((position, None, True))
        return following


def linearizable(calls: Iterable[Call], initial: State = None) -> bool:
    """Whether the calls on one key can have happened one after the other.

    Args:
        calls: of all clients; `began` and `ended` are places in one order.
        initial: what stood there before the first.

    Raises:
        UndecidedError: it takes too long to say.
    """
    return _Search(relevant(calls)).run(initial)


# ---------------------------------------------------------------------------- revisions


@dataclass(frozen=True, slots=True)
class Stamp:
    """The revision that an answer showed, and when."""

    began: float
    ended: float
    revision: int
    wrote: bool
    """It made this revision; else it only saw it."""


def revisions_follow_time(stamps: Iterable[Stamp]) -> str | None:
    """What contradicts "who begins after another has ended sees no older state"; None if nothing.

    Across all keys: revisions are one order of everything.
    """
    ended = sorted(stamps, key=lambda stamp: stamp.ended)
    by_begin = sorted(ended, key=lambda stamp: stamp.began)
    newest, position = 0, 0
    made: set[int] = set()
    for stamp in by_begin:
        while position < len(ended) and ended[position].ended < stamp.began:
            newest = max(newest, ended[position].revision)
            position += 1
        if stamp.revision < newest:
            return f"revision {stamp.revision} was seen after {newest}"
        if stamp.wrote and stamp.revision == newest:
            return f"a write made revision {newest}, which had been seen before it began"
        if stamp.wrote and stamp.revision in made:
            return f"two writes made revision {stamp.revision}"
        if stamp.wrote:
            made.add(stamp.revision)
    return None


class Rows:
    """Every row that any answer showed: a revision of a key is the same for everybody."""

    def __init__(self) -> None:
        self._rows: dict[tuple[bytes, int], tuple[bytes, int, int]] = {}
        self._written_at: dict[tuple[bytes, bytes], int] = {}

    def saw(self, key: bytes, value: bytes, *, mod: int, version: int, create: int) -> str | None:
        """Take note; what it contradicts, None if nothing."""
        row = (value, version, create)
        known = self._rows.setdefault((key, mod), row)
        if known != row:
            return f"{key!r} at revision {mod} is {known} for one and {row} for another"
        first = self._written_at.setdefault((key, value), mod)
        if first != mod:
            return f"{value!r} was written to {key!r} at {first} and again at {mod}"
        if not 0 < create <= mod or version > mod - create + 1:
            return f"{key!r} at revision {mod}: version {version}, created at {create}"
        return None
