"""What the state was like at each of the newest applied entries: so that members can be compared.

Members apply the same entries, each in its own time. So they are compared at one index, as it was
when each of them had just applied it. Nothing has to be read for that, since the storage keeps a
digest of every database (`storage/digest.py`).
"""

import struct
import zlib
from typing import Final, NamedTuple

from kvserver.storage.digest import DIGESTED, Digests
from kvserver.storage.schema import HISTORY, KEY_HISTORY, META

KEPT: Final = 4096
"""Entries: some seconds of a busy cluster, so that a member that is a little behind, or is asked a
little late, still knows."""

COMPARED: Final = tuple(each for each in DIGESTED if each is not META)
"""Databases that follow from the log. Some rows of META say how far a node is by itself."""

NAMES: Final = (META.name.decode(), *(each.name.decode() for each in COMPARED))
"""What each number of `Moment.digests` is of. Load-bearing: peers send the numbers alone, so a new
database comes last."""

OWN_PACE: Final = frozenset(each.name.decode() for each in (HISTORY, KEY_HISTORY))
"""Databases from which each member removes what is compacted at its own pace."""

_META: Final = struct.Struct(">QqQQ")


class Moment(NamedTuple):
    """The state with the effects of an entry and of no later one."""

    index: int  # type: ignore[assignment] # hides tuple.index
    """Of the entry."""
    revision: int
    tidy: bool
    """Nothing of what is compacted waits to be removed. Then all databases follow from the log."""
    digests: tuple[int, ...] = ()
    """As `NAMES` has them; empty if they are not known, or not to be compared yet."""


def digests_of(
    databases: Digests, *, revision: int, compacted: int, log_time_ms: int, level: int
) -> tuple[int, ...]:
    """What is compared of a moment: of META what its rows mean, not the rows.

    Args:
        databases: digests of all replicated databases.
        revision: newest one.
        compacted: the compacted revision, -1 for none.
        log_time_ms: stamp of the newest batch.
        level: feature level in use.
    """
    meta = zlib.crc32(_META.pack(revision, compacted, log_time_ms, level))
    return (meta, *(databases[each] for each in COMPARED))


class Moments:
    """Those of the newest applied entries. The raft thread adds, any thread may look."""

    def __init__(self) -> None:
        self._at: dict[int, Moment] = {}
        self.newest: Moment | None = None
        """None before the first entry that was applied since the start."""

    def add(self, moment: Moment) -> None:
        """Another entry was applied."""
        self._at[moment.index] = moment
        self._at.pop(moment.index - KEPT, None)
        self.newest = moment

    def get(self, index: int) -> Moment | None:
        """The moment of an entry, None if it is too old, or not there yet."""
        return self._at.get(index)

    def clear(self) -> None:
        """Another state took the place: what was has no successor."""
        self._at = {}
        self.newest = None
