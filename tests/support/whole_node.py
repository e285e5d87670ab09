"""A simulated node that is whole: KV service, pipeline, applier and store around the engine.

Only sockets and LMDB are missing; its main thread is a loop in virtual time.
"""

import hashlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
from support.calls import AbortedError
from support.simulation import SimNode
from support.virtual_loop import VirtualLoop

from kvpb.raft_pb2 import PublishMember
from kvpb.rpc_pb2 import LeaseKeepAliveResponse
from kvserver.api.door import Door
from kvserver.api.kv import KvServicer
from kvserver.api.lease import LeaseServicer
from kvserver.api.session import SessionServicer
from kvserver.config import GIB
from kvserver.mvcc.history import Change
from kvserver.mvcc.leases import LeaseChange
from kvserver.node import BEAT_S
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.crossing import Crossing
from kvserver.pipeline.features import FEATURE_LEVEL
from kvserver.pipeline.herald import Herald
from kvserver.pipeline.lessor import Lessor
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.operator import Operator
from kvserver.pipeline.outcome import Result
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.reader import Reader
from kvserver.pipeline.role import Role, RoleMachine
from kvserver.pipeline.roster import Roster
from kvserver.pipeline.space import Space
from kvserver.pipeline.watchdog import RaftWatch
from kvserver.pipeline.watching import WatchHub
from kvserver.raft.membership import Configuration
from kvserver.raft.ports import Machine, Proposals
from kvserver.raft.status import RaftStatus
from kvserver.storage.schema import META

HISTORY_ROW = b"history"


class RecordedApplier(Applier):
    """The applier, and a digest of everything applied that travels with the state."""

    applied: list[tuple[int, int, bytes | None]]
    digest = b""

    def reload(self) -> None:
        super().reload()
        self.applied = getattr(self, "applied", [])
        with self._storage.read() as txn:
            self.digest = txn.get(META, HISTORY_ROW) or b""

    @property
    def tidying(self) -> bool:
        """Whether compacted changes are still being removed."""
        return self._compactor is not None

    def apply(self, index: int, term: int, batch: bytes | None) -> None:
        super().apply(index, term, batch)
        self.applied.append((index, term, batch))
        told = self.digest + b"%d %d " % (index, term) + (batch or b"-")
        self.digest = hashlib.sha256(told).digest()

    def moved(self) -> None:
        super().moved()
        with self._storage.read() as txn:
            assert (txn.get(META, HISTORY_ROW) or b"") == self.digest
            assert self.applied_of(txn)[0] == self.applied_index

    def stage(self) -> bool:
        staged = super().stage()
        if staged:
            self._storage.writer().put(META, HISTORY_ROW, self.digest)
        return staged


Metadata = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Sent:
    """A request with its metadata."""

    method: str
    request: Any
    metadata: Metadata


class CallContext:
    """Of one call."""

    def __init__(self, metadata: Metadata = ()) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    async def abort(
        self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str], ...] = ()
    ) -> NoReturn:
        raise AbortedError(details, dict(trailers).get("kv-leader"))


def _no_backup(given_up: threading.Event) -> NoReturn:
    raise NotImplementedError


