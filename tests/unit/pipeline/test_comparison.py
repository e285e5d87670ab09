"""Who is odd among the hashes of the members; how it is asked, believed and answered."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import Command, HashAsk, HashWord, Member, PeerMessage, PublishMember
from kvpb.rpc_pb2 import CORRUPT, NOSPACE, PutRequest
from kvserver.clock import SystemClock
from kvserver.mvcc.statehash import StateHash
from kvserver.mvcc.store import Writer
from kvserver.pipeline import comparison
from kvserver.pipeline.alarms import Alarm, Alarms, raising
from kvserver.pipeline.comparison import Comparison, odd_ones
from kvserver.pipeline.moments import Moment, Moments
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.membership import Configuration

A, B, C, D, L = (MemberId(number) for number in range(1, 6))
ALL = {A: 1, B: 1, C: 1}


@pytest.mark.parametrize(
    ("words", "voters", "known", "odd"),
    [
        (ALL, "ABC", "", ""),
        ({A: 1, B: 1, C: 2}, "ABC", "", "C"),
        ({A: 2, B: 1, C: 1}, "ABC", "", "A"),
        ({A: 1, B: 1}, "ABC", "", ""),
        ({A: 1, B: 2}, "ABC", "", None),  # the third will tell
        ({A: 1, B: 2, C: 3}, "ABC", "", "ABC"),
        ({A: 1, B: 2}, "AB", "", "AB"),
        ({A: 1}, "A", "", ""),
        ({A: 1, L: 2}, "A", "", "L"),
        ({A: 1, B: 1, L: 2}, "ABC", "", "L"),
        ({A: 1, L: 2}, "ABC", "", None),  # A may be the wrong one
        ({A: 1, B: 1, C: 2}, "ABC", "C", ""),  # has its alarm already
        ({A: 1, B: 2, C: 2}, "ABC", "C", "AB"),  # C is no witness
        ({A: 1, B: 2, C: 2}, "ABC", "BC", ""),  # A was disarmed by hand
        ({A: 1, B: 1, C: 2, D: 2}, "ABCD", "", "ABCD"),
        ({A: 1, B: 1, C: 1, D: 2}, "ABCD", "", "D"),
        ({}, "ABC", "", None),
    ],
)
def test_who_is_odd(
    words: Mapping[MemberId, int], voters: str, known: str, odd: str | None
) -> None:
    ids = dict(zip("ABCDL", (A, B, C, D, L), strict=True))
    found = odd_ones(
        words, voters={ids[name] for name in voters}, known={ids[name] for name in known}
    )
    assert found == (None if odd is None else {ids[name] for name in odd})


class Role:
    active = True


class Status:
    def __init__(self, *peers: MemberId) -> None:
        self.peers = {peer: PublishMember(id=peer, feature_level=1) for peer in peers}
        self.unverified: frozenset[MemberId] = frozenset()


class Bench:
    """A node between its peers, which the test plays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(comparison, "TICK_S", 0.001)
        monkeypatch.setattr(comparison, "pause_s", lambda busy_s: 0.0)
        monkeypatch.setattr(comparison, "REACH_S", 0.05)
        self.storage, self.alarms, self.role, self.roster = (
            MemoryStorage(), Alarms(), Role(), Roster()
        )  # fmt: skip
        self.status = Status(B, C)
        members = {m: Member(id=m, name=f"n{m}") for m in (A, B, C)}
        self.roster.set_members(Configuration(1, 7, members))
        self.said: list[tuple[MemberId, PeerMessage]] = []
        self.events: list[str] = []
        self.answers: Mapping[MemberId, int | None] = {}
        """Peer -> what to add to the right hash; None for who does not know."""
        self.stop = asyncio.Event()
        writer = Writer(self.storage.writer(), 1)
        writer.put(PutRequest(key=b"k", value=b"v"))
        writer.flush()
        self.storage.commit()
        self.revision = writer.revision
        self.moments = Moments()
        self.moments.add(Moment(1, self.revision, tidy=True))
        parts: dict[str, Any] = {
            "alarms": self.alarms, "role": self.role, "roster": self.roster, "proposer": self,
            "status": lambda: self.status, "moments": self.moments, "say": self.say,
            "on_event": lambda name, **_: self.events.append(name), "on_damage": self.fail,
        }  # fmt: skip
        self.comparison = Comparison(A, self.storage, SystemClock(), **parts)

    def fail(self, error: Exception) -> None:
        raise error

    @property
    def hash(self) -> int:
        state = StateHash(self.storage, self.revision)
        assert state.step()
        return state.value

    def say(self, member: MemberId, message: PeerMessage) -> None:
        self.said.append((member, message))
        if message.HasField("hash_ask") and member in self.answers:
            wrong = self.answers[member]
            word = HashWord(
                round=message.hash_ask.round, known=wrong is not None,
                hash=(self.hash + (wrong or 0)) % 2**32,
            )  # fmt: skip
            self.comparison.heard(member, PeerMessage(hash_word=word))

    async def propose(self, command: Command) -> None:
        assert self.moments.newest is not None
        self.moments.add(Moment(self.moments.newest.index + 1, self.revision, tidy=True))
        if command.HasField("change_alarm"):
            self.alarms.change(self.storage.writer(), command.change_alarm)

    async def run(self, *, until: str = "compare.done", times: int = 1) -> None:
        task = asyncio.create_task(self.comparison.run(0.02, self.stop))
        async with asyncio.timeout(20):
            while self.events.count(until) < times:
                await asyncio.sleep(0.001)
        self.stop.set()
        await task


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def asks(bench: Bench) -> list[int]:
    return [message.hash_ask.round for _, message in bench.said if message.HasField("hash_ask")]


