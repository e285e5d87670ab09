"""PySyncObj with names for its private parts: the only module that knows them.

Nothing is decided here. What the library gives, what is guarded or replaced, and why that is safe,
is told gap by gap in DESIGN.md of this room; consensus.py holds the guards.
"""

import hashlib
import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from kvserver.clock import Clock
from kvserver.errors import NodeError
from kvserver.raft.entry import Entry, MemberId
from kvserver.raft.journal import DurableJournal
from kvserver.raft.ports import Timings

__all__ = ["Node", "Peer", "Seam", "check_library"]

LIBRARY_SHA256: Final = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"
"""Of pysyncobj/syncobj.py 0.3.17: everything here relies on the order of its statements."""

_LEADER: Final = library._RAFT_STATE.LEADER

# its complaint about cutting off applied entries is wrong here: the journal decides what is cut
logging.getLogger("pysyncobj").addHandler(logging.NullHandler())
logging.getLogger("pysyncobj").propagate = False


class Peer(int, Node):  # type: ignore[misc] # two classes that each define how to be equal
    """A member as the library knows it: equal and hashed as its id, without a call of Python's.

    The library and the guards look members up dozens of times for each write.
    """

    id = property(int.__int__)
    __str__ = int.__repr__


def check_library() -> None:
    """Refuse to start over another PySyncObj than the one the guards were proven with."""
    found = hashlib.sha256(inspect.getsource(library).encode()).hexdigest()
    if found != LIBRARY_SHA256:
        raise NodeError(
            "another PySyncObj than 0.3.17 is installed; run: pip install pysyncobj==0.3.17"
        )


class _NoPoller:
    """The library polls its own sockets; it has none."""

    def poll(self, timeout: float) -> None:
        """Nothing to poll."""


class _Port(Transport):  # type: ignore[misc] # the library has no types
    """The library's end of the transport: what it sends goes to the guards."""

    ready = True

    def __init__(self, send: Callable[[MemberId, dict[str, Any]], None]) -> None:
        super().__init__(None, None, [])
        self._send = send

    def send(self, node: Node, message: dict[str, Any]) -> None:
        self._send(node.id, message)

    def destroy(self) -> None:
        """Nothing to destroy."""


