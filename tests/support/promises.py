"""What must hold at every moment of a simulated run, and what it has seen."""

from dataclasses import dataclass, field

from support.sim_network import Observer
from support.simulation import Cluster, SimNode

from kvpb.raft_pb2 import HardState, PeerMessage
from kvserver.pipeline.moments import NAMES, OWN_PACE, Moments
from kvserver.raft.election import quorum
from kvserver.raft.entry import MemberId
from kvserver.raft.membership import Configuration


class ViolationError(AssertionError):
    """A promise was broken."""


@dataclass
class History:
    """What the outside has seen, over all crashes."""

    committed: dict[int, tuple[int, bytes | None]] = field(default_factory=dict)
    index_of: dict[bytes, int] = field(default_factory=dict)
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    leader_of: dict[int, MemberId] = field(default_factory=dict)
    terms: dict[MemberId, int] = field(default_factory=dict)
    commits: dict[MemberId, int] = field(default_factory=dict)
    """Commit index on the disk of each member."""
    votes: dict[tuple[MemberId, int], MemberId] = field(default_factory=dict)
    """As they left: who voted for whom in a term."""
    digests: dict[int, bytes] = field(default_factory=dict)
    """State by applied index, whether it was applied or adopted."""
    seconds: float = 0.0
    healed_after: float = 0.0
    """Virtual seconds from the end of the faults to an active."""
    sent: dict[str, int] = field(default_factory=dict)
    calm_sent: dict[str, int] = field(default_factory=dict)
    """In the calm at the end, and how many entries were committed in it."""
    calm_load: float = 0.0
    """Messages in the calm; 1 is a message and its reply to each peer for each heartbeat, each
    entry and each read."""
    writes: int = 0
    unknown: int = 0
    repeated: int = 0
    """Attempts of numbered writes after one that got no answer."""
    lost_sessions: int = 0
    reads: int = 0
    crashes: int = 0
    stuck: int = 0
    """Raft threads that stood still beside their main thread."""
    role_changes: dict[str, int] = field(default_factory=dict)
    """Of whole nodes, by reason."""
    adopted: int = 0
    trimmed: int = 0
    changes: int = 0
    wiped: int = 0
    joined: int = 0
    damaged: int = 0
    """States that lost a row while their node was down."""
    found: int = 0
    """Damage that a node has found in its own state."""
    believed: int = 0
    """Runs that ended early: all had restarted, and the first to lead was damaged."""

    @property
    def highest_acknowledged(self) -> int:
        return max(self.acknowledged.values(), default=0)


