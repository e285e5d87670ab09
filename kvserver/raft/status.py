"""What a node hands its engine, what the engine is told, and what a turn leaves behind."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage
from kvserver.clock import Clock
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Fitness
from kvserver.raft.identity import ClusterPlan
from kvserver.raft.journal import LogBounds
from kvserver.raft.membership import Configuration
from kvserver.raft.ports import Machine, Proposals, Timings
from kvserver.storage.contract import Copies, Storage


@dataclass(frozen=True)
class Connected:
    """A peer said hello and is believed; also when a later hello of it changed."""

    member: MemberId
    hello: raft_pb2.Hello


@dataclass(frozen=True)
class Disconnected:
    """The connection to a peer is gone."""

    member: MemberId
    replaced: bool = False
    """By a newer one, which is up: what was on its way is lost, the peer is not."""


@dataclass(frozen=True)
class Received:
    """A message of a believed peer."""

    member: MemberId
    message: PeerMessage


Event = Connected | Disconnected | Received


class Wire(Protocol):
    """Connections to the peers."""

    def send(self, member: MemberId, message: PeerMessage) -> None:
        """Send on the open connection; dropped if there is none."""
        ...

    def say_hello(self) -> None:
        """Say hello again on all open connections: what it says has changed."""
        ...

    def set_peers(self, peers: Mapping[MemberId, raft_pb2.Member]) -> None:
        """Talk to these and nobody else."""
        ...


@dataclass(frozen=True)
class RaftStatus:
    """What a turn leaves behind, for everybody outside the raft thread."""

    term: int
    leader: MemberId | None
    """None while unknown or suspected."""
    leading: bool
    active: bool
    """Leading, and the no-op of the term is applied."""
    established: bool
    commit_index: int
    applied_index: int
    visible_index: int
    """Newest entry whose effects a read transaction opened now sees."""
    last_index: int
    peers: Mapping[MemberId, raft_pb2.PublishMember]
    """What the connected peers say about themselves; a new object whenever it changes."""
    fitness: Fitness = field(default_factory=Fitness)
    """Of this node."""
    unverified: frozenset[MemberId] = frozenset()
    """Members whose state nobody has read since they came back; this node's connected peers, and
    itself."""

    @property
    def fit(self) -> bool:
        """True if this node is in touch with a leader and could take over: for standbys."""
        return self.established and self.leader is not None and not self.fitness.reasons


@dataclass(frozen=True)
class EngineParts:
    """What a node gives its engine."""

    storage: Storage
    copies: Copies
    identity: raft_pb2.Identity
    plan: ClusterPlan
    timings: Timings
    clock: Clock
    rng: random.Random
    wire: Wire
    machine: Machine
    proposals: Proposals
    on_applied: Callable[[], None]
    """Called in a turn when everything committed so far is applied, before the sync."""
    on_turn: Callable[[RaftStatus, list[object], list[object]], None]
    """Called last in a turn with reads to answer and reads that failed."""
    on_members: Callable[[Configuration], None]
    """Called when another configuration is applied, and at the start."""
    on_event: Callable[..., None]
    """Log: event name, then fields."""
    on_aside: Callable[[MemberId, PeerMessage], None] = lambda *_: None
    """Told what a peer says that is not about the log."""
    bounds: LogBounds = field(default_factory=LogBounds)
    verified: bool = True
    """The storage was begun by this process: nothing in it needs to be verified."""
    on_replaced: Callable[[int], None] = lambda _: None
    """Told that a copy has taken the place of the state, the how many-th: it is unverified."""
