"""Three members that apply the same entries are compared in all of their databases."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.applying import Replica, delete, founded, put

from kvpb.raft_pb2 import (
    ChangeAlarm,
    Command,
    HashAsk,
    HashWord,
    Member,
    PeerMessage,
    PublishMember,
    SetFeatureLevel,
)
from kvpb.rpc_pb2 import (
    NOSPACE,
    AlarmRequest,
    CompactionRequest,
    LeaseGrantRequest,
    PutRequest,
)
from kvserver.clock import SystemClock
from kvserver.pipeline import applier as applying
from kvserver.pipeline import comparison
from kvserver.pipeline.comparison import SERVED, Comparison, compared
from kvserver.pipeline.features import DIGESTS_LEVEL
from kvserver.pipeline.moments import COMPARED, KEPT, NAMES, OWN_PACE, Moment, Moments
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.journal import store_configuration
from kvserver.raft.membership import Configuration
from kvserver.storage.schema import KEY_HISTORY, LEASE, SESSION, Database

IDS = A, B, C = MemberId(1), MemberId(2), MemberId(3)
MEMBERS = {m: Member(id=m, name=f"n{m}") for m in IDS}

COMMANDS = [
    Command(lease_grant=LeaseGrantRequest(ID=7, TTL=60)),
    Command(put=PutRequest(key=b"with a lease", value=b"v", lease=7)),
    Command(open_session=LeaseGrantRequest(ID=8, TTL=60)),
    Command(session=8, sequence=1, put=PutRequest(key=b"numbered", value=b"v")),
    *(put(f"key {n % 4}", str(n)) for n in range(12)),
    delete("key 2"),
    Command(publish_member=PublishMember(id=B, client_urls=["http://b:1"])),
    Command(
        change_alarm=ChangeAlarm(
            request=AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=C, alarm=NOSPACE)
        )
    ),
]


class Status:
    def __init__(self, peers: tuple[MemberId, ...], level: int) -> None:
        self.peers = {peer: PublishMember(id=peer, feature_level=level) for peer in peers}
        self.unverified: frozenset[MemberId] = frozenset()


class Role:
    def __init__(self, *, active: bool) -> None:
        self.active = active


class Node:
    """A member with its state and its part in the comparison."""

    def __init__(self, trio: "Trio", me: MemberId) -> None:
        self.me = me
        self.state = Replica(founded())
        roster = Roster()
        roster.set_members(Configuration(1, 7, MEMBERS))
        parts: dict[str, Any] = {
            "alarms": self.state.applier.alarms, "role": Role(active=me == A), "roster": roster,
            "proposer": trio, "on_damage": trio.fail, "moments": self.state.applier.moments,
            "status": lambda: Status(tuple(m for m in IDS if m != me), trio.level),
            "say": lambda to, message: trio.send(me, to, message),
            "on_event": trio.note,
        }  # fmt: skip
        self.comparison = Comparison(me, self.state.storage, SystemClock(), **parts)

    def tidy_up(self) -> None:
        while self.state.applier.work():
            pass
        self.state.storage.commit()

    def lose(self, db: Database) -> tuple[bytes, bytes]:
        """One row, which is returned, behind the back of all that writes."""
        txn = self.state.storage.writer()
        key, value = list(txn.scan(db))[-1]
        assert txn.delete_value(db, key, value) if db.many else txn.delete(db, key)
        self.state.storage.commit()
        return key, value


class Trio:
    """A cluster without a network: what is proposed is applied by all, one after the other."""

    def __init__(self, level: int = DIGESTS_LEVEL) -> None:
        self.level = level
        self.stop = asyncio.Event()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._looks_left = 0
        self.nodes = {me: Node(self, me) for me in IDS}
        self.apply(Command(set_feature_level=SetFeatureLevel(level=level)))
        self.apply(*COMMANDS)

    def apply(self, *commands: Command) -> None:
        """An entry for each; each member commits whenever it likes."""
        for place, command in enumerate(commands):
            for node in self.nodes.values():
                node.state.apply(command)
                if place % node.me == 0 or command is commands[-1]:
                    node.state.turn()

    async def propose(self, command: Command) -> None:
        self.apply(command)

    def send(self, sender: MemberId, to: MemberId, message: PeerMessage) -> None:
        self.nodes[to].comparison.heard(sender, message)

    def fail(self, error: Exception) -> None:
        raise error

    @property
    def corrupt(self) -> frozenset[MemberId]:
        return self.nodes[A].state.applier.alarms.corrupt

    def note(self, name: str, **more: Any) -> None:
        """An event of the active, the others have none."""
        self.events.append((name, more))
        self._looks_left -= name == "compare.done"
        if not self._looks_left:
            self.stop.set()

    async def compare(self, looks: int = 3) -> None:
        """Let the active have so many looks."""
        self._looks_left = looks
        self.stop.clear()
        async with asyncio.timeout(20):
            running = [node.comparison.run(0.005, self.stop) for node in self.nodes.values()]
            await asyncio.gather(*running)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "TICK_S", 0.0005)
    monkeypatch.setattr(comparison, "pause_s", lambda busy_s: 0.0)
    monkeypatch.setattr(comparison, "REACH_S", 0.05)


@pytest.mark.parametrize("db", COMPARED, ids=lambda db: db.name.decode())
@pytest.mark.parametrize("who", IDS)
async def test_a_lost_row_of_any_database_is_found(db: Database, who: MemberId) -> None:
    trio = Trio()
    await trio.compare(1)
    trio.nodes[who].lose(db)
    await trio.compare(3)
    assert trio.corrupt == {who}
    told = [more for name, more in trio.events if name == "compare.differs"]
    assert db.name.decode() in {more["database"] for more in told}
    assert {more["nodes"] for more in told} == {f"n{who}"}


async def test_members_that_differ_in_different_databases_are_told_apart_each() -> None:
    """As a whole all three would be different, and nobody could serve."""
    trio = Trio()
    trio.nodes[B].lose(LEASE)
    trio.nodes[C].lose(SESSION)
    await trio.compare(3)
    assert trio.corrupt == {B, C}


async def test_digests_are_told_before_the_hash_that_takes_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large state may take longer to be hashed than a look lasts."""
    trio = Trio()
    trio.nodes[B].lose(SESSION)

    async def never(revision: int, ended: Callable[[], bool]) -> None:
        while not ended():
            await asyncio.sleep(0.001)

    monkeypatch.setattr(comparison, "ROUND_S_MAX", 0.05)
    for me in (B, C):
        monkeypatch.setattr(trio.nodes[me].comparison, "_hash", never)
    looking = asyncio.create_task(trio.compare(1000))
    async with asyncio.timeout(20):
        while not trio.corrupt:
            await asyncio.sleep(0.01)
    looking.cancel()
    assert trio.corrupt == {B}


