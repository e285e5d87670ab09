"""An active whose raft thread stands still for a moment, and goes on in the same term."""

from typing import Any

import pytest
from support.simulation import Cluster
from support.whole_node import WholeNode

from kvpb.rpc_pb2 import LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest
from kvserver.mvcc.leases import LeaseChange
from kvserver.pipeline.role import RECOVERED
from kvserver.pipeline.watchdog import STUCK
from kvserver.raft import consensus, flow

LEASE, TTL_S = 1, 1

BACKLOG = 65
"""Entries that the witness lacks: it has them some 0.6 s after the active is back."""


def _whole(node: object) -> WholeNode:
    assert isinstance(node, WholeNode)
    return node


class _Story:
    """The end of a lease is in flight for long: its only witness has much to catch up with.

    A peer that catches up confirms read rounds all the while, but no entry before the last one.
    """

    def __init__(self) -> None:
        self.cluster = Cluster(3, node_type=WholeNode)
        self.active = _whole(self.cluster.elect())
        self.late, self.other = map(_whole, self.cluster.standbys())
        self.ended_at = float("inf")
        self.cluster.on_leases = self._on_leases

    def _on_leases(self, changes: list[LeaseChange]) -> None:
        if LeaseChange(LEASE, None) in changes:
            self.ended_at = min(self.ended_at, self.cluster.clock.now)

    def ask(self, method: str, request: Any) -> Any:
        task = self.active.loop.create_task(self.active.serve(method, request))
        assert self.cluster.run(5, until=task.done)
        return task.result()

    def let_the_end_be_in_flight(self) -> None:
        cluster = self.cluster
        cluster.run(10)  # after a short reign the log would have to hear how late it is
        cluster.crash(self.late.me)
        for number in range(BACKLOG):
            self.ask("Put", PutRequest(key=b"%d" % number, value=b"x" * 200))
        self.ask("LeaseGrant", LeaseGrantRequest(ID=LEASE, TTL=TTL_S))
        cluster.run(0.9)
        cluster.storages[self.late.name].commit_s = 0.06
        self.late = _whole(cluster.start(self.late.name))
        cluster.run(0.05)
        cluster.crash(self.other.me)
        assert cluster.run(1, until=self._end_is_appended)
        assert self.ended_at == float("inf")

    def _end_is_appended(self) -> bool:
        flight = self.active.proposer._flight
        return flight is not None and any(
            LEASE in proposal.command.expire_leases.ids for proposal in flight.proposals
        )

    def let_it_step_aside(self) -> None:
        cluster, term = self.cluster, self.active.role.term
        cluster.stick(self.active.me, 0.7)
        assert cluster.run(1, until=lambda: not self.active.role.active)
        assert cluster.run(1, until=lambda: self.active.role.active)
        assert self.active.role.term == term
        assert (cluster.role_changes[STUCK], cluster.role_changes[RECOVERED]) == (1, 1)
        assert self.ended_at == float("inf"), "it is still in flight"


def seconds_a_lease_ends_early() -> float:
    """Before the time that its client was told."""
    story = _Story()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "WINDOW_BYTES_MAX", 1_000)
        patch.setattr(consensus, "MESSAGE_BYTES_MAX", 1_000)
        story.let_the_end_be_in_flight()
        story.let_it_step_aside()
        asked_at = story.cluster.clock.now
        told_s: int = story.ask("LeaseKeepAlive", LeaseKeepAliveRequest(ID=LEASE)).TTL
        story.cluster.run(5, until=lambda: story.ended_at < float("inf"))
    return max(0.0, asked_at + told_s - story.ended_at)