class Promises(Observer):
    """Looks at every vote that leaves and at every node after each of its turns."""

    def __init__(self, cluster: Cluster, *, unique_batches: bool) -> None:
        self._cluster = cluster
        self._unique_batches = unique_batches
        self.history = History()
        self.open_reads: dict[str, int] = {}
        """On a node without a store: reads, and what was acknowledged before they began."""
        self._entries: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        """By index and term: payload and the term before it."""
        self._verified: dict[int, dict[int, int]] = {}
        self._applied: dict[int, int] = {}
        self._commit: dict[int, int] = {}
        self._configuration: dict[int, Configuration] = {}
        self._committed_in: dict[int, int] = {}
        """By index: a term by which it was committed."""
        self._newest = 0
        self._compared: dict[tuple[int, str], int] = {}
        """Digests by index and database, as the first member had them."""
        cluster.observer = self
        cluster.on_turned = self.turned
        cluster.on_finished = self.finished
        cluster.on_started = self.started
        for node in cluster.nodes.values():
            self.started(node)

    # ------------------------------------------------------------------ what is seen

    def sent(self, source: MemberId, target: MemberId, message: PeerMessage) -> None:
        match message.WhichOneof("message"):
            case "vote_reply":
                self._vote(source, message.vote_reply.term, target)
            case "request_vote":
                self._vote(source, message.request_vote.term, source)
            case _:
                pass

    def _vote(self, voter: MemberId, term: int, chosen: MemberId) -> None:
        if self.history.votes.setdefault((voter, term), chosen) != chosen:
            raise ViolationError(f"{self._cluster.name_of(voter)} voted twice in term {term}")

    def started(self, node: SimNode) -> None:
        self._configuration[id(node)] = node.engine._raft.configuration
        self._verified[id(node)] = {}
        self._applied[id(node)] = 0
        self._commit[id(node)] = 0
        status = node.status
        if status.term < self.history.terms.get(node.me, 0):
            raise ViolationError(f"{node.name} went back to term {status.term}")
        if status.commit_index < self.history.commits.get(node.me, 0):
            raise ViolationError(f"{node.name} went back to commit index {status.commit_index}")

    def forget(self, member: MemberId) -> None:
        """Its disk is lost."""
        for kept in (self.history.terms, self.history.commits):
            kept.pop(member, None)

    # ------------------------------------------------------------------ after a turn

    def turned(self, node: SimNode) -> None:
        self._check_leader(node)
        self._check_log(node)
        self._check_commit(node)
        self._check_applied(node)
        history = self.history
        history.adopted += sum(1 for name, _ in node.events if name == "snapshot.adopted")
        node.events.clear()
        history.trimmed = max(history.trimmed, node.engine._journal.first_index - 1)
        self._configuration[id(node)] = node.engine._raft.configuration

    def finished(self, node: SimNode) -> None:
        history, status = self.history, node.status
        if status.term < history.terms.get(node.me, 0):
            raise ViolationError(f"{node.name} went back to term {status.term}")
        history.terms[node.me] = status.term
        stored = HardState.FromString(node.storage.log.state).commit_index
        if stored < history.commits.get(node.me, 0):
            raise ViolationError(f"{node.name} stores commit index {stored}, a lower one")
        history.commits[node.me] = stored
        for token in node.reads_done:
            assert isinstance(token, str)
            if status.visible_index < self.open_reads[token]:
                raise ViolationError(f"{token} is stale on {node.name}")
        node.reads_done.clear()

    def _check_leader(self, node: SimNode) -> None:
        status, leaders = node.status, self.history.leader_of
        if not status.leading:
            return
        if status.term in leaders:
            if leaders[status.term] != node.me:
                raise ViolationError(f"two leaders in term {status.term}")
            return
        leaders[status.term] = node.me
        index, journal = self._newest, node.engine._journal
        while index and self._committed_in[index] >= status.term:
            index -= 1
        if index < journal.first_index:
            return
        held = journal.last_index >= index and journal.entry(index).term
        if held != self.history.committed[index][0]:
            raise ViolationError(
                f"{node.name} leads term {status.term} without the committed entry {index}"
            )

    def _check_log(self, node: SimNode) -> None:
        """Same index and term, same entry, and the same before it."""
        journal, verified = node.engine._journal, self._verified[id(node)]
        index = journal.last_index
        while index > journal.first_index:
            entry = journal.entry(index)
            if verified.get(index) == entry.term:
                break
            told = (entry.payload, journal.entry(index - 1).term)
            if self._entries.setdefault((index, entry.term), told) != told:
                raise ViolationError(f"entry {index} of term {entry.term} differs on {node.name}")
            verified[index] = entry.term
            index -= 1

    def _check_commit(self, node: SimNode) -> None:
        """It never goes back, and a leader has a quorum of disks behind it."""
        status, before = node.status, self._commit[id(node)]
        if status.commit_index < before:
            raise ViolationError(f"{node.name}: commit index {before} -> {status.commit_index}")
        self._commit[id(node)] = status.commit_index
        journal = node.engine._journal
        if not status.leading or not before or status.commit_index == before:
            return
        entry = journal.entry(status.commit_index)
        configurations = (self._configuration[id(node)], node.engine._raft.configuration)
        if not any(self._on_quorum(entry.index, entry.term, c) for c in configurations):
            raise ViolationError(f"{node.name} committed {entry.index} without a quorum of disks")

    def _on_quorum(self, index: int, term: int, configuration: Configuration) -> bool:
        found = 0
        for member in configuration.voters:
            disk = self._cluster.disk_of(member)
            if disk is not None:
                held = disk.durable_term(index)
                found += held == term if held is not None else index < disk.oldest_index()
        return found >= quorum(len(configuration.voters))

    def _check_applied(self, node: SimNode) -> None:
        history, status, machine = self.history, node.status, node.machine
        for index, term, batch in machine.applied[self._applied[id(node)] :]:
            if history.committed.setdefault(index, (term, batch)) != (term, batch):
                raise ViolationError(f"entry {index} differs on {node.name}")
            self._committed_in.setdefault(index, status.term)
            self._newest = max(self._newest, index)
            if batch is None or not self._unique_batches:
                continue
            if history.index_of.setdefault(batch, index) != index:
                raise ViolationError(f"{batch!r} applied twice")
            if status.leading:
                history.acknowledged.setdefault(batch, index)
        new = {index for index, _, _ in machine.applied[self._applied[id(node)] :]}
        self._check_moments(node, new)
        self._applied[id(node)] = len(machine.applied)
        index, digest = machine.applied_index, machine.digest
        if not node.storage.damaged and history.digests.setdefault(index, digest) != digest:
            raise ViolationError(f"the state of {node.name} at {index} differs")

    def _check_moments(self, node: SimNode, new: set[int]) -> None:
        """What members compare is equal: else one of them would get an alarm for nothing."""
        moments: Moments | None = getattr(node.machine, "moments", None)  # a whole node has some
        if moments is None or moments.newest is None or node.storage.damaged:
            return
        for index in new | {moments.newest.index}:
            moment = moments.get(index)
            for name, digest in zip(NAMES, moment.digests if moment else (), strict=False):
                if name in OWN_PACE and moment and not moment.tidy:
                    continue
                if self._compared.setdefault((index, name), digest) != digest:
                    raise ViolationError(f"the database {name} of {node.name} at {index} differs")
