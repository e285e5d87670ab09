"""Compares of a transaction: is what it expects true of the state before it?"""

from collections.abc import Generator

from kvpb.rpc_pb2 import Compare
from kvserver.mvcc.budget import STEP_BYTES, STEP_ROWS, Budget
from kvserver.mvcc.interval import bounds
from kvserver.mvcc.keyvalue import Row, decode_row
from kvserver.storage.contract import ReadTxn
from kvserver.storage.schema import KV

_MISSING = Row(0, 0, 0, 0, b"")
"""What a key that does not exist compares as, but for its value."""


def holds(txn: ReadTxn, compare: Compare, budget: Budget) -> Generator[None, None, bool]:
    """Look whether every key of the compare satisfies it; an empty range counts as a missing key.

    Yields:
        Now and then, as it goes on.

    Returns:
        True if they do.
    """
    if not compare.range_end:
        stored = txn.get(KV, bounds(compare.key, b"")[0])
        budget.visit(len(stored or b""))
        return (
            _missing_holds(compare) if stored is None else _row_holds(compare, decode_row(stored))
        )
    looked = size = 0
    for _, stored in txn.scan(KV, *bounds(compare.key, compare.range_end)):
        budget.visit(len(stored))
        looked += 1
        size += len(stored)
        if not looked % STEP_ROWS or size >= STEP_BYTES:
            size = 0
            yield
        if not _row_holds(compare, decode_row(stored)):
            return False
    return True if looked else _missing_holds(compare)


def _missing_holds(compare: Compare) -> bool:
    """A missing key has no value, so a compare of values is false whatever it asks."""
    return compare.target != Compare.VALUE and _row_holds(compare, _MISSING)


def _row_holds(compare: Compare, row: Row) -> bool:
    match compare.target:
        case Compare.VERSION:
            return _related(row.version, compare.result, compare.version)
        case Compare.CREATE:
            return _related(row.create_revision, compare.result, compare.create_revision)
        case Compare.MOD:
            return _related(row.mod_revision, compare.result, compare.mod_revision)
        case Compare.LEASE:
            return _related(row.lease, compare.result, compare.lease)
        case Compare.VALUE:
            return _related(row.value, compare.result, compare.value)
        case _:
            return _related(0, compare.result, 0)  # an unknown target is equal to anything (etcd)


def _related(
    found: int | bytes, result: Compare.CompareResult.ValueType, wanted: int | bytes
) -> bool:
    match result:
        case Compare.EQUAL:
            return found == wanted
        case Compare.NOT_EQUAL:
            return found != wanted
        case Compare.GREATER:
            return found > wanted  # type: ignore[operator] # both of one kind
        case Compare.LESS:
            return found < wanted  # type: ignore[operator]
        case _:
            return True  # an unknown relation holds (etcd)
