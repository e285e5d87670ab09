"""Random faults on a simulated cluster, from one seed, with the promises checked all the way."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from support.calls import RETRY_FOR_S, BrokenHistoryError
from support.clients import Clients
from support.kinds import RAFT, Kind
from support.lease_clients import END_WITHIN_S, LEASE_KEYS, Keepers
from support.promises import History, Promises, ViolationError
from support.session_clients import Counters
from support.sim_disk import SimDisk
from support.simulation import STEP_S, Cluster, SimNode
from support.state_damage import StateDamage
from support.whole_node import WholeNode

from kvpb.raft_pb2 import Hello, Identity, Joining, Member
from kvserver.mvcc.interval import bounds
from kvserver.raft.consensus import GuardedRaft
from kvserver.raft.election import quorum
from kvserver.raft.entry import MemberId
from kvserver.raft.identity import settle_in
from kvserver.raft.journal import LogBounds
from kvserver.raft.members import MemberChange
from kvserver.raft.membership import Configuration, added, promotable, removed
from kvserver.storage.schema import DATABASES, KV, LEASE, LEASE_KEY, META

HALF_OPEN_S = 1.5
"""Longest time until a dead connection is noticed."""

STUCK_S = (0.3, 1.5)
"""How long a raft thread stands still beside its main thread."""

CATCH_UP_S = 5.0
CALM_S = 1.0
"""How long messages are counted when nothing fails any more."""

CALM_LOAD_MAX = 1.25
"""Of what each heartbeat, entry and read needs; as a rule it is between 0.98 and 1.05."""

FAULTS: Final = (
    "crash", "crash", "power", "torn", "told_nobody", "all", "outage", "pause", "stuck", "isolate",
    "block", "hold", "hold_back", "reset", "slow", "slow_disk", "hand_over", "heal", "heal", "heal",
)  # fmt: skip


COUNTED: Final = (
    "append_entries", "append_reply", "request_vote", "vote_reply", "pre_vote", "pre_vote_reply",
    "read_round", "read_echo", "timeout_now",
)  # fmt: skip
"""Messages of the consensus."""

NODE_LOCAL: Final = {b"compaction_done"}
"""Rows about this node's own progress."""


