"""The nodes' states are compared in the background: who differs from the majority gets an alarm.

The active names the newest entry that it has applied, and the revision as of it. Every connected
member tells the digests of all its databases as they were at that entry (`moments.py`), which costs
nothing, and hashes the keys that it serves at that revision, in slices beside its work: digests say
what was written, and only looking it up says what is found. A difference is believed when a second
look, at another entry, finds it again. Main thread; the slices are read in a thread of the loop's.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from kvpb.raft_pb2 import Command, HashAsk, HashWord, PassTime, PeerMessage
from kvpb.rpc_pb2 import CORRUPT
from kvserver.clock import Clock
from kvserver.errors import CompactedError, NodeError, RequestError
from kvserver.mvcc.statehash import StateHash
from kvserver.mvcc.store import current_revision
from kvserver.pipeline.alarms import Alarm, Alarms, raising
from kvserver.pipeline.moments import NAMES, OWN_PACE, Moment, Moments
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.rest import pause_s
from kvserver.pipeline.role import RoleMachine
from kvserver.pipeline.roster import Roster
from kvserver.raft.election import quorum
from kvserver.raft.entry import MemberId
from kvserver.raft.status import RaftStatus
from kvserver.storage.contract import Storage

LEVEL: Final = 1
"""Feature level of a peer that understands what it is asked."""

FIRST_S_MAX: Final = 60.0
"""The first look comes this long after a promotion, and another after a member has come back."""

REACH_S: Final = 10.0
"""How long a standby may take to reach the entry, or the revision, that is asked about."""

ROUND_S_MAX: Final = 600.0
"""Who has not answered after so long is left out."""

TICK_S: Final = 0.1

SERVED: Final = "served"
"""What is compared besides the databases: the keys as clients find them."""

Suspicion = tuple[MemberId, str]
"""Who differs, and in what."""


def odd_ones(
    words: Mapping[MemberId, int],
    *,
    voters: AbstractSet[MemberId],
    known: AbstractSet[MemberId],
) -> frozenset[MemberId] | None:
    """Who has to be told apart, given the hashes of some members; None while that is not certain.

    Only voters without an alarm are witnesses. Those in the minority are odd, learners too that
    differ from the majority. If all witnesses have spoken and there is no majority, nobody knows
    whose state is right: all of them are odd, rather than that one serves what may be wrong.

    Args:
        words: member -> hash, all at the same revision.
        voters: of the cluster.
        known: members with an alarm.
    """
    witnesses = voters - known
    told = Counter(word for member, word in words.items() if member in witnesses)
    if not told:
        return None
    value, count = told.most_common(1)[0]
    odd = frozenset(m for m, word in words.items() if word != value and m not in known)
    if not odd or count >= quorum(len(voters)):
        return odd
    all_have_spoken = len(told) > 1 and witnesses <= words.keys()
    return frozenset(witnesses) if all_have_spoken else None


def compared(words: Mapping[MemberId, HashWord]) -> dict[str, dict[MemberId, int]]:
    """What can be compared of the answers of some members, all as of the same entry.

    Databases from which each member removes at its own pace are comparable between those who have
    nothing left to remove.

    Returns:
        Name of a database, or `SERVED` -> member -> its number; at least two members each.
    """
    found = {SERVED: {member: word.hash for member, word in words.items() if word.known}}
    for position, name in enumerate(NAMES):
        found[name] = {
            member: word.digests[position]
            for member, word in words.items()
            if position < len(word.digests) and (word.tidy or name not in OWN_PACE)
        }
    return {name: told for name, told in found.items() if len(told) > 1}


class Comparison:
    """One node's part in it: it asks while it is the active, and answers."""

    def __init__(  # noqa: PLR0913 - it asks and speaks to all
        self,
        me: MemberId,
        storage: Storage,
        clock: Clock,
        *,
        alarms: Alarms,
        role: RoleMachine,
        roster: Roster,
        proposer: Proposer,
        status: Callable[[], RaftStatus | None],
        moments: Moments,
        say: Callable[[MemberId, PeerMessage], object],
        on_event: Callable[..., None],
        on_damage: Callable[[NodeError], object],
    ) -> None:
        """Wire it up.

        Args:
            me: id of this node.
            storage: of this node.
            clock: of this node.
            alarms: that are raised.
            role: of this node.
            roster: the members.
            proposer: of this node.
            status: of the newest turn.
            moments: of the entries that were applied.
            say: sends to a connected peer.
            on_event: log.
            on_damage: told when a row is damaged.
        """
        self._me = me
        self._storage = storage
        self._clock = clock
        self._alarms = alarms
        self._role = role
        self._roster = roster
        self._proposer = proposer
        self._status = status
        self._moments = moments
        self._say = say
        self._event = on_event
        self._on_damage = on_damage
        self._asked: tuple[MemberId, HashAsk] | None = None
        """Newest question that is not answered yet."""
        self._ask = HashAsk()
        """Newest one of this node; its round tells the looks apart."""
        self._words: dict[MemberId, HashWord] = {}
        """Answers to it, as far as they have come."""
        self._done: set[MemberId] = set()
        """Who has said all."""
        self._suspects: frozenset[Suspicion] = frozenset()
        """Odd at the last look that could tell."""
        self._present: frozenset[MemberId] = frozenset()
        self._due_at = 0.0

    def heard(self, member: MemberId, message: PeerMessage) -> None:
        """A peer asks or answers."""
        if message.HasField("hash_ask"):
            self._asked = (member, message.hash_ask)
            return
        word = message.hash_word
        # an older version tells no index; the process before this one may have used the same round
        if word.round == self._ask.round and word.index in (0, self._ask.index):
            self._words[member] = word
            if not word.partial:
                self._done.add(member)

    async def run(self, interval_s: float, stop: asyncio.Event) -> None:
        """Compare and answer until `stop` is set; no slice is under way after the return.

        Args:
            interval_s: between two looks of an active; 0 for none.
            stop: ends it.
        """
        first_s = min(FIRST_S_MAX, interval_s)
        while not stop.is_set():
            await asyncio.sleep(TICK_S)
            if self._asked is not None:
                await self._answer(stop)
            now = self._clock.monotonic()
            if not self._role.active:
                self._due_at, self._suspects = now + first_s, frozenset()
                continue
            present = frozenset(self._peers())
            if present - self._present:
                self._due_at = min(self._due_at, now + first_s)
            self._present = present
            if interval_s and present and now >= self._due_at:
                before = self._suspects
                await self._look(present, stop)
                again = {member for member, _ in self._suspects - before} - self._alarms.corrupt
                self._due_at = self._clock.monotonic() + (0 if again else interval_s)

    def _peers(self) -> AbstractSet[MemberId]:
        """Connected members that can be asked; none while this node is no witness itself.

        Who is unverified is none: two members that differ would both be disqualified, and the one
        that came back with damage is about to find it by itself.
        """
        status = self._status()
        if status is None or self._me in status.unverified:
            return set()
        able = {peer for peer, said in status.peers.items() if said.feature_level >= LEVEL}
        return (able - status.unverified) & self._roster.members.keys()

    # ------------------------------------------------------------------ the active

    async def _look(self, peers: frozenset[MemberId], stop: asyncio.Event) -> None:
        moment, began = await self._next_moment(), self._clock.monotonic()
        if moment is None:
            return
        ask = HashAsk(round=self._ask.round + 1, revision=moment.revision, index=moment.index)
        self._ask, self._words, self._done = ask, {}, set()
        for peer in peers:
            self._say(peer, PeerMessage(hash_ask=ask))

        def ended() -> bool:
            return stop.is_set() or not self._role.active

        own = await self._digests(ask, ended)
        await self._add_hash(own, ask.revision, ended)
        give_up_at = began + ROUND_S_MAX
        while (peers & self._peers()) - self._done:
            if ended() or self._clock.monotonic() > give_up_at:
                break
            await asyncio.sleep(TICK_S)
        if ended():
            return
        found = compared({**self._words, self._me: own})
        await self._judge(found, moment)
        nodes = {member for told in found.values() for member in told}
        self._event(
            "compare.done", revision=moment.revision, index=moment.index, nodes=len(nodes),
            databases=len(found.keys() - {SERVED}),
            seconds=round(self._clock.monotonic() - began, 3),
        )  # fmt: skip

    async def _next_moment(self) -> Moment | None:
        """The newest one, another than that of the look before; None if there is none.

        As of the same entry every member would say the same again, and that proves nothing.
        """
        before = self._ask.index
        moment = self._moments.newest
        if moment is None or moment.index == before:
            with contextlib.suppress(RequestError):
                await self._proposer.propose(Command(pass_time=PassTime()))
            moment = self._moments.newest
        return None if moment is None or moment.index == before else moment

    async def _judge(self, found: Mapping[str, Mapping[MemberId, int]], moment: Moment) -> None:
        members = self._roster.members
        voters = {member for member, each in members.items() if not each.learner}
        before, now = self._suspects, set[Suspicion]()
        told_apart = set()
        for name, told in found.items():
            odd = odd_ones(told, voters=voters, known=self._alarms.corrupt)
            if odd is not None:
                told_apart.add(name)
                now |= {(member, name) for member in odd}
            if odd is None or odd:
                self._tell_difference(name, told, odd, moment)
        # A look that can't tell in a database changes nothing about it. It accuses nobody either:
        # who is accused was found odd by two looks, this one among them.
        self._suspects = frozenset(now | {each for each in before if each[1] not in told_apart})
        again = {member for member, _ in now & before} - self._alarms.corrupt
        # all at once, this node last: once it is named it hands over, and if not all are named by
        # then, one of them serves alone, as a witness whom nobody contradicts
        order = sorted(again, key=lambda member: (member == self._me, member))
        await asyncio.gather(*map(self._accuse, order))

    def _tell_difference(
        self, name: str, told: Mapping[MemberId, int], odd: AbstractSet[MemberId] | None,
        moment: Moment,
    ) -> None:  # fmt: skip
        """Say who differs in what; `odd` is None if that is not certain."""
        names = self._roster.name
        numbers = " ".join(f"{names(m)}={number:08x}" for m, number in sorted(told.items()))
        where = {"revision": moment.revision, "index": moment.index, "database": name}
        if odd is None:
            self._event("compare.undecided", **where, hashes=numbers)
        else:
            nodes = " ".join(sorted(map(names, odd)))
            self._event("compare.differs", **where, nodes=nodes, hashes=numbers)

    async def _accuse(self, member: MemberId) -> None:
        with contextlib.suppress(RequestError):  # the next look finds it again
            alarm = raising(Alarm(member, CORRUPT))
            await self._proposer.propose(Command(change_alarm=alarm))

    # ------------------------------------------------------------------ everybody

    async def _answer(self, stop: asyncio.Event) -> None:
        assert self._asked is not None
        (member, ask), self._asked = self._asked, None

        def ended() -> bool:
            return stop.is_set() or self._asked is not None

        word = await self._digests(ask, ended)
        if word.digests and not ended():
            self._say(member, PeerMessage(hash_word=word))
        await self._add_hash(word, ask.revision, ended)
        if not ended():
            self._say(member, PeerMessage(hash_word=word))

    async def _digests(self, ask: HashAsk, ended: Callable[[], bool]) -> HashWord:
        """What this node can say at once. First, since it is soon forgotten."""
        word = HashWord(round=ask.round, index=ask.index, partial=True)
        moment = await self._moment(ask.index, ended)
        if moment is not None:
            word.tidy = moment.tidy
            word.digests.extend(moment.digests)
        return word

    async def _add_hash(self, word: HashWord, revision: int, ended: Callable[[], bool]) -> None:
        """The rest of what it has to say; of no use if it is ended before."""
        value = await self._hash(revision, ended)
        word.partial = False
        if value is not None:
            word.known, word.hash = True, value

    async def _moment(self, index: int, ended: Callable[[], bool]) -> Moment | None:
        """That of an entry, which may not be applied yet; None if it is not known (any more)."""
        give_up_at = self._clock.monotonic() + REACH_S
        while not ended() and self._clock.monotonic() < give_up_at:
            newest = self._moments.newest
            if not index or (newest is not None and newest.index >= index):
                return self._moments.get(index)
            await asyncio.sleep(TICK_S)
        return None

    async def _hash(self, revision: int, ended: Callable[[], bool]) -> int | None:
        """Hash of the own state at a revision; None if there is none, or it is ended before."""
        loop = asyncio.get_running_loop()
        try:
            if not await self._reach(revision, ended):
                return None
            state = StateHash(self._storage, revision)
            while not ended():
                before = self._clock.monotonic()
                if await loop.run_in_executor(None, state.step):
                    return state.value
                await asyncio.sleep(pause_s(self._clock.monotonic() - before))
        except CompactedError:
            return None
        except NodeError as error:
            self._on_damage(error)
        return None

    async def _reach(self, revision: int, ended: Callable[[], bool]) -> bool:
        give_up_at = self._clock.monotonic() + REACH_S
        while not ended() and self._clock.monotonic() < give_up_at:
            with self._storage.read() as txn:
                if current_revision(txn) >= revision:
                    return True
            await asyncio.sleep(TICK_S)
        return False
