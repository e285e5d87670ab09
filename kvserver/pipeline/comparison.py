"""The nodes' states are compared in the background: who differs from the majority gets an alarm.

The active names a revision, every connected member hashes its state at it, in slices beside its
work, and tells. A difference is believed when a second look, at another revision, finds it again.
Main thread; the slices are read in a thread of the loop's.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from kvpb.raft_pb2 import Command, HashAsk, HashWord, PeerMessage
from kvpb.rpc_pb2 import CORRUPT
from kvserver.clock import Clock
from kvserver.errors import CompactedError, NodeError, RequestError
from kvserver.mvcc.statehash import StateHash
from kvserver.mvcc.store import current_revision
from kvserver.pipeline.alarms import Alarm, Alarms, raising
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
"""How long a standby may take to reach the revision that is asked about."""

ROUND_S_MAX: Final = 600.0
"""Who has not answered after so long is left out."""

TICK_S: Final = 0.1


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
        revision: Callable[[], int],
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
            revision: newest applied one.
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
        self._revision = revision
        self._say = say
        self._event = on_event
        self._on_damage = on_damage
        self._asked: tuple[MemberId, HashAsk] | None = None
        """Newest question that is not answered yet."""
        self._round = 0
        self._words: dict[MemberId, HashWord] = {}
        """Answers in this round."""
        self._suspects: frozenset[MemberId] = frozenset()
        """Odd at the last look."""
        self._present: frozenset[MemberId] = frozenset()
        self._due_at = 0.0

    def heard(self, member: MemberId, message: PeerMessage) -> None:
        """A peer asks or answers."""
        if message.HasField("hash_ask"):
            self._asked = (member, message.hash_ask)
        elif message.hash_word.round == self._round:
            self._words[member] = message.hash_word

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
                again = self._suspects - before - self._alarms.corrupt
                self._due_at = self._clock.monotonic() + (0 if again else interval_s)

    def _peers(self) -> AbstractSet[MemberId]:
        """Connected members that can be asked."""
        status = self._status()
        told = {} if status is None else status.peers
        able = {peer for peer, said in told.items() if said.feature_level >= LEVEL}
        return able & self._roster.members.keys()

    # ------------------------------------------------------------------ the active

    async def _look(self, peers: frozenset[MemberId], stop: asyncio.Event) -> None:
        began, revision = self._clock.monotonic(), self._revision()
        self._round += 1
        self._words = {}
        ask = HashAsk(round=self._round, revision=revision)
        for peer in peers:
            self._say(peer, PeerMessage(hash_ask=ask))

        def ended() -> bool:
            return stop.is_set() or not self._role.active

        own = await self._hash(revision, ended)
        give_up_at = began + ROUND_S_MAX
        while (peers & self._peers()) - self._words.keys():
            if ended() or self._clock.monotonic() > give_up_at:
                break
            await asyncio.sleep(TICK_S)
        if own is None or ended():
            return
        words = {peer: word.hash for peer, word in self._words.items() if word.known}
        await self._judge({**words, self._me: own}, revision)
        self._event(
            "compare.done", revision=revision, nodes=len(words) + 1,
            seconds=round(self._clock.monotonic() - began, 3),
        )  # fmt: skip

    async def _judge(self, words: Mapping[MemberId, int], revision: int) -> None:
        members = self._roster.members
        voters = {member for member, each in members.items() if not each.learner}
        odd = odd_ones(words, voters=voters, known=self._alarms.corrupt)
        told = " ".join(f"{self._roster.name(m)}={word:08x}" for m, word in sorted(words.items()))
        if odd is None:
            self._event("compare.undecided", revision=revision, hashes=told)
            return
        before, self._suspects = self._suspects, odd
        if odd:
            names = " ".join(sorted(map(self._roster.name, odd)))
            self._event("compare.differs", revision=revision, nodes=names, hashes=told)
        # all at once, this node last: once it is named it hands over, and if not all are named by
        # then, one of them serves alone, as a witness whom nobody contradicts
        order = sorted(odd & before, key=lambda member: (member == self._me, member))
        await asyncio.gather(*map(self._accuse, order))

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

        value = await self._hash(ask.revision, ended)
        if not ended():
            word = HashWord(round=ask.round, known=value is not None, hash=value or 0)
            self._say(member, PeerMessage(hash_word=word))

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