class Chaos:
    """Runs one seed."""

    def __init__(
        self, seed: int, kind: Kind = RAFT, trace: Callable[[str], None] | None = None
    ) -> None:
        self.kind = kind
        self.rng = random.Random(seed * 7919 + kind.size)
        keep = self.rng.choice([5, 30, 10_000])
        bounds = LogBounds(keep_entries=keep, hold_entries=2 * keep, trimmed_per_turn=16)
        self.cluster = Cluster(
            kind.size, seed, bounds=bounds, node_type=WholeNode if kind.whole else SimNode,
            copy_turns=random.Random(seed).choice([3, 3, 3, 40]),
        )  # fmt: skip
        self.cluster.trace = trace
        self.cluster.on_disk_error = lambda node: self._crash(node.me)
        self.promises = Promises(self.cluster, unique_batches=not kind.whole)
        self.history = self.promises.history
        self.clients = Clients(self.cluster, seed) if kind.whole else None
        if self.clients is not None:
            self.cluster.outside.append(self.clients)
        self.keepers = Keepers(self.clients) if self.clients and kind.leases else None
        if self.keepers is not None:
            self.cluster.on_leases = self.keepers.applied
        self.counters = Counters(self.clients) if self.clients and kind.sessions else None
        self.cluster.verify_s = random.Random(seed).choice([0.1 * kind.damage, 0.1, 0.6, 3.0])
        self.damage = StateDamage(self)
        for storage in self.cluster.storages.values():
            storage.commit_s = self.rng.choice([0.0, 0.0, 0.002])
        self._disk_s = {name: disk.commit_s for name, disk in self.cluster.storages.items()}
        self._down: dict[MemberId, float] = {}
        self._proposed = 0
        self.wiped: dict[str, Hello] = {}
        """Nodes with an empty disk that ask to be taken in, by name."""
        self._added = kind.size
        self._call_at = self._ask_at = 0.0

    # ------------------------------------------------------------------ one run

    def run(self, seconds: float) -> History:
        try:
            return self._run(seconds)
        finally:
            if self.clients is not None:
                self.clients.abandon()

    def _run(self, seconds: float) -> History:
        clock = self.cluster.clock
        started = clock.now
        end = started + seconds
        next_fault = started + 1.0
        while clock.now < end:
            if clock.now >= next_fault:
                self._fault()
                next_fault = clock.now + self.rng.expovariate(1.2)
            self._step(min(end, next_fault))
            if self.damage.believed():
                self.history.believed = 1
                return self.history
        self._calm_end()
        if self.clients is not None:
            self._judge(self.clients)
        self.history.seconds = clock.now - started
        self.history.sent = dict(self.cluster.sent)
        self.history.role_changes = dict(self.cluster.role_changes)
        self._check_traffic()
        return self.history

    def _step(self, end: float) -> None:
        cluster = self.cluster
        now = cluster.clock.now
        self.damage.run()
        for member, until in list(self._down.items()):
            if now >= until:
                del self._down[member]
                self.damage.start(member)
        soonest = min([end, *self._down.values()])
        if self.clients is None:
            if now >= self._call_at:
                self._propose_or_read()
                self._call_at = now + self.rng.expovariate(1 / 0.01)
            soonest = min(soonest, self._call_at)
        if self.wiped:
            if now >= self._ask_at:
                self._join()
                self._ask_at = now + self.rng.expovariate(1 / 0.05)
            soonest = min(soonest, self._ask_at)
        cluster.step(soonest)

    def _propose_or_read(self) -> None:
        nodes = sorted(self.cluster.nodes.values(), key=lambda n: n.name)
        node = self.rng.choice(nodes) if nodes else None
        if node is None or not node.status.leading:
            return
        if self.rng.random() < 0.3:
            token = f"read-{self.history.reads}"
            self.history.reads += 1
            self.promises.open_reads[token] = self.history.highest_acknowledged
            node.engine.post_reads([token])
        elif len(node.proposals.waiting) < 5:
            self._proposed += 1
            node.proposals.waiting.append(f"p{self._proposed}".encode())
        node.due = 0.0

    # ------------------------------------------------------------------ faults

    def _fault(self) -> None:
        rng, cluster = self.rng, self.cluster
        alive = sorted(cluster.nodes)
        if not alive:
            return
        if self.kind.members and rng.random() < 0.3:
            self._member_fault()
            return
        active = cluster.active()
        victim = active.me if active is not None and rng.random() < 0.5 else rng.choice(alive)
        others = sorted(member for member in cluster.names if member != victim)
        fault = rng.choice(FAULTS)
        cluster.tell("fault", f"{fault} {cluster.name_of(victim)}")
        if fault in {"block", "hold", "hold_back", "reset"}:
            if others:
                self._break_link(fault, victim, rng.choice(others))
            return
        match fault:
            case "crash" | "power":
                self._crash(victim, silent=fault == "power")
            case "torn" | "told_nobody":
                self._break_disk(fault, cluster.nodes[victim].storage)
            case "all" | "outage":
                for member in alive:
                    self._crash(member, silent=fault == "outage")
            case "pause":
                cluster.pause(victim, rng.uniform(0.05, 3.0))
            case "stuck":
                self.history.stuck += 1
                cluster.stick(victim, rng.uniform(*STUCK_S))
            case "isolate":
                cluster.isolate(victim)
            case "slow":
                delay_s = rng.choice([0.0005, 0.001, 0.005, 0.08])
                for link in cluster.links.values():
                    link.delay_s = delay_s if rng.random() < 0.7 else 0.001
            case "slow_disk":
                cluster.nodes[victim].storage.commit_s = rng.choice([0.01, 0.05, 0.3])
            case "hand_over":
                cluster.nodes[victim].engine.hand_over()
                cluster.nodes[victim].due = 0.0
            case _:
                self._heal()

    def _break_disk(self, fault: str, disk: SimDisk) -> None:
        """Of the log, so that the state lacks what it has; or of the state."""
        log = self.rng.random() < 0.5
        match fault:
            case "torn" if log:
                disk.fail_next_sync = True
            case "torn":
                disk.fail_next_commit = True
            case _ if log:
                disk.die_after_sync = True
            case _:
                disk.die_after_commit = True

    def _break_link(self, fault: str, victim: MemberId, other: MemberId) -> None:
        match fault:
            case "block":
                self.cluster.block(victim, other)
            case "hold":
                self.cluster.hold(victim, other)
            case "hold_back":
                self.cluster.hold(other, victim)
            case _:
                self.cluster.disconnect(victim, other)

    def _heal(self) -> None:
        self.cluster.heal()
        for name, disk in self.cluster.storages.items():
            disk.commit_s = self._disk_s.get(name, 0.0)

    def _member_fault(self) -> None:
        active = self.cluster.active()
        if active is None:
            return
        members = active.engine._raft.configuration.members
        others = sorted(member for member in members if member != active.me)

        def present(node: SimNode, raft: GuardedRaft) -> set[MemberId]:
            return raft.connected_members | {node.me}

        match self.rng.choice(["add", "promote", "remove", "wipe"]):
            case "add" if len(members) < 6:
                self._added += 1
                name = f"n{self._added}"
                member = Member(
                    id=self.rng.getrandbits(63) + 1, peer_address=f"{name}:1",
                    learner=self.rng.random() < 0.7,
                )  # fmt: skip
                self._change(active, lambda now, r: added(now, member, present(active, r)), name)
            case "promote" if others:
                chosen = self.rng.choice(others)
                self._change(
                    active,
                    lambda now, r: promotable(now, chosen, r.match_index(chosen), r.commit_index),
                )
            case "remove" if others:
                chosen = self.rng.choice(others)
                self._change(active, lambda now, r: removed(now, chosen, present(active, r)))
            case "wipe" if others:
                self._wipe(self.rng.choice(others), active)

    def _change(
        self,
        active: SimNode,
        decide: Callable[[Configuration, GuardedRaft], Configuration],
        joining: str | None = None,
    ) -> None:
        def done(outcome: Configuration | Exception) -> None:
            if isinstance(outcome, Configuration):
                self.history.changes += 1
                if joining is not None:
                    self.expect(joining, lost_disk=False)

        if any(hello.joining.lost_disk for hello in self.wiped.values()):
            return  # who counts on a member that never comes back may lose the quorum for good
        active.engine.change_members(MemberChange(decide, done))
        active.due = 0.0

    def can_do_without(self, member: MemberId, active: SimNode) -> bool:
        """Whether the others are a quorum of intact voters, and no change is under way."""
        configuration = active.engine._raft.configuration
        if configuration.index > active.engine._raft.commit_index or active.engine._members.changes:
            return False
        intact = (configuration.voters - {member}) & set(self.cluster.nodes)
        return len(intact) >= quorum(len(configuration.voters))

    def _wipe(self, member: MemberId, active: SimNode) -> None:
        """Lose the disk of a member, if the rest is still a quorum of intact voters."""
        if self.wiped or not self.can_do_without(member, active):
            return
        if member not in self.cluster.nodes:
            return
        self._crash(member)
        del self._down[member]
        name = self.cluster.names[member]
        self.history.wiped += 1
        self.promises.forget(member)
        self.cluster.storages[name] = self.cluster.new_disk()
        self.expect(name, lost_disk=True)

    def expect(self, name: str, *, lost_disk: bool) -> None:
        self.cluster.storages[name] = self.cluster.new_disk()
        asking = Joining(name=name, peer_address=f"{name}:1", lost_disk=lost_disk)
        incarnation = self.rng.getrandbits(63) + 1
        self.wiped[name] = Hello(protocol=1, incarnation=incarnation, joining=asking)

    def _join(self) -> None:
        """Nodes with an empty disk ask whoever leads, now and then."""
        active = self.cluster.active()
        if active is None:
            return
        for name, hello in list(self.wiped.items()):
            answer = active.engine.answer_joining(hello)
            active.due = 0.0
            if not answer.HasField("welcome"):
                continue
            del self.wiped[name]
            storage = self.cluster.storages[name]
            identity = Identity(name=name, incarnation=hello.incarnation, joining=True)
            settle_in(storage, identity, answer.welcome)
            storage.end_sync()  # it waits for it
            self.cluster.start(name)
            self.history.joined += 1

    def _crash(self, member: MemberId, *, silent: bool = False) -> None:
        self.history.crashes += 1
        self.cluster.nodes[member].storage.obey()
        back = silent and self.rng.random() < 0.5
        self.cluster.crash(member, silent=silent, back=back)
        self._down[member] = self.cluster.clock.now + self.rng.uniform(0.01, 1.5)
        if self.kind.damage and self.rng.random() < 0.3:
            self.damage.hurt(member)

    # ------------------------------------------------------------------ the end

    def _calm_end(self) -> None:
        """Faults are over: an active soon, all logs alike, every acknowledged write there."""
        cluster, history, clock = self.cluster, self.history, self.cluster.clock
        cluster.tell("fault", "none any more")
        self._heal()
        cluster.paused.clear()
        for link in cluster.links.values():
            link.delay_s = 0.001
        for member in self._down:
            self._down[member] = clock.now
        for disk in cluster.storages.values():
            disk.obey()
        healed = clock.now
        soon = healed + 3 * cluster.timings.election_timeout_max + HALF_OPEN_S
        if self.damage.waiting:
            self._run_until(lambda: not self.damage.waiting, CATCH_UP_S)
            soon = clock.now + soon - healed
        while not self._served():
            if clock.now > soon:
                raise ViolationError("no active after healing")
            self._step(soon + STEP_S)
        history.healed_after = clock.now - healed
        self._run_until(lambda: False, HALF_OPEN_S)
        before = {member: sent.copy() for member, sent in cluster.sent_by.items()}
        committed, reads = max(history.committed), self._reads
        self._run_until(lambda: False, CALM_S)
        active = cluster.active()
        if active is None:
            raise ViolationError("no active in the calm")
        # who was removed and does not know it may ask others of its kind; members send it nothing
        members = active.engine._raft.configuration.members
        sent = (cluster.sent_by[member] - before.get(member, Counter()) for member in members)
        history.calm_sent = dict(sum(sent, Counter()))
        history.calm_sent["peers"] = len(members) - 1
        history.calm_sent["committed"] = max(history.committed) - committed
        history.calm_sent["read"] = self._reads - reads
        if self.clients is not None:
            self._stop_clients(self.clients)
        if self.keepers is not None:
            self._await_ends(self.keepers)
        last = active.status.last_index
        if not self._run_until(lambda: self._all_have(last), CATCH_UP_S):
            raise ViolationError(f"not all members have entry {last} after healing")
        for batch, index in history.acknowledged.items():
            if history.committed[index][1] != batch:
                raise ViolationError(f"acknowledged {batch!r} is lost")
        if not self._run_until(self._at_leisure, CATCH_UP_S):
            raise ViolationError("the members do not come to rest")
        self._run_until(lambda: False, 0.1)  # what was tidied last is committed by then
        self._check_states()

    def _at_leisure(self) -> bool:
        """Everywhere all is applied and visible, and nothing is left to be tidied."""
        return all(
            node.status.visible_index == node.status.commit_index and not node.machine.tidying
            for node in self.cluster.nodes.values()
        )

    def _check_states(self) -> None:
        """Who has applied the same entries, and some, has the same rows."""
        seen: dict[tuple[int, int], tuple[str, dict[bytes, list[tuple[bytes, bytes]]]]] = {}
        for node in self.cluster.nodes.values():
            if node.engine._journal.size[1] != node.storage.log.size:
                raise ViolationError(f"{node.name} miscounts its log")
            with node.storage.read() as txn:
                index = node.machine.applied_of(txn)
                rows = {db.name: list(txn.scan(db)) for db in DATABASES if db.replicated}
            rows[META.name] = [row for row in rows[META.name] if row[0] not in NODE_LOCAL]
            name, first = seen.setdefault(index, (node.name, rows)) if index[0] else ("", rows)
            for table, found in rows.items():
                if found != first[table]:
                    raise ViolationError(
                        f"at entry {index[0]} the table {table.decode()} of {node.name} "
                        f"differs from that of {name}"
                    )

    @property
    def _reads(self) -> int:
        return self.history.reads if self.clients is None else self.clients.record.reads

    def _check_traffic(self) -> None:
        """Entries are sent to each peer about once; generous, against storms."""
        history, calm = self.history, self.history.calm_sent
        if calm.get("entries", 0) > 2 * calm["peers"] * (calm["committed"] + 5):
            raise ViolationError(f"too many entries sent in the calm: {calm}")
        steady = 2 * CALM_S / self.cluster.timings.heartbeat
        each = steady + 2 * (calm["committed"] + calm["read"])
        messages = sum(calm.get(kind, 0) for kind in COUNTED)
        history.calm_load = messages / calm["peers"] / each if calm["peers"] else 0.0
        if history.calm_load > CALM_LOAD_MAX:
            raise ViolationError(f"too many messages in the calm: {calm}")
        peers = len(self.cluster.nodes) + 1
        if history.sent.get("entries", 0) > 2 * peers * len(history.committed) + 500:
            raise ViolationError(f"too many entries sent: {history.sent['entries']}")
        asked = len(history.committed) + history.reads
        most = peers * (120 * history.seconds + 12 * asked)
        if sum(history.sent.get(kind, 0) for kind in COUNTED) > most:
            raise ViolationError(f"too many messages: {history.sent}")

    def _run_until(self, done: Callable[[], bool], seconds: float) -> bool:
        end = self.cluster.clock.now + seconds
        while self.cluster.clock.now < end:
            self._step(end)
            if done():
                return True
        return False

    def _served(self) -> bool:
        """An active that a quorum follows."""
        active = self.cluster.active()
        if active is None:
            return False
        voters = active.engine._raft.configuration.voters
        nodes = [self.cluster.nodes[m] for m in voters if m in self.cluster.nodes]
        following = sum(node.status.term == active.status.term for node in nodes)
        return following >= quorum(len(voters))

    def _all_have(self, index: int) -> bool:
        active = self.cluster.active()
        members = active.engine._raft.configuration.members if active is not None else {}
        nodes = [node for node in self.cluster.nodes.values() if node.me in members]
        return active is not None and all(n.machine.applied_index >= index for n in nodes)

    def _stop_clients(self, clients: Clients) -> None:
        clients.stop()
        if not self._run_until(lambda: clients.idle, RETRY_FOR_S + 2):
            raise ViolationError("a call got no answer after healing")
        if not self._run_until(clients.read_all().done, 2 * RETRY_FOR_S):
            raise ViolationError("the last read got no answer")

    def _await_ends(self, keepers: Keepers) -> None:
        """Leases that nobody keeps alive end, and take their keys along."""
        self._run_until(lambda: False, END_WITHIN_S)
        active = self.cluster.active()
        assert active is not None
        with active.storage.read() as txn:
            left = [
                *txn.keys(LEASE),
                *txn.keys(LEASE_KEY),
                *txn.keys(KV, *bounds(LEASE_KEYS, b"m")),
            ]
        if left:
            raise ViolationError(f"of leases that nobody kept alive there is left {left}")
        if early := keepers.early():
            raise ViolationError(", ".join(early))
        self.history.reads += keepers.kept

    def _judge(self, clients: Clients) -> None:
        try:
            clients.record.judge()
        except BrokenHistoryError as broken:
            raise ViolationError(str(broken)) from broken
        history, record = self.history, clients.record
        history.reads += record.reads
        history.writes = record.writes
        history.unknown = record.unknown
        if self.counters is not None:
            self.counters.add_to(history)
