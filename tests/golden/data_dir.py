"""A small data directory of a single node, as a build has left it: how it was made, what it holds.

A build's directory is recorded once, packed: a segment of the log is mostly zeros.
"""

import tarfile
from pathlib import Path
from typing import Final

import grpc
from golden.form import FOLDER
from support.node import CHANNEL_OPTIONS, running_node

from kvclient import Client
from kvpb.rpc_pb2 import (
    NOSPACE,
    AlarmRequest,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvpb.rpc_pb2_grpc import KVStub, LeaseStub, MaintenanceStub

NEWEST: Final = "data-dir-level-4.tar.xz"
RECORDED: Final = ("data-dir-level-2.tar.xz", "data-dir-level-3.tar.xz", NEWEST)
"""One for each feature level, from 2 on."""

EXPENSIVE: Final = "expensive-write-level-3.tar.xz"
"""The log of this node ends with a transaction that was committed before there were limits: 128
compares over 20,000 keys, 60 ranges over 8 MiB, and so on; it puts the key `poison`. The build that
took it needed some 500 MB for its answer, at every start."""

LEASE: Final = 0x1122334455667788
TTL_S: Final = 1_000_000
ALARMED: Final = 0xDEAD
"""An alarm names it; no such member exists."""

KEYS: Final = {
    b"a": (b"a2", 2, 3, 2),
    b"binary\x00\xff": (bytes(range(256)), 6, 6, 1),
    b"leased": (b"while it lives", 7, 7, 1),
    b"txn/1": (b"1", 5, 5, 1),
    b"txn/2": (b"2", 5, 5, 1),
    b"numbered": (b"w2", 8, 9, 2),
}
"""Key -> value, create revision, mod revision, version."""

REVISION: Final = 9
COMPACTED: Final = 3
LAST_NUMBERED: Final = (2, "numbered", "w2")
"""Its number in the session, key, and value."""


def make(folder: Path, target: Path) -> None:
    """Run a node of this build, make requests of every kind, end it and pack what it leaves.

    Its log goes on behind its state: the alarm is in the log alone, as after any crash.
    """
    with (
        running_node(folder) as node,
        grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as channel,
    ):
        _write(channel)
        client = Client(node.endpoint)  # never closed: that would end its session
        client.put("numbered", "w1")
        client.put(*LAST_NUMBERED[1:])
        KVStub(channel).Compact(CompactionRequest(revision=COMPACTED, physical=True))
        KVStub(channel).Range(RangeRequest(key=b"a"))  # a read commits the state
        alarm = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=ALARMED, alarm=NOSPACE)
        MaintenanceStub(channel).Alarm(alarm)
        node.process.kill()
        node.process.wait(30)
    (data,) = folder.glob("try*/data")
    _pack(data, target)


def _write(channel: grpc.Channel) -> None:
    kv = KVStub(channel)
    kv.Put(PutRequest(key=b"a", value=b"a1"))
    kv.Put(PutRequest(key=b"a", value=b"a2"))
    ops = [PutRequest(key=b"txn/%d" % number, value=b"%d" % number) for number in (1, 2)]
    kv.Put(PutRequest(key=b"gone"))
    success = [RequestOp(request_put=op) for op in ops]
    success.append(RequestOp(request_delete_range=DeleteRangeRequest(key=b"gone")))
    kv.Txn(TxnRequest(success=success))
    kv.Put(PutRequest(key=b"binary\x00\xff", value=bytes(range(256))))
    LeaseStub(channel).LeaseGrant(LeaseGrantRequest(TTL=TTL_S, ID=LEASE))
    kv.Put(PutRequest(key=b"leased", value=b"while it lives", lease=LEASE))


def _pack(data: Path, target: Path) -> None:
    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name.endswith("lock.mdb"):
            return None  # of a process: LMDB makes it anew
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(target, "x:xz", preset=9) as archive:
        for path in sorted(data.iterdir()):
            archive.add(path, path.name, filter=plain)


def unpack(name: str, folder: Path) -> Path:
    """A recorded directory, as a node would find it."""
    folder.mkdir()
    with tarfile.open(FOLDER / name) as archive:
        archive.extractall(folder, filter="data")
    return folder