async def test_where_all_are_equal_nothing_happens(bench: Bench) -> None:
    bench.answers = {B: 0, C: 0}
    await bench.run(times=3)
    assert bench.alarms.raised == {}
    assert set(bench.events) == {"compare.done"}


async def test_a_difference_is_believed_when_it_is_found_again(bench: Bench) -> None:
    bench.answers = {B: 0, C: 1}
    await bench.run(times=1)
    assert bench.alarms.raised == {}
    bench.stop.clear()
    await bench.run(times=4)
    assert bench.alarms.raised == {Alarm(C, CORRUPT): True}
    assert bench.events.count("compare.differs") == 2, "with an alarm it is not told again"


async def test_a_difference_that_is_gone_is_forgotten(bench: Bench) -> None:
    bench.answers = {B: 0, C: 1}
    await bench.run(times=1)
    for answers in ({B: 0, C: 0}, {B: 0, C: 1}):
        bench.answers, bench.events = answers, []
        bench.stop.clear()
        await bench.run(times=1)
    assert bench.alarms.raised == {}


async def test_a_look_at_which_a_member_says_nothing_does_not_accuse_it(bench: Bench) -> None:
    """It would be named, and then the two others as well, of which nobody knows who is right."""
    for answers in ({B: 0, C: 1}, {B: 1, C: None}, {B: 0, C: 0}, {B: 0, C: 0}):
        bench.answers, bench.events = answers, []
        bench.stop.clear()
        await bench.run(times=1)
    assert bench.alarms.raised == {}


async def test_a_look_that_can_not_tell_does_not_acquit_it_either(bench: Bench) -> None:
    for answers in ({B: 0, C: 1}, {B: 1, C: None}, {B: None, C: None}, {B: 0, C: 1}):
        bench.answers, bench.events = answers, []
        bench.stop.clear()
        await bench.run(times=1)
    assert bench.alarms.raised == {Alarm(C, CORRUPT): True}


async def test_the_active_may_be_the_odd_one(bench: Bench) -> None:
    bench.answers = {B: 1, C: 1}
    await bench.run(times=3)
    assert list(bench.alarms.raised) == [Alarm(A, CORRUPT)]


