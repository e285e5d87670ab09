"""Maintenance: how one node is watched. Answered by every node, standbys too."""

import asyncio
from typing import Final

import grpc

from kvpb import rpc_pb2, rpc_pb2_grpc
from kvpb.raft_pb2 import ChangeAlarm, Command
from kvserver import __version__
from kvserver.api.door import Door
from kvserver.api.snapshots import Snapshots
from kvserver.api.standing import standing, why_unfit
from kvserver.errors import (
    BadTransfereeError,
    CompactedError,
    CorruptClusterError,
    DefragmentFailedError,
    NotLeaderError,
    TooManyRequestsError,
    UnverifiedError,
)
from kvserver.mvcc.hashing import StoredHashBuilder
from kvserver.mvcc.history import check_revision
from kvserver.mvcc.kepthash import KeptHash
from kvserver.mvcc.statehash import StateHash
from kvserver.mvcc.store import current_revision
from kvserver.pipeline.features import KEPT_HASH_LEVEL
from kvserver.pipeline.role import REMOVED
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Reason

API_LEVEL: Final = "3.5.0"
"""The level of etcd's API that is spoken."""

API_VERSION: Final = f"{API_LEVEL}+kvserver.{__version__}"
"""And by whom (semver build metadata)."""

HASHES_MAX: Final = 2
"""Calls of HashKV that are answered at a time."""

SLICE_ROWS: Final = 2_000
"""Rows hashed before other requests get their turn."""

Context = grpc.aio.ServicerContext