async def test_a_difference_is_believed_only_if_another_entry_shows_it_again() -> None:
    trio = Trio()
    await trio.compare(1)
    lost = trio.nodes[B].lose(LEASE)
    await trio.compare(1)
    assert [name for name, _ in trio.events].count("compare.differs") == 1
    trio.nodes[B].state.storage.writer().put(LEASE, *lost)
    await trio.compare(3)
    assert trio.corrupt == frozenset()
    asked = [more["index"] for name, more in trio.events if name == "compare.done"]
    assert len(set(asked)) == len(asked), "each look is at another entry"


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_who_has_not_removed_yet_what_is_compacted_differs_in_nothing(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "COMPACTED_PER_TURN", 2)
    trio = Trio()
    trio.apply(Command(compact=CompactionRequest(revision=10)))
    trio.nodes[A].tidy_up()
    for _ in range(steps):
        trio.nodes[B].state.applier.work()
    await trio.compare(4)
    assert {name for name, _ in trio.events} == {"compare.done"}
    for node in trio.nodes.values():
        node.tidy_up()
    await trio.compare(4)
    assert {name for name, _ in trio.events} == {"compare.done"}
    trio.nodes[B].lose(KEY_HISTORY)
    await trio.compare(3)
    assert trio.corrupt == {B}


async def test_below_the_level_only_what_is_served_is_compared() -> None:
    """The databases of an older member may differ: nobody has ever compared them."""
    trio = Trio(DIGESTS_LEVEL - 1)
    trio.nodes[B].lose(SESSION)
    await trio.compare(4)
    assert {name for name, _ in trio.events} == {"compare.done"}
    assert {more["databases"] for _, more in trio.events} == {0}


