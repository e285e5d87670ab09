"""Each node tells of its own room; the active makes alarms of what all say; all say what is up."""

from typing import Any

import pytest
from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import Command, Member, PublishMember
from kvpb.rpc_pb2 import CORRUPT, NOSPACE
from kvserver.errors import NotActiveError
from kvserver.pipeline.alarm_keeper import AlarmKeeper
from kvserver.pipeline.alarms import Alarm, Alarms, disarming, raising
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Fitness, Reason
from kvserver.raft.membership import Configuration

ME, OTHER = MemberId(1), MemberId(2)


class Space:
    full = False

    def look(self) -> None:
        """The test says how it is."""


class Role:
    leads = True


class Status:
    def __init__(self) -> None:
        self.peers = {OTHER: PublishMember(id=OTHER)}
        self.fitness = Fitness()
        self.unverified: frozenset[MemberId] = frozenset()


class Bench:
    def __init__(self) -> None:
        self.alarms, self.storage, self.roster = Alarms(), MemoryStorage(), Roster()
        self.space, self.role, self.status = Space(), Role(), Status()
        members = {ME: Member(id=ME, name="n1"), OTHER: Member(id=OTHER, name="n2")}
        self.roster.set_members(Configuration(1, 7, members))
        self.words: list[bool] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.proposed: list[Command] = []
        self.refuse = False
        parts: dict[str, Any] = {
            "role": self.role, "roster": self.roster, "proposer": self,
            "on_word": self.words.append,
            "on_event": lambda name, **fields: self.events.append((name, fields)),
        }  # fmt: skip
        space: Any = self.space
        self.keeper = AlarmKeeper(ME, self.alarms, space, **parts)

    async def propose(self, command: Command) -> None:
        self.proposed.append(command)
        if self.refuse:
            raise NotActiveError
        self.alarms.change(self.storage.writer(), command.change_alarm)

    async def look(self) -> None:
        status: Any = self.status
        await self.keeper.look(status)

    @property
    def changes(self) -> list[Any]:
        return [command.change_alarm for command in self.proposed]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_the_active_raises_its_own_alarm_and_takes_it_back(bench: Bench) -> None:
    await bench.look()
    assert bench.proposed == []
    bench.space.full = True
    await bench.look()
    await bench.look()
    bench.space.full = False
    await bench.look()
    await bench.look()
    assert bench.changes == [raising(Alarm(ME, NOSPACE)), disarming(Alarm(ME, NOSPACE))]
    assert bench.words == [True, False]
    fields = {"alarm": "NOSPACE", "member": "n1"}
    assert bench.events == [("alarm.raised", fields), ("alarm.disarmed", fields)]


async def test_a_standby_tells_and_the_active_raises_it(bench: Bench) -> None:
    bench.role.leads = False
    bench.space.full = True
    await bench.look()
    assert (bench.words, bench.proposed) == ([True], [])
    bench.role.leads, bench.space.full = True, False
    bench.status.peers[OTHER].out_of_space = True
    await bench.look()
    assert bench.changes == [raising(Alarm(OTHER, NOSPACE))]
    bench.status.peers.clear()
    await bench.look()
    assert bench.alarms.raised == {}


async def test_what_is_refused_is_asked_for_again(bench: Bench) -> None:
    bench.space.full = bench.refuse = True
    await bench.look()
    await bench.look()
    assert len(bench.proposed) == 2
    bench.refuse = False
    await bench.look()
    assert bench.alarms.out_of_space


async def test_before_the_first_turn_nothing_is_proposed(bench: Bench) -> None:
    bench.space.full = True
    await bench.keeper.look(None)
    assert bench.proposed == []


async def test_a_node_says_what_to_do_when_it_is_disqualified(bench: Bench) -> None:
    bench.alarms.change(bench.storage.writer(), raising(Alarm(OTHER, CORRUPT)))
    await bench.look()
    assert [name for name, _ in bench.events] == ["alarm.raised"]
    bench.alarms.change(bench.storage.writer(), raising(Alarm(ME, CORRUPT)))
    await bench.look()
    assert [name for name, _ in bench.events[1:]] == ["alarm.raised", "node.disqualified"]
    assert "empty its --data-dir" in bench.events[-1][1]["reason"]


async def test_who_is_unverified_does_not_say_that_it_is_full(bench: Bench) -> None:
    """One damaged page counter of one member would stop the writes of all."""
    bench.status.fitness = Fitness(frozenset({Reason.UNVERIFIED}))
    bench.space.full = True
    await bench.look()
    assert bench.words == []
    assert bench.proposed == []
    bench.status.fitness = Fitness()
    await bench.look()
    assert bench.words == [True]


async def test_an_alarm_stays_while_nobody_can_tell_whether_it_is_over(bench: Bench) -> None:
    """So it is after a restart of all members."""
    for member in (ME, OTHER):
        bench.alarms.change(bench.storage.writer(), raising(Alarm(member, NOSPACE)))
    bench.status.fitness = Fitness(frozenset({Reason.UNVERIFIED}))
    bench.status.unverified = frozenset({ME, OTHER})
    await bench.look()
    assert bench.proposed == []
    bench.status.unverified = frozenset({OTHER})
    bench.status.fitness = Fitness()
    await bench.look()
    assert bench.changes == [disarming(Alarm(ME, NOSPACE))]
