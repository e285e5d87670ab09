"""The quota: how much the state of this node takes, and which writes must wait for room.

Decided before anything is proposed, never by applying: the pages that are free differ from node to
node, and nodes that decide differently hold different states. Main thread.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import TxnRequest
from kvserver.clock import Clock
from kvserver.errors import NoSpaceError
from kvserver.mvcc.sessions import is_settled
from kvserver.pipeline.alarms import Alarms
from kvserver.storage.contract import Storage

PUT_BYTES: Final = 256
"""What a put takes beside key and value, as etcd reckons."""

LEASE_BYTES: Final = 64
SESSION_BYTES: Final = 4096
"""With the answers that are kept: few as a rule, 32 times as much at the most."""

ROOM_PART: Final = 0.95
"""There is room again when no more than this part of the quota is taken: else an alarm would come
and go with every write."""

REFUSED_PART: Final = 0.25
"""Of the quota: what is larger and was refused does not keep the alarm up, it might never fit."""

FRESH_S: Final = 0.05
"""A measure is trusted for so long. It lacks what was let through just before it and is not applied
and visible yet: the quota may be overrun by so much."""


class Space:
    """The state of this node against its quota."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        quota_bytes: int,
        alarms: Alarms,
        moment: Callable[[], Awaitable[None]],
    ) -> None:
        """Measure for the first time.

        Args:
            storage: of the node.
            clock: of the node.
            quota_bytes: what the state may take: pages with rows of it. The log and the pages that
                are free do not count; so deletions with a compaction make room.
            alarms: of the cluster.
            moment: returns when a read transaction sees all that was answered before.
        """
        self._storage = storage
        self._moment = moment
        self._clock = clock
        self.quota_bytes = quota_bytes
        self._alarms = alarms
        self.full = False
        """This node needs the alarm. Invariant: once set, until no more than ROOM_PART of the quota
        is taken and what was refused would fit; above that part it also needs that of another, so
        that no restart or failover ends it."""
        self._refused = 0
        """Bytes that the command needs which was refused last, or REFUSED_PART of the quota."""
        self._measure()

    def look(self) -> None:
        """Measure, and see whether there is room (again). Called now and then."""
        self._measure()
        if self._used > self.quota_bytes:
            self.full = True
        elif self._used <= min(self.quota_bytes * ROOM_PART, self.quota_bytes - self._refused):
            self.full, self._refused = False, 0
        elif self._used > self.quota_bytes * ROOM_PART and self._alarms.out_of_space:
            self.full = True

    def admit(self, command: Command) -> None:
        """Let a command pass that is to be proposed.

        Raises:
            NoSpaceError: it puts something and there is no room; nothing was done.
        """
        cost = cost_of(command)
        if not cost:
            return
        if self.full or self._alarms.out_of_space:
            raise NoSpaceError
        if self._used + self._admitted + cost > self.quota_bytes:
            if self._clock.monotonic() - self._measured_at > FRESH_S:
                self._measure()
            if self._used + self._admitted + cost > self.quota_bytes:
                self.full = True
                self._refused = min(cost, int(self.quota_bytes * REFUSED_PART))
                raise NoSpaceError
        self._admitted += cost

    async def is_settled(self, command: Command) -> bool:
        """Whether a numbered write puts nothing any more: it may pass, to get its answer again.

        All that was answered before this call is taken into account.

        Raises:
            RequestError: that can't be told here and now.
        """
        await self._moment()
        with self._storage.read() as txn:
            return is_settled(txn, command)

    def _measure(self) -> None:
        _, self._used = self._storage.size()
        self._admitted = 0
        """Estimated bytes of what was let through since the last measure."""
        self._measured_at = self._clock.monotonic()


def cost_of(command: Command) -> int:
    """Bytes that a command may add, as etcd estimates; 0 for what is always done."""
    match command.WhichOneof("request"):
        case "put":
            return _put_cost(len(command.put.key), len(command.put.value))
        case "txn":
            return _txn_cost(command.txn)
        case "lease_grant":
            return LEASE_BYTES
        case "open_session":
            return SESSION_BYTES
        case _:
            return 0


def _put_cost(key_bytes: int, value_bytes: int) -> int:
    return key_bytes + value_bytes + PUT_BYTES


def _txn_cost(request: TxnRequest) -> int:
    """Of the branch that takes more."""
    costs = [0, 0]
    for branch, ops in enumerate((request.success, request.failure)):
        for op in ops:
            if op.HasField("request_put"):
                costs[branch] += _put_cost(len(op.request_put.key), len(op.request_put.value))
            elif op.HasField("request_txn"):
                costs[branch] += _txn_cost(op.request_txn)
    return max(costs)