class MaintenanceServicer(rpc_pb2_grpc.MaintenanceServicer):
    """etcdserverpb.Maintenance."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._snapshots = Snapshots(door.make_backup, API_VERSION)
        self._hashing = 0

    async def Status(
        self,
        request: rpc_pb2.StatusRequest,
        context: "Context[rpc_pb2.StatusRequest, rpc_pb2.StatusResponse]",
    ) -> rpc_pb2.StatusResponse:
        """Where this node stands."""
        return await self._door.answer(context, self._status())

    async def _status(self) -> rpc_pb2.StatusResponse:
        raft = self._door.raft_status()
        mine = self._door.roster.members.get(self._door.me)
        file_bytes, used_bytes = self._door.storage.size()
        response = rpc_pb2.StatusResponse(
            version=API_VERSION, dbSize=file_bytes, dbSizeInUse=used_bytes,
            leader=raft.leader or 0, raftIndex=raft.commit_index, raftTerm=raft.term,
            raftAppliedIndex=raft.visible_index, isLearner=mine is not None and mine.learner,
            errors=[] if raft.leader else ["etcdserver: no leader"],
            dbSizeQuota=self._door.quota_bytes,
        )  # fmt: skip
        if self._door.role.removed:
            response.errors.append(f"kvserver: {REMOVED}")
        if unfit := why_unfit(standing(self._door)):
            response.errors.append(f"kvserver: {unfit}")
        response.errors.extend(alarm.text() for alarm in self._door.alarms.raised)
        with self._door.storage.read() as txn:
            self._door.fill(response.header, current_revision(txn))
        return response

    async def Alarm(
        self,
        request: rpc_pb2.AlarmRequest,
        context: "Context[rpc_pb2.AlarmRequest, rpc_pb2.AlarmResponse]",
    ) -> rpc_pb2.AlarmResponse:
        """Which alarms are raised; raise one, or disarm some."""
        return await self._door.answer(context, self._alarm(request))

    async def _alarm(self, request: rpc_pb2.AlarmRequest) -> rpc_pb2.AlarmResponse:
        if request.action == rpc_pb2.AlarmRequest.GET:
            kinds = {request.alarm} if request.alarm else set(rpc_pb2.AlarmType.values())
            raised = [a.message() for a in self._door.alarms.raised if a.kind in kinds]
            response = rpc_pb2.AlarmResponse(alarms=raised)
        else:
            if not self._door.role.leads:  # one that may not serve may have to be told so
                await self._door.role.require_active()
            command = Command(change_alarm=ChangeAlarm(request=request))
            changed = await self._door.proposer.propose(command)
            assert isinstance(changed, rpc_pb2.AlarmResponse)
            response = changed
        self._door.fill(response.header, self._door.newest_revision())
        return response

    async def Hash(
        self,
        request: rpc_pb2.HashRequest,
        context: "Context[rpc_pb2.HashRequest, rpc_pb2.HashResponse]",
    ) -> rpc_pb2.HashResponse:
        """Hash of all that this node stores of the state: for tests; HashKV compares nodes."""
        return await self._door.answer(context, self._hash())

    async def _hash(self) -> rpc_pb2.HashResponse:
        await self._door.own_answers_visible()
        with self._door.storage.read() as txn:
            revision = current_revision(txn)
            builder = StoredHashBuilder(txn)
            while not builder.step(SLICE_ROWS):
                await asyncio.sleep(0)
        response = rpc_pb2.HashResponse(hash=builder.value)
        self._door.fill(response.header, revision)
        return response

    async def HashKV(
        self,
        request: rpc_pb2.HashKVRequest,
        context: "Context[rpc_pb2.HashKVRequest, rpc_pb2.HashKVResponse]",
    ) -> rpc_pb2.HashKVResponse:
        """Hash of all that is kept as of a revision: equal on all nodes that hold the same then."""
        return await self._door.answer(context, self._hash_kv(request))

    async def _hash_kv(self, request: rpc_pb2.HashKVRequest) -> rpc_pb2.HashKVResponse:
        await self._door.own_answers_visible()
        while True:
            with self._door.storage.read() as txn:
                revision = current_revision(txn)
                check_revision(txn, request.revision, revision)
            hashed = request.revision if request.revision > 0 else revision
            try:
                found = await self._hash_at(hashed)
            except CompactedError:
                if request.revision > 0:
                    raise
                continue  # the newest revision was asked for, and there is a newer one now
            response = rpc_pb2.HashKVResponse(
                hash=found.value, compact_revision=found.compacted, hash_revision=hashed
            )
            self._door.fill(response.header, revision)
            return response

    async def _hash_at(self, revision: int) -> KeptHash | StateHash:
        """In threads, so that a slow disk stops nobody else; few at a time, as they take the GIL.

        Raises:
            TooManyRequestsError: others are under way.
        """
        if self._hashing >= HASHES_MAX:
            raise TooManyRequestsError
        self._hashing += 1
        try:
            return await self._hash_in_slices(revision)
        finally:
            self._hashing -= 1

    async def _hash_in_slices(self, revision: int) -> KeptHash | StateHash:
        kept = self._door.feature_level() >= KEPT_HASH_LEVEL
        found = (KeptHash if kept else StateHash)(self._door.storage, revision)
        loop = asyncio.get_running_loop()
        while not await loop.run_in_executor(None, found.step):
            pass
        return found

    async def Defragment(
        self,
        request: rpc_pb2.DefragmentRequest,
        context: "Context[rpc_pb2.DefragmentRequest, rpc_pb2.DefragmentResponse]",
    ) -> rpc_pb2.DefragmentResponse:
        """Make this node's file as small as what it holds, while it serves."""
        return await self._door.answer(context, self._defragment())

    async def _defragment(self) -> rpc_pb2.DefragmentResponse:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        self._door.defragment(lambda done: _tell_soon(loop, ended, done))
        if not await ended:
            raise DefragmentFailedError
        return rpc_pb2.DefragmentResponse()

    async def Snapshot(  # type: ignore[override] # it writes, where others yield
        self,
        request: rpc_pb2.SnapshotRequest,
        context: "Context[rpc_pb2.SnapshotRequest, rpc_pb2.SnapshotResponse]",
    ) -> None:
        """Send a copy of the state: blobs, then the sha256 of all of them."""
        await self._door.answer(context, self._snapshot(context))

    async def _snapshot(
        self, context: "Context[rpc_pb2.SnapshotRequest, rpc_pb2.SnapshotResponse]"
    ) -> None:
        if self._door.me in self._door.alarms.corrupt:  # a backup must be sound
            raise CorruptClusterError
        if Reason.UNVERIFIED in self._door.raft_status().fitness.reasons:
            raise UnverifiedError
        await self._door.own_answers_visible()
        await self._snapshots.send(context.write)

    async def MoveLeader(
        self,
        request: rpc_pb2.MoveLeaderRequest,
        context: "Context[rpc_pb2.MoveLeaderRequest, rpc_pb2.MoveLeaderResponse]",
    ) -> rpc_pb2.MoveLeaderResponse:
        """Hand leadership to another voter; asked of the active only."""
        return await self._door.answer(context, self._move_leader(request))

    async def _move_leader(self, request: rpc_pb2.MoveLeaderRequest) -> rpc_pb2.MoveLeaderResponse:
        if not self._door.role.active:
            raise NotLeaderError
        target = MemberId(request.targetID)
        member = self._door.roster.members.get(target)
        if member is None or member.learner or target in self._door.alarms.corrupt:
            raise BadTransfereeError
        if target != self._door.me:
            await self._door.operator.move_leader(target)
        return rpc_pb2.MoveLeaderResponse()

    async def Downgrade(
        self,
        request: rpc_pb2.DowngradeRequest,
        context: "Context[rpc_pb2.DowngradeRequest, rpc_pb2.DowngradeResponse]",
    ) -> rpc_pb2.DowngradeResponse:
        """Not here: said as by a server of etcd that does not know it."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            "unknown method Downgrade for service etcdserverpb.Maintenance",
        )
        raise AssertionError  # abort has raised already


def _tell_soon(loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[bool]", done: bool) -> None:
    """From another thread."""

    def tell() -> None:
        if not ended.done():  # its client may have left
            ended.set_result(done)

    if not loop.is_closed():
        loop.call_soon_threadsafe(tell)