class Seam(SyncObj):  # type: ignore[misc] # the library has no types
    """The library's state under plain names, and hooks where it calls what the guards replace."""

    def __init__(
        self,
        me: MemberId,
        *,
        timings: Timings,
        clock: Clock,
        journal: DurableJournal,
        applied_index: int,
    ) -> None:
        self._clock = clock
        self.enter()
        self.heartbeat_due = 0.0  # the library looks at every attribute before it sets this one
        super().__init__(
            Peer(me), [], conf=_library_conf(timings), transport=_Port(self.send_for_library)
        )
        self._poller = _NoPoller()
        self._SyncObj__raftLog = journal
        self._SyncObj__raftCurrentTerm = journal.term
        self._SyncObj__votedForNodeId = journal.voted_for
        self._SyncObj__raftCommitIndex = max(journal.commit_index, applied_index)
        self._SyncObj__raftLastApplied = applied_index
        journal.setRaftCommitIndex(applied_index)

    def enter(self) -> None:
        """Tell the library what time it is; first thing in every call from outside.

        To it no time passes until the next one: a deadline that a guard has just found not to have
        passed, and looks at with a later time, must not have passed for the library either.
        """
        now = self._clock.monotonic()
        library.monotonicTime = lambda: now

    # ------------------------------------------------------------------ state

    @property
    def leading(self) -> bool:
        """True if this member believes to be the leader of its term."""
        return bool(self._SyncObj__raftState == _LEADER)

    @property
    def activated(self) -> bool:
        """Leader, and the no-op of its term is applied: what earlier terms committed is known."""
        return self.leading and self.applied_index >= int(self._SyncObj__noopIDx)

    @property
    def term(self) -> int:
        """Current term."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        """Highest index known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    @commit_index.setter
    def commit_index(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index

    @property
    def applied_index(self) -> int:
        """Highest index handed to the state machine."""
        return int(self._SyncObj__raftLastApplied)

    @applied_index.setter
    def applied_index(self, index: int) -> None:
        self._SyncObj__raftLastApplied = index

    @property
    def leader_node(self) -> Node | None:
        """Leader of this term, as far as known."""
        return self._SyncObj__raftLeader

    @leader_node.setter
    def leader_node(self, node: Node | None) -> None:
        self._SyncObj__raftLeader = node

    @property
    def election_deadline(self) -> float:
        """When the library stands for election in its tick; 0 for the next one."""
        return float(self._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, at: float) -> None:
        self._SyncObj__raftElectionDeadline = at

    @property
    def heartbeat_due(self) -> float:
        """When a leader's next heartbeat leaves; 0 for the next tick."""
        return float(self._SyncObj__newAppendEntriesTime)

    @heartbeat_due.setter
    def heartbeat_due(self, at: float) -> None:
        self._SyncObj__newAppendEntriesTime = at

    @property
    def told_to_stand(self) -> bool:
        """True if the leader has handed over to this member."""
        return bool(self._SyncObj__transferInProgress)

    @told_to_stand.setter
    def told_to_stand(self, told: bool) -> None:
        self._SyncObj__transferInProgress = told

    @property
    def next_indexes(self) -> dict[Node, int]:
        """On a leader: the next entry to send to each peer."""
        found: dict[Node, int] = self._SyncObj__raftNextIndex
        return found

    @property
    def match_indexes(self) -> dict[Node, int]:
        """On a leader: the newest entry known to be durable on each peer."""
        found: dict[Node, int] = self._SyncObj__raftMatchIndex
        return found

    @property
    def connected_nodes(self) -> set[Node]:
        """Peers whose connection is up."""
        found: set[Node] = self._SyncObj__connectedNodes
        return found

    def set_peers(self, voters: set[Node], learners: set[Node]) -> None:
        """Take over a configuration: voters count in elections and commits, learners do not.

        On a leader a new peer is sent the log from its end on, until it says where it stands.
        """
        self._SyncObj__otherNodes = voters
        self._SyncObj__readonlyNodes = learners
        peers = voters | learners
        if not self.leading:
            return
        now = self._clock.monotonic()
        for node in peers - self.next_indexes.keys():
            self.next_indexes[node] = self._SyncObj__getCurrentLogIndex() + 1
            self.match_indexes[node] = 0
            self._SyncObj__lastResponseTime[node] = now
        for node in self.next_indexes.keys() - peers:  # some of an earlier leadership
            del self.next_indexes[node], self.match_indexes[node]
            self._SyncObj__lastResponseTime.pop(node, None)

    # ------------------------------------------------------------------ steps of the library

    def library_tick(self) -> None:
        """Stand for election if the deadline has passed; commit, apply, heartbeat, propose."""
        self._onTick(0)

    def to_library(self, node: Node, message: dict[str, Any]) -> None:
        """Let the library handle a message."""
        SyncObj._SyncObj__onMessageReceived(self, node, message)

    def library_connected(self, node: Node) -> None:
        """A connection is up."""
        self._SyncObj__onNodeConnected(node)

    def library_disconnected(self, node: Node) -> None:
        """A connection is gone."""
        self._SyncObj__onNodeDisconnected(node)

    def follow(self, term: int) -> None:
        """Adopt a term as a follower of nobody."""
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(library._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None

    # ------------------------------------------------------------------ hooks for the guards

    @abstractmethod
    def send_for_library(self, member: MemberId, message: dict[str, Any]) -> None:
        """The library sends a message."""

    @abstractmethod
    def draw_timeout(self) -> float:
        """Seconds until the next election, drawn anew each time."""

    @abstractmethod
    def on_term(self, term: int) -> None:
        """The term is about to become `term`, or a vote is cast in it."""

    @abstractmethod
    def on_win(self) -> None:
        """Elected; the library appends the no-op of the term next."""

    @abstractmethod
    def answer_append(
        self, node: Node, next_index: int | None, *, reset: bool, success: bool
    ) -> None:
        """An append was taken, or did not fit."""

    @abstractmethod
    def send_heartbeats(self) -> None:
        """The heartbeat is due."""

    @abstractmethod
    def entries_for_library(self, lo: int, count: int | None) -> list[Entry]:
        """Entries as the library may see them now."""

    @abstractmethod
    def apply_committed(self) -> None:
        """Hand what is committed to the state machine."""

    @abstractmethod
    def propose(self) -> None:
        """Append what waits to be proposed."""

    def _SyncObj__setCurrentTerm(self, term: int, vote: MemberId | None) -> None:
        self.on_term(term)
        SyncObj._SyncObj__setCurrentTerm(self, term, vote)

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self.draw_timeout()

    def _SyncObj__onBecomeLeader(self) -> None:
        self.on_win()
        SyncObj._SyncObj__onBecomeLeader(self)

    def _SyncObj__sendNextNodeIdx(
        self, node: Node, reset: bool = False, nextNodeIdx: int | None = None, success: bool = False
    ) -> None:
        self.answer_append(node, nextNodeIdx, reset=reset, success=success)

    def _SyncObj__sendAppendEntries(self) -> None:
        self.send_heartbeats()

    def _SyncObj__getEntries(
        self, fromIDx: int | None, count: int | None = None, maxSizeBytes: int | None = None
    ) -> list[Entry]:
        return [] if fromIDx is None else self.entries_for_library(fromIDx, count)

    def _SyncObj__applyLogEntries(self) -> bool:
        self.apply_committed()
        return False

    def _checkCommandsToApply(self) -> None:
        self.propose()

    def _SyncObj__tryLogCompaction(self) -> None:
        """The journal is cut by its owner."""


def _library_conf(timings: Timings) -> SyncObjConf:
    return SyncObjConf(
        autoTick=False,
        appendEntriesUseBatch=True,
        appendEntriesPeriod=timings.heartbeat,
        raftMinTimeout=timings.election_timeout_min,
        raftMaxTimeout=timings.election_timeout_max,
        leaderFallbackTimeout=timings.check_quorum,
        connectionTimeout=max(timings.dead_peer, timings.election_timeout_max),
        commandsWaitLeader=False,
        dynamicMembershipChange=False,
        useFork=False,
    )
