"""The guarded consensus: PySyncObj with durable promises, windows, read rounds, members by the log.

Each guard closes a gap of the library; DESIGN.md of this room tells them one by one.
"""

import random
from collections.abc import Callable
from typing import Any

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage
from kvserver.clock import Clock
from kvserver.raft import flow
from kvserver.raft.election import quorum
from kvserver.raft.entry import REGULAR, Entry, MemberId
from kvserver.raft.flow import MESSAGE_BYTES_MAX, MESSAGE_ENTRIES_MAX, SendWindow, Transfer
from kvserver.raft.journal import DurableJournal
from kvserver.raft.membership import Configuration, is_membership, voters_changed
from kvserver.raft.nonsense import Sense
from kvserver.raft.ports import Outbox, Proposals, StateMachine, Timings
from kvserver.raft.reads import ReadRounds
from kvserver.raft.seam import Node, Peer
from kvserver.raft.voting import Voter


class GuardedRaft(Voter):
    """One member's consensus. Driven by `tick`, `deliver`, `connected`, `disconnected`; no threads.

    Everything runs in the turn: see engine.py for its order.
    """

    def __init__(  # noqa: PLR0913 - all that is not deterministic is handed in
        self,
        me: MemberId,
        *,
        timings: Timings,
        clock: Clock,
        rng: random.Random,
        journal: DurableJournal,
        applied_index: int,
        outbox: Outbox,
        proposals: Proposals,
        machine: StateMachine,
        on_event: Callable[..., None],
    ) -> None:
        self._proposals = proposals
        self._machine = machine
        self._needed = 0
        """Other voters that make a quorum together with this node."""
        self._windows: dict[MemberId, SendWindow] = {}
        self._epochs: dict[MemberId, int] = {}
        self._epoch_in = 0
        self._reads: ReadRounds[object] = ReadRounds()
        self._failed_reads: list[object] = []
        self._transfer: Transfer | None = None
        self._counting = False
        self._withholding_heartbeats = False
        self.leader_commit_index = 0
        """As the newest append told it."""
        self._present: set[MemberId] = set()
        """Whose connection is up; some may not be members as far as this node's log knows."""
        self._sense = Sense(on_event)
        self.behind_log: set[MemberId] = set()
        """On a leader: peers that need entries which the log does not hold any more."""
        self._receivers: dict[str, Callable[[Node, Any], None]] = {
            "append_entries": self._on_append_entries,
            "append_reply": self._on_append_reply,
            "request_vote": self._on_request_vote,
            "vote_reply": self._on_vote_reply,
            "pre_vote": self._on_pre_vote,
            "pre_vote_reply": self._on_pre_vote_reply,
            "read_round": self._on_read_round,
            "read_echo": self._on_read_echo,
            "timeout_now": self._on_timeout_now,
        }
        super().__init__(
            me, timings=timings, clock=clock, rng=rng, journal=journal,
            applied_index=applied_index, outbox=outbox, on_event=on_event,
        )  # fmt: skip
        self._configuration: Configuration | None = None
        self._configure()

    # ------------------------------------------------------------------ members

    @property
    def configuration(self) -> Configuration:
        """The members, as the newest membership entry of the log names them."""
        return self._journal.configuration

    @property
    def possible_configurations(self) -> tuple[Configuration, ...]:
        """The one applied last and those after it: any may turn out to be the one that holds."""
        return self._journal.possible_configurations

    def _configure(self) -> None:
        """Follow the log: its newest configuration is in force, committed or not."""
        configuration = self._journal.configuration
        if configuration is self._configuration:
            return
        self._configuration = configuration
        self._nodes = {
            member: self._nodes.get(member) or Peer(member)
            for member in configuration.members
            if member != self._me
        }
        voters = {node for member, node in self._nodes.items() if member in configuration.voters}
        self._voting = self._me in configuration.voters
        self._needed = quorum(len(configuration.voters)) - 1
        self._campaign.peers = sorted(node.id for node in voters)
        self._windows = {m: self._windows.get(m) or SendWindow() for m in self._nodes}
        self._epochs = {m: self._epochs.get(m, 0) for m in self._nodes}
        for node in self.connected_nodes - set(self._nodes.values()):
            self.library_disconnected(node)
        self.behind_log &= self._nodes.keys()
        self.set_peers(voters, set(self._nodes.values()) - voters)
        for member in self._present & self._nodes.keys():
            if self._nodes[member] not in self.connected_nodes:
                self.connected(member)

    def change_members(self, wanted: Configuration) -> int | None:
        """Append a new configuration to the log, on a leader.

        Args:
            wanted: differs in one voter at most, and has this node as a voter.

        Returns:
            Its index; None if this node can't now: it is not active, is handing over, or an earlier
            change is not committed yet.
        """
        current = self._journal.configuration
        if not self.activated or self._transfer is not None or current.index > self.commit_index:
            return None
        assert voters_changed(current, wanted) <= 1, "one voter at a time"
        assert self._me in wanted.voters, "the leader stays"
        index = self._journal.last_index + 1
        self._journal.add(wanted.payload(), index, self.term)
        self._configure()
        return index

    # ------------------------------------------------------------------ what others may ask

    @property
    def leader(self) -> MemberId | None:
        """The leader of this term as far as known and not suspected."""
        found = self.leader_node
        if found is None or (self._campaign.connection_lost and not self.leading):
            return None
        return MemberId(found.id)

    @property
    def transferring(self) -> bool:
        """Leadership is being handed over: nothing is proposed."""
        return self._transfer is not None

    def match_index(self, member: MemberId) -> int:
        """Highest index known to be durable on a peer; 0 unless this node leads."""
        node = self._nodes.get(member)
        return self.match_indexes.get(node, 0) if node is not None and self.leading else 0

    def slowest_match(self) -> int | None:
        """On a leader: what all connected peers have that follow the log; None without any."""
        if not self.leading:
            return None
        matches = self.match_indexes
        following = [matches[n] for n in self.connected_nodes if n.id not in self.behind_log]
        return min(following, default=None)

    @property
    def connected_members(self) -> set[MemberId]:
        """Peers whose connection is up."""
        return {MemberId(node.id) for node in self.connected_nodes}

    def read(self, reads: list[object]) -> bool:
        """Start a read-index round for all of `reads`; False if this node can't answer reads."""
        if not self.activated:
            return False
        number = self._reads.begin(reads, self.commit_index)
        self._ask_read_round(number)
        return True

    @property
    def reading(self) -> bool:
        """True if reads wait for their round, or for a state to be visible."""
        return self._reads.waiting

    def take_reads(self) -> tuple[list[object], list[object]]:
        """Reads that may be answered once this turn is visible, and reads that never can."""
        failed, self._failed_reads = self._failed_reads, []
        return self._reads.take_ready(self.applied_index), failed

    def hand_over(self, target: MemberId | None = None) -> MemberId | None:
        """Begin to hand leadership to `target`, or to the most up-to-date connected peer.

        Returns:
            The chosen peer, to be asked for again while it is unverified; None if there is nobody.
        """
        if not self.leading:
            return None
        if self._transfer is None:
            voters = self._campaign.peers
            matches = {n.id: self.match_indexes[n] for n in self.connected_nodes if n.id in voters}
            if (successor := self.unfit.successor(self._me, matches, target)) is None:
                return target if target in matches.keys() - self.unfit.disqualified else None
            give_up_at = self._clock.monotonic() + self._timings.election_timeout_max
            self._transfer = Transfer(self._nodes[successor], give_up_at)
        return MemberId(self._transfer.target.id)

    def withhold_heartbeats(self) -> None:
        """Say nothing as a leader any more: the others will elect one that can serve."""
        self._withholding_heartbeats = True

    def next_deadline(self) -> float:
        """When the next tick must happen at the latest."""
        now = self._clock.monotonic()
        times = [now + self._timings.heartbeat, self._campaign.next_deadline()]
        if self.leading:
            times.append(self.heartbeat_due)
        else:
            times.append(self.election_deadline)
        return float(min(times))

    @property
    def behind(self) -> bool:
        """True if the next tick has work whether or not anything arrives."""
        lone_voter_can_commit = (
            self.leading and not self._needed and self._journal.last_index > self.commit_index
        )
        return self.commit_index > self.applied_index or lone_voter_can_commit

    # ------------------------------------------------------------------ what drives it

    def tick(self) -> None:
        """Campaign if it is time; commit, apply, propose, replicate."""
        self.enter()
        was_leading = self.leading
        self._answer_held()
        self._maybe_campaign()
        self._counting = True
        self.library_tick()
        self._counting = False
        if self.leading:
            if self._must_yield:
                self.hand_over()
            self._replicate_all()
            self._pump_transfer()
        elif was_leading:
            self._on_step_down("lost touch with a quorum")

    def deliver(self, member: MemberId, message: PeerMessage) -> None:
        """Take one message of an accepted peer."""
        self.enter()
        # one that the log does not name yet may be the leader from whom to learn it
        node = self._nodes.get(member) or Peer(member)
        kind = message.WhichOneof("message") or ""
        receive = self._receivers.get(kind)
        if receive is None or not self._sense.makes(
            member, message, self.term, self._journal.last_index
        ):
            return
        was_leading = self.leading
        receive(node, getattr(message, kind))
        self._configure()
        if was_leading and not self.leading:
            self._on_step_down("a higher term exists")

    def connected(self, member: MemberId) -> None:
        """A connection to a peer is up; whatever was on its way before is lost."""
        self.enter()
        self._present.add(member)
        self._sense.connected(member)
        node = self._nodes.get(member)
        if node is None:
            return
        self.library_connected(node)
        if not self.leading:
            return
        self._epochs[member] += 1
        self._windows[member].clear()
        match = self.match_indexes[node]
        if match:
            self.next_indexes[node] = match + 1
        self.heartbeat_due = 0.0  # tell it at once who leads

    def disconnected(self, member: MemberId, *, replaced: bool = False) -> None:
        """A connection to a peer broke; if it is `replaced`, the peer has just said hello anew."""
        self.enter()
        self._present.discard(member)
        node = self._nodes.get(member) or Peer(member)
        self.library_disconnected(node)
        if node != self.leader_node or self.leading or replaced:
            return
        self._campaign.leader_gone()
        if not self._voting:
            return
        self._stand_in_rank(member)
        self._answer_held()

    def on_win(self) -> None:
        """Elected: nothing of an earlier leadership is left."""
        self._campaign.end()
        self._reads = ReadRounds()
        self._transfer = None
        self._withholding_heartbeats = False
        self.behind_log.clear()
        for window in self._windows.values():
            window.clear()
        self._event("election.won", term=self.term)

    def _on_step_down(self, reason: str) -> None:
        self._failed_reads += self._reads.take_all()
        self._transfer = None
        self._withholding_heartbeats = False
        self._event("election.deposed", term=self.term, reason=reason)

    # ------------------------------------------------------------------ follower

    def _on_append_entries(self, node: Node, append: raft_pb2.AppendEntries) -> None:
        if append.term < self.term:
            self._reply_append(node)  # with the own term: the old leader steps down
            return
        self._epoch_in = append.epoch
        self.leader_commit_index = append.commit_index
        self._campaign.leader_heard(self._clock.monotonic())
        commit_index = self.commit_index
        self.to_library(node, {
            "type": "append_entries", "term": append.term, "commit_index": append.commit_index,
            "prevLogIdx": append.prev_log_index, "prevLogTerm": append.prev_log_term,
            "entries": [Entry(e.payload, e.index, e.term) for e in append.entries],
        })  # fmt: skip
        # the log ended at the last verified entry while the library took over the commit index
        self._journal.settle()
        self.commit_index = max(self.commit_index, commit_index)

    def answer_append(
        self, node: Node, next_index: int | None, *, reset: bool, success: bool
    ) -> None:
        """Tell the leader where to go on."""
        if reset:  # commit + 1 always agrees with the leader; the library steps back one by one
            next_index = self.commit_index + 1
        self._reply_append(node, next_index or 0, reset=reset, success=success)

    def _reply_append(
        self, node: Node, next_index: int = 0, *, reset: bool = False, success: bool = False
    ) -> None:
        """The term is that of the moment the reply is made, not of when it is flushed."""
        reply = raft_pb2.AppendReply(
            term=self.term, next_index=next_index, reset=reset, success=success,
            epoch=self._epoch_in,
        )  # fmt: skip
        self._outbox.send(node.id, PeerMessage(append_reply=reply), after_sync=True)

    # ------------------------------------------------------------------ leader

    def _on_append_reply(self, node: Node, reply: raft_pb2.AppendReply) -> None:
        if reply.term > self.term:
            self._adopt(reply.term)
            return
        if reply.term != self.term or not self.leading or node not in self.next_indexes:
            return
        member, next_index, reset = node.id, reply.next_index, reply.reset
        if reset:
            if reply.epoch != self._epochs[member]:
                reset = False  # answers an append from before the last reset
            else:
                self._epochs[member] += 1
                self._windows[member].clear()
                if next_index > self._journal.first_index:  # else the log can't help it
                    self.heartbeat_due = 0.0
        elif reply.success:
            self._windows[member].acknowledged(next_index - 1)
        before = self.next_indexes[node]
        self.to_library(node, {
            "type": "next_node_idx", "next_node_idx": next_index,
            "reset": reset, "success": reply.success,
        })  # fmt: skip
        if not reset:  # an acknowledgement never moves it back
            after = self.next_indexes[node]
            self.next_indexes[node] = max(before, after)

    def send_heartbeats(self) -> None:
        """Heartbeat to all; entries go out with `_replicate_all`, window by window."""
        now = self._clock.monotonic()
        self.heartbeat_due = now + self._timings.heartbeat
        if self._withholding_heartbeats:
            return
        for node in self.connected_nodes:
            if not self._replicate(node):
                self._send_append(node, [])
        if (number := self._reads.open_round) is not None:
            self._ask_read_round(number)  # an echo may have been lost with its connection

    def _replicate_all(self) -> None:
        if self._withholding_heartbeats:
            return
        for node in self.connected_nodes:
            self._replicate(node)

    def _replicate(self, node: Node) -> bool:
        """Send what the peer lacks and its window admits; False if that is nothing."""
        window, journal = self._windows[node.id], self._journal
        if self.next_indexes[node] <= journal.first_index:
            self.behind_log.add(node.id)
            return False
        self.behind_log.discard(node.id)
        sent = False
        while (index := self.next_indexes[node]) <= journal.last_index and window.open():
            entries = journal.entries(
                index, count_max=MESSAGE_ENTRIES_MAX, bytes_max=MESSAGE_BYTES_MAX
            )
            self._send_append(node, entries)
            last = entries[-1].index
            window.sent(last, sum(len(entry.payload) for entry in entries))
            self.next_indexes[node] = last + 1
            sent = True
        return sent

    def _send_append(self, node: Node, entries: list[Entry]) -> None:
        # to a peer behind the log it is a heartbeat only: the entry named is one it does not have
        previous = self._journal.entry(max(self.next_indexes[node] - 1, self._journal.first_index))
        append = raft_pb2.AppendEntries(
            term=self.term, commit_index=self.commit_index,
            prev_log_index=previous.index, prev_log_term=previous.term,
            entries=[
                raft_pb2.Entry(index=entry.index, term=entry.term, payload=entry.payload)
                for entry in entries
            ],
            epoch=self._epochs[node.id],
        )  # fmt: skip
        self._outbox.send(node.id, PeerMessage(append_entries=append), after_sync=False)

    def propose(self) -> None:
        """Propose: replaces the library's queue, which forwards to another leader."""
        if not self.activated or self._transfer is not None:
            return
        while (batch := self._proposals.take()) is not None:
            index, term = self._journal.last_index + 1, self.term
            self._journal.add(REGULAR + batch, index, term)
            self._proposals.appended(index, term)

    def _pump_transfer(self) -> None:
        transfer = self._transfer
        if transfer is None:
            return
        now = self._clock.monotonic()
        if now > transfer.give_up_at:
            self._transfer = None
            self._event("transfer.failed", target=f"{transfer.target.id:x}", term=self.term)
            return
        caught_up = self.match_indexes[transfer.target] == self._journal.last_index
        if caught_up and now >= transfer.ask_at:
            transfer.ask_at = now + self._timings.heartbeat  # it may not reach a quorum yet
            message = PeerMessage(timeout_now=raft_pb2.TimeoutNow(term=self.term))
            self._outbox.send(transfer.target.id, message, after_sync=False)

    # ------------------------------------------------------------------ reads

    def _ask_read_round(self, number: int) -> None:
        if not self._needed:
            self._reads.confirm_all()
            return
        ask = PeerMessage(read_round=raft_pb2.ReadRound(term=self.term, round=number))
        for member in self._campaign.peers:
            self._outbox.send(member, ask, after_sync=False)

    def _on_read_round(self, node: Node, ask: raft_pb2.ReadRound) -> None:
        if ask.term == self.term and not self.leading:
            echo = raft_pb2.ReadEcho(term=ask.term, round=ask.round)
            self._outbox.send(node.id, PeerMessage(read_echo=echo), after_sync=False)

    def _on_read_echo(self, node: Node, echo: raft_pb2.ReadEcho) -> None:
        if echo.term == self.term and self.leading and node.id in self._campaign.peers:
            self._reads.echo(echo.round, node.id, self._needed)

    def entries_for_library(self, lo: int, count: int | None) -> list[Entry]:
        """Entries as the library may see them now."""
        if lo < self._journal.first_index:
            return []
        if self._counting and lo > self._journal.durable_index:
            return []  # this node counts itself for what it has on disk, no further
        # without a count the library looks at the first entry and whether there is a second
        return self._journal.entries(lo, count_max=count or 2, bytes_max=1 << 62)

    def apply_committed(self) -> None:
        """Hand what is committed to the state machine, bounded per turn."""
        self._counting = False  # the commit loop is over
        size, until = 0, self._clock.monotonic() + flow.APPLY_S_MAX
        first, stop = self.applied_index + 1, self.applied_index + flow.APPLY_ENTRIES_MAX
        for index in range(first, min(self.commit_index, stop) + 1):
            entry = self._journal.entry(index)
            regular = entry.payload[:1] == REGULAR
            self._machine.apply(index, entry.term, entry.payload[1:] if regular else None)
            if is_membership(entry):
                self._journal.configuration_applied(index)
            self.applied_index = index
            size += len(entry.payload)
            if size > flow.APPLY_BYTES_MAX or self._clock.monotonic() > until:
                break
