"""Reads that the product makes in steps, made at once."""

from kvpb.rpc_pb2 import Compare, RangeRequest, RangeResponse, TxnRequest, TxnResponse
from kvserver.mvcc import compare, ranges, store
from kvserver.mvcc.budget import Budget
from kvserver.mvcc.pace import Pace
from kvserver.storage.contract import ReadTxn


def read_range(txn: ReadTxn, request: RangeRequest, revision: int) -> RangeResponse:
    return Pace().drive(ranges.read_range(txn, request, revision))


def read_txn(txn: ReadTxn, request: TxnRequest) -> TxnResponse:
    return Pace().drive(store.read_txn(txn, request, Budget()))


def holds(txn: ReadTxn, asked: Compare) -> bool:
    return Pace().drive(compare.holds(txn, asked, Budget()))
