"""How much a command counts in a batch beyond its size: what applying it may take. Pure.

A batch is applied in one turn, by every member, so what is expensive goes with few others. The
limits of one command are in `mvcc/budget.py`; this only decides what shares an entry.
"""

from typing import Final

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import DeleteRangeRequest, PutRequest, TxnRequest

LOOK: Final = 1 << 16
"""Of each range that is looked at: sixteen of them fill a batch, half a second at the worst."""

VALUE: Final = 1 << 14
"""Of each put that answers with, or keeps, a value that it does not bring along: 64 fill a batch,
and take less than 100 MB at the worst."""


def weight_of(command: Command) -> int:
    """Bytes that a command counts for beyond its own."""
    match command.WhichOneof("request"):
        case "put":
            return _of_put(command.put)
        case "delete_range":
            return _of_deletion(command.delete_range)
        case "txn":
            return _of_txn(command.txn)
        case _:
            return 0


def _of_put(put: PutRequest) -> int:
    return VALUE if put.ignore_value or put.prev_kv else 0


def _of_deletion(deletion: DeleteRangeRequest) -> int:
    return LOOK if deletion.range_end else 0


def _of_txn(txn: TxnRequest) -> int:
    weight = sum(LOOK for compare in txn.compare if compare.range_end)
    for op in (*txn.success, *txn.failure):
        match op.WhichOneof("request"):
            case "request_put":
                weight += _of_put(op.request_put)
            case "request_delete_range":
                weight += _of_deletion(op.request_delete_range)
            case "request_range":
                weight += LOOK if op.request_range.range_end else 0
            case "request_txn":
                weight += _of_txn(op.request_txn)
            case None:
                pass
    return weight
