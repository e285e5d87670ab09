"""What the consensus is given: its times, and the three neighbours it talks to."""

from dataclasses import dataclass
from typing import Protocol

from kvpb.raft_pb2 import PeerMessage
from kvserver.config import Config
from kvserver.raft.entry import MemberId
from kvserver.storage.contract import ReadTxn, Storage


@dataclass(frozen=True)
class Timings:
    """Seconds."""

    heartbeat: float = 0.05
    election_timeout_min: float = 0.3
    election_timeout_max: float = 0.6
    check_quorum: float = 0.6
    rank_step: float = 0.03
    dead_peer: float = 1.5


def timings_of(config: Config) -> Timings:
    """As the operator wants them."""
    return Timings(
        heartbeat=config.heartbeat_ms / 1000,
        election_timeout_min=config.election_timeout_ms_min / 1000,
        election_timeout_max=config.election_timeout_ms_max / 1000,
        check_quorum=config.check_quorum_ms / 1000,
        dead_peer=config.dead_peer_ms / 1000,
    )


class Outbox(Protocol):
    """Where messages to peers go."""

    def send(self, member: MemberId, message: PeerMessage, *, after_sync: bool) -> None:
        """Send, or hold until the turn is durable; dropped if the peer is not connected."""
        ...


class Proposals(Protocol):
    """Where entries come from, on a leader that may take some."""

    def take(self) -> bytes | None:
        """The next encoded CommandBatch, None if there is nothing to propose now."""
        ...

    def appended(self, index: int, term: int) -> None:
        """What was taken last is in the leader's log at `index`."""
        ...


class StateMachine(Protocol):
    """Where committed entries go, in order, each once."""

    def apply(self, index: int, term: int, batch: bytes | None) -> None:
        """Apply a batch; None for an entry that changes no state. Must not fail on data."""
        ...


class Shadow(StateMachine, Protocol):
    """A state machine that works on another storage and tells nobody."""

    applied_index: int

    def stage(self) -> bool:
        """Put what belongs to the applied entries into the transaction; False if nothing did."""
        ...


class Machine(StateMachine, Protocol):
    """The state machine as the turn sees it."""

    applied_index: int
    feature_level: int
    """What all members must understand."""

    @property
    def disqualified(self) -> frozenset[MemberId]:
        """Members whose state differs from that of others and must not be served."""
        ...

    def stage(self) -> bool:
        """Put what belongs to the applied entries into the transaction; False if nothing did."""
        ...

    def work(self) -> bool:
        """Do a little of what is to be done at leisure; True if it changed rows."""
        ...

    def reload(self) -> None:
        """The storage holds another state now: go on from it."""
        ...

    def shadow(self, storage: Storage) -> Shadow:
        """A machine like this one for a copy of its storage, which tells nobody what it does."""
        ...

    def moved(self) -> None:
        """The storage holds the same state in another place: go on with it there."""
        ...

    def applied_of(self, txn: ReadTxn) -> tuple[int, int]:
        """Index and term of the newest entry whose effects a state holds."""
        ...
