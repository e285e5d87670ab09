"""What every servicer needs: who may serve, what goes in a header, how an error leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc

from kvpb.rpc_pb2 import ResponseHeader
from kvserver.api.status import STOPPED, status_of
from kvserver.clock import Clock
from kvserver.errors import NodeError, NotActiveError, RequestError
from kvserver.pipeline.alarms import Alarms
from kvserver.pipeline.crossing import Crossing
from kvserver.pipeline.lessor import Lessor
from kvserver.pipeline.operator import Operator
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.reader import Reader
from kvserver.pipeline.role import RoleMachine
from kvserver.pipeline.roster import Roster
from kvserver.pipeline.watching import WatchHub
from kvserver.raft.defragment import Done
from kvserver.raft.entry import MemberId
from kvserver.raft.status import RaftStatus
from kvserver.storage.contract import MakeBackup, Storage

Reply = TypeVar("Reply")

VISIBLE_LOOK_S: Final = 0.002


@dataclass(frozen=True)
class Door:
    """The rooms behind the API, as its servicers see them."""

    me: MemberId
    cluster_id: int
    role: RoleMachine
    proposer: Proposer
    reader: Reader
    operator: Operator
    roster: Roster
    storage: Storage
    crossing: Crossing
    raft_status: Callable[[], RaftStatus]
    on_failure: Callable[[NodeError], object]
    """Ends the node."""
    watches: WatchHub
    lessor: Lessor
    clock: Clock
    newest_revision: Callable[[], int]
    """Of the newest applied change, which a read may not see yet."""
    feature_level: Callable[[], int]
    """Of the cluster, as this node has applied it."""
    compacted_to: Callable[[], int]
    """Revision before which this node's disk holds nothing old any more."""
    make_backup: MakeBackup
    alarms: Alarms
    quota_bytes: int
    defragment: Callable[[Done], None]
    """Begins to defragment this node; told in the raft thread how that ended."""
    match_index: Callable[[MemberId], int]
    """Newest entry known to be on a peer's disk; 0 if unknown, or unless this node leads."""
    raft_silent_s: Callable[[], float]
    """How long the raft thread has shown no sign of life."""
    verified_part: Callable[[], float] = lambda: 1.0
    """Which part of the state was read since it came back, 1 for all of it."""
    watch_progress_s: float = 600.0
    """After so long without an event a watcher that asked for it is told how far it is."""

    def fill(self, header: ResponseHeader, revision: int | None = None) -> None:
        """Complete the header of a reply; `revision` None keeps what is there."""
        header.cluster_id = self.cluster_id
        header.member_id = self.me
        header.raft_term = self.role.term
        if revision is not None:
            header.revision = revision

    async def read_moment(self, *, serializable: bool) -> None:
        """Return when a read transaction may be opened for this kind of read."""
        if not serializable or not self.crossing.up_to_date:
            await self.reader.linearizable()

    async def own_answers_visible(self) -> None:
        """Return when a read transaction opened now sees every write this node has acknowledged."""
        told = self.crossing.applied_index_told
        while self.crossing.applied_index_visible < told:
            await asyncio.sleep(VISIBLE_LOOK_S)

    def hint(self) -> tuple[tuple[str, str], ...]:
        """Trailers that tell a client where the active is."""
        leader = self.role.leader
        if leader is None or leader == self.me:
            return ()
        address = self.roster.client_address(leader)
        if address is None:
            return ()
        return (("kv-leader", address), ("kv-term", str(self.role.term)))

    async def answer(
        self,
        context: "grpc.aio.ServicerContext[Any, Any]",
        work: Awaitable[Reply],
    ) -> Reply:
        """The reply, or the error as the catalogue has it."""
        try:
            return await work
        except RequestError as error:
            code, text = status_of(error)
            trailers = self.hint() if isinstance(error, NotActiveError) else ()
            await context.abort(code, text, trailers)
            raise  # abort has raised already
        except NodeError as error:  # only reading raises one: nothing was done
            self.on_failure(error)
            await context.abort(*STOPPED)
            raise