class WholeNode(SimNode):
    """One member with its KV service."""

    machine: RecordedApplier  # type: ignore[assignment] # instead of the log

    def furnish(self) -> tuple[Machine, Proposals]:
        clock, limits = self.cluster.clock, Limits()
        self.loop = VirtualLoop(clock)  # type: ignore[abstract] # nobody asks for the rest
        self.roster = Roster()
        self.machine = RecordedApplier(self.storage, self.roster, self._on_applied)
        self.reader = Reader(limits, clock, knock=self.knock)
        self.space = Space(self.storage, clock, GIB, self.machine.alarms, self.reader.linearizable)
        self.proposer = Proposer(
            limits, clock, knock=self.knock, log_time_ms=lambda: self.machine.log_time_ms,
            feature_level=lambda: self.machine.feature_level,
            room=self.space,
        )  # fmt: skip
        self.machine.awaited = self.proposer.awaits
        self.role = RoleMachine(self.me, limits, clock, self._on_role)
        self._herald = Herald(
            self.roster, self.proposer, feature_level=lambda: self.machine.feature_level,
            spawn=self.loop.create_task, on_event=lambda *_, **__: None,
        )  # fmt: skip
        self._watches = WatchHub(
            self.storage, lambda: self._crossing.applied_index_visible, self._fail
        )
        self.lessor = Lessor(
            self.storage, clock, self.cluster.rng, ttl_s_min=lambda: 1,
            propose=self.proposer.propose, linearizable=self.reader.linearizable,
            log_time_ms=self.proposer.log_time_ms,
            stamped_ms=lambda: self.machine.log_time_ms, on_failure=self._fail,
        )  # fmt: skip
        self._crossing = Crossing(
            self.loop, self.proposer, self._on_status, self._watches.publish, self.lessor.publish,
            self._fail,
        )  # fmt: skip
        self._watch = RaftWatch(clock.monotonic(), self.cluster.timings.election_timeout_max)
        self._door = self._build_door(limits)
        self.servicer = KvServicer(self._door)
        self._leases = LeaseServicer(self._door)
        self._sessions = SessionServicer(self._door)
        self.loop.call_later(BEAT_S, self._beat)
        return self.machine, self.proposer

    def _build_door(self, limits: Limits) -> Door:
        return Door(
            me=self.me, cluster_id=self.identity.cluster_id, role=self.role,
            proposer=self.proposer, reader=self.reader,
            operator=Operator(
                self.me, limits, self.role, self.roster,
                post=lambda change: self._in_turn(lambda: self.engine.change_members(change)),
                hand_over=lambda to, tell: self._in_turn(lambda: tell(self.engine.hand_over(to))),
            ),
            roster=self.roster, storage=self.storage, crossing=self._crossing,
            raft_status=lambda: self.status, on_failure=self._fail, watches=self._watches,
            lessor=self.lessor,
            clock=self.cluster.clock, newest_revision=lambda: self.machine.revision,
            feature_level=lambda: self.machine.feature_level,
            compacted_to=lambda: self.machine.compacted_to, make_backup=_no_backup,
            alarms=self.machine.alarms, quota_bytes=GIB,
            defragment=lambda done: self._in_turn(lambda: self.engine.defragment(done)),
            match_index=lambda _: 0, raft_silent_s=lambda: self._watch.silent_s,
        )  # fmt: skip

    @property
    def attributes(self) -> PublishMember:
        return PublishMember(
            id=self.me, client_urls=[f"http://{self.name}"], feature_level=FEATURE_LEVEL
        )

    def knock(self) -> None:
        self.due = 0.0

    def _fail(self, error: BaseException) -> None:
        self.loop.failure = self.loop.failure or error

    def _on_applied(
        self, index: int, term: int, results: list[Result], changes: list[Change],
        leases: list[LeaseChange],
    ) -> None:  # fmt: skip
        self.proposer.applied(index, term, results)
        self._crossing.applied(changes, leases)
        self.cluster.on_leases(leases)

    def _in_turn(self, step: Callable[[], object]) -> None:
        step()
        self.knock()

    # ------------------------------------------------------------------ raft thread

    def on_members(self, configuration: Configuration) -> None:
        self.roster.set_members(configuration)

    def called_no_member(self, *, called: bool) -> None:
        self.role.set_removed(called)

    def before_turn(self) -> None:
        reads = self.reader.take()
        if reads:
            self.engine.post_reads(reads)

    def on_applied(self) -> None:
        self._crossing.results()

    def end_turn(self, status: RaftStatus, ready: list[object], failed: list[object]) -> None:
        self._crossing.end_turn(status, ready, failed)

    # ------------------------------------------------------------------ main thread

    def run_loop(self) -> None:
        self.loop.run()

    def loop_due(self) -> float:
        return self.loop.due()

    def died(self) -> None:
        self.loop.kill()

    def _beat(self) -> None:
        self.proposer.expire()
        self.reader.expire()
        now, pace = self.cluster.clock.monotonic(), self.machine.pace
        self._watch.look(now, turns=self.turns, steps=pace.steps)
        self.role.obstruct(self._watch.obstacle)
        self.loop.call_later(BEAT_S, self._beat)

    def _on_status(self, status: RaftStatus) -> None:
        self.role.observe(status)
        if not status.active:
            return
        self._herald.tell([self.attributes, *status.peers.values()])

    def _on_role(self, role: Role, term: int, reason: str) -> None:
        self.cluster.tell(self.name, f"{role.value}, term {term}: {reason}")
        self.cluster.role_changes[reason] += 1
        if role is Role.ACTIVE:
            self._watches.activate(self.machine.revision)
            self.lessor.activate(term)
        else:
            self._watches.close()
            self.lessor.close()

    def serve(self, method: str, request: object) -> Coroutine[Any, Any, Any]:
        """Answer a call as the API does; AbortedError is a status."""
        metadata: Metadata = ()
        if isinstance(request, Sent):
            metadata, request = request.metadata, request.request
        context = cast("grpc.aio.ServicerContext[Any, Any]", CallContext(metadata))
        if method == "LeaseKeepAlive":
            return self._keep_alive(cast("Any", request).ID, context)
        if method == "Open":
            return self._sessions.Open(cast("Any", request), context)
        servicer = self._leases if method.startswith("Lease") else self.servicer
        answer: Coroutine[Any, Any, Any] = getattr(servicer, method)(request, context)
        return answer

    async def _keep_alive(self, lease: int, context: Any) -> Any:
        """One keepalive of a stream."""
        return await self._door.answer(context, self._kept_alive(lease))

    async def _kept_alive(self, lease: int) -> LeaseKeepAliveResponse:
        await self.role.require_active()
        (ttl_s,) = await self.lessor.keep_alive([lease])
        return LeaseKeepAliveResponse(ID=lease, TTL=ttl_s)