async def test_a_rolling_upgrade_raises_no_alarm() -> None:
    """The last member to be upgraded tells no digests, and no index either."""
    trio = Trio(DIGESTS_LEVEL - 1)
    plain = trio.send

    def send(sender: MemberId, to: MemberId, message: PeerMessage) -> None:
        if sender == C and message.HasField("hash_word"):
            word = message.hash_word
            word = HashWord(round=word.round, known=word.known, hash=word.hash)
            message = PeerMessage(hash_word=word)
        plain(sender, to, message)

    trio.send = send  # type: ignore[method-assign]
    await trio.compare(3)
    trio.send = plain  # type: ignore[method-assign]
    trio.apply(Command(set_feature_level=SetFeatureLevel(level=DIGESTS_LEVEL)))
    await trio.compare(3)
    assert {name for name, _ in trio.events} == {"compare.done"}
    assert {more["nodes"] for _, more in trio.events} == {3}
    assert [more["databases"] for _, more in trio.events][::5] == [0, len(NAMES)]


async def test_a_member_that_starts_over_is_compared_before_anything_is_written() -> None:
    trio = Trio()
    again = trio.nodes[B].state.restarted()
    index = trio.nodes[A].state.applier.applied_index
    assert again.applier.moments.get(index) == trio.nodes[A].state.applier.moments.get(index)


async def test_who_the_members_are_is_written_behind_their_entry() -> None:
    """So a state that ends with one says nothing about it that the others would say, too."""
    replica = Replica(founded())
    replica.apply(Command(set_feature_level=SetFeatureLevel(level=DIGESTS_LEVEL)))
    index = replica.applier.applied_index + 1
    replica.applier.apply(index, 1, None)
    store_configuration(replica.storage.writer(), Configuration(index, 7, MEMBERS))
    replica.turn()
    assert replica.restarted().applier.moments.newest is None


async def test_a_peer_that_is_behind_answers_when_it_gets_there() -> None:
    trio = Trio()
    behind = trio.nodes.pop(C)
    trio.apply(put("later"))
    ahead = trio.nodes[A].state
    index = ahead.applier.applied_index
    ask = HashAsk(round=1, revision=ahead.revision, index=index)
    words: list[HashWord] = []
    behind.comparison._say = lambda _, message: words.append(message.hash_word)
    behind.comparison.heard(A, PeerMessage(hash_ask=ask))
    answering = asyncio.create_task(behind.comparison._answer(trio.stop))
    await asyncio.sleep(0)
    assert not answering.done()
    behind.state.apply(put("later"))
    behind.state.turn()
    await answering
    moment = ahead.applier.moments.get(index)
    assert moment is not None
    word = words[-1]
    assert tuple(word.digests) == moment.digests
    assert word.known


def test_moments_are_kept_for_a_while() -> None:
    moments = Moments()
    for index in range(1, KEPT + 3):
        moments.add(Moment(index, revision=index, tidy=True))
    assert moments.get(2) is None
    assert moments.get(3) == Moment(3, 3, tidy=True)
    assert moments.newest == Moment(KEPT + 2, KEPT + 2, tidy=True)
    moments.clear()
    assert moments.get(3) is moments.newest is None


def test_what_can_be_compared() -> None:
    untidy = HashWord(known=True, hash=5, digests=range(len(NAMES)))
    tidy = HashWord(known=True, hash=5, digests=range(len(NAMES)), tidy=True)
    newer = HashWord(known=True, hash=5, digests=range(len(NAMES) + 1), tidy=True)
    older = HashWord(known=True, hash=5)
    lost = HashWord()
    everything = {SERVED, *NAMES}
    assert compared({A: tidy, B: newer}).keys() == everything
    assert compared({A: tidy, B: untidy}).keys() == everything - OWN_PACE
    assert compared({A: tidy, B: older}) == {SERVED: {A: 5, B: 5}}
    assert compared({A: tidy, B: lost}) == {}
    assert set(compared({A: tidy, B: tidy, C: untidy})["history"]) == {A, B}
