"""Digests: for each replicated database one number that stands for all of its rows.

The digest of a database is the sum of the checksums of its rows (rows.py), modulo 2**64. A sum
does not depend on the order in which rows were written. So every change keeps it up to date at the
price of an addition, nodes that hold the same rows have the same digest, and whoever reads all rows
can tell whether one is missing, doubled or of another time. A row's own checksum shows none of
these.

Left out are the digests themselves, and what a node keeps for itself alone.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Final

from kvserver.storage.rows import damaged
from kvserver.storage.schema import DATABASES, META, Database

DIGESTED: Final = tuple(each for each in DATABASES if each.replicated)

DIGESTS_KEY: Final = b"digests"
"""Row in META: the digests as of the commit that holds it."""

MASK: Final = (1 << 64) - 1

_SUM: Final = struct.Struct(">Q")

Digests = Mapping[Database, int]


def counts(db: Database, key: bytes) -> bool:
    """Whether a row is one of those that the digest of its database stands for."""
    return db.replicated and not (db is META and key == DIGESTS_KEY)


def row_digest(key: bytes, content: bytes) -> int:
    """What a row adds to the digest of its database: its checksum."""
    return zlib.crc32(content, zlib.crc32(key))


def encode_digests(digests: Digests) -> bytes:
    """Stored form: for each database length and name, then the sum as u64."""
    return b"".join(
        bytes([len(db.name)]) + db.name + _SUM.pack(digests[db]) for db in DIGESTED if db in digests
    )


def decode_digests(stored: bytes) -> dict[Database, int]:
    """Digests of a stored form; a database that is younger than it has no rows, so 0.

    Raises:
        DataDirError: it makes no sense.
    """
    by_name = {each.name: each for each in DIGESTED}
    found = dict.fromkeys(DIGESTED, 0)
    position = 0
    while position < len(stored):
        end = position + 1 + stored[position]
        db = by_name.get(stored[position + 1 : end])
        if db is None or end + _SUM.size > len(stored):
            raise damaged("the digests of the databases can't be read")
        (found[db],) = _SUM.unpack_from(stored, end)
        position = end + _SUM.size
    return found


class Ledger:
    """The digests of a storage as its writer changes the rows.

    Until they are known (a state of a version that kept none) it counts what has changed since the
    state was opened, so that the sums of any later moment can be told once those of one moment are.
    """

    def __init__(self, known: Digests | None, transaction: int = 0) -> None:
        """Begin with an opened state.

        Args:
            known: its digests, None if it names none.
            transaction: number of its newest commit.
        """
        self.known = known is not None
        self.sums: dict[Database, int] = dict(known or dict.fromkeys(DIGESTED, 0))
        """Invariant: equals the sums over the rows that the open transaction sees if `known`, and
        else their change since the opening, modulo 2**64."""
        self._changed_by: dict[int, dict[Database, int]] = {transaction: dict(self.sums)}
        """While unknown: transaction -> sums at its commit. The last two, since the newest may not
        be committed yet; all since `counting`, so it is bounded by the commits of that time."""
        self.counting = False
        """Somebody counts the rows as of some commit from now on. Any thread may set it."""

    def settle(self, transaction: int) -> None:
        """A transaction with this number is about to be committed."""
        if self.known:
            return
        while not self.counting and len(self._changed_by) > 1:
            del self._changed_by[next(iter(self._changed_by))]
        self._changed_by[transaction] = dict(self.sums)

    def learn(self, transaction: int, counted: Digests) -> None:
        """Somebody has counted the rows as of a committed transaction.

        Args:
            transaction: its number; nothing can be learned from one before the opening.
            counted: sums over all its rows.
        """
        then = self._changed_by.get(transaction)
        if self.known or then is None:
            return
        for db in DIGESTED:
            self.sums[db] = (self.sums[db] - then[db] + counted[db]) & MASK
        self.known = True
        self._changed_by.clear()