async def test_all_are_named_before_the_active_may_hand_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its successor finds itself the only witness, and serves."""
    bench.answers = {B: 1, C: 2}
    named: list[int] = []

    plain = bench.propose

    async def propose(command: Command) -> None:
        if not command.HasField("change_alarm"):
            await plain(command)
            return
        named.append(command.change_alarm.request.memberID)
        while len(named) < 3:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(bench, "propose", propose)
    await bench.run(times=2)
    assert named[:3] == [B, C, A]


@pytest.mark.parametrize("silent", ["says that it does not know", "is not connected"])
async def test_without_the_third_it_is_not_certain(bench: Bench, silent: str) -> None:
    bench.answers = {B: 1, C: None}
    if silent == "is not connected":
        bench.status = Status(B)
        bench.answers = {B: 1}
    await bench.run(until="compare.undecided", times=3)
    assert bench.alarms.raised == {}


async def test_a_peer_of_an_older_version_is_not_asked(bench: Bench) -> None:
    bench.status.peers[C].feature_level = 0
    bench.answers = {B: 0}
    await bench.run(times=2)
    assert C not in [member for member, _ in bench.said]


async def test_a_late_answer_does_not_count(bench: Bench) -> None:
    bench.answers = {B: 0, C: 0}
    await bench.run(times=1)
    word = HashWord(round=asks(bench)[-1] - 1, known=True, hash=1)
    bench.comparison.heard(C, PeerMessage(hash_word=word))
    assert bench.comparison._words[C].hash == bench.hash


async def test_an_answer_to_the_process_before_this_one_does_not_count(bench: Bench) -> None:
    """Which has numbered its rounds alike, but has asked about another entry."""
    bench.answers = {B: 0, C: 0}
    await bench.run(times=1)
    word = HashWord(round=asks(bench)[-1], known=True, hash=1, index=1_000)
    bench.comparison.heard(C, PeerMessage(hash_word=word))
    assert bench.comparison._words[C].hash == bench.hash


async def answered(bench: Bench) -> HashWord:
    task = asyncio.create_task(bench.comparison.run(0.02, bench.stop))
    async with asyncio.timeout(20):
        while not bench.said:
            await asyncio.sleep(0.001)
    bench.stop.set()
    await task
    member, message = bench.said[-1]
    assert member == B
    return message.hash_word


async def test_a_standby_answers_and_asks_nothing(bench: Bench) -> None:
    bench.role.active = False
    ask = HashAsk(round=7, revision=bench.revision)
    bench.comparison.heard(B, PeerMessage(hash_ask=ask))
    assert await answered(bench) == HashWord(round=7, known=True, hash=bench.hash)
    assert asks(bench) == []


async def test_a_standby_that_does_not_get_there_says_so(bench: Bench) -> None:
    bench.role.active = False
    ask = HashAsk(round=7, revision=bench.revision + 1)
    bench.comparison.heard(B, PeerMessage(hash_ask=ask))
    assert await answered(bench) == HashWord(round=7)


async def test_without_an_interval_it_answers_only(bench: Bench) -> None:
    task = asyncio.create_task(bench.comparison.run(0, bench.stop))
    await asyncio.sleep(0.05)
    bench.stop.set()
    await task
    assert bench.said == []


def test_alarms_of_other_kinds_disqualify_nobody() -> None:
    storage, alarms = MemoryStorage(), Alarms()
    alarms.change(storage.writer(), raising(Alarm(A, NOSPACE)))
    assert alarms.corrupt == frozenset()
    alarms.change(storage.writer(), raising(Alarm(B, CORRUPT)))
    assert alarms.corrupt == {B}


async def test_who_is_unverified_is_no_witness(bench: Bench) -> None:
    """It may be damaged, is about to find out, and must not disqualify the one that serves."""
    bench.answers = {B: 1, C: 1}
    bench.status.unverified = frozenset({B, C})
    assert bench.comparison._peers() == set()
    bench.status.unverified = frozenset({C})
    assert bench.comparison._peers() == {B}
    bench.status.unverified = frozenset({A})
    assert bench.comparison._peers() == set()
    bench.status.unverified = frozenset()
    assert bench.comparison._peers() == {B, C}
