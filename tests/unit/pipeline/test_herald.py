"""What members say gets into the log once; the level rises when all members are able to."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import Command, Member, PublishMember
from kvserver.errors import NotActiveError
from kvserver.pipeline.herald import Herald
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.membership import Configuration

ONE = PublishMember(id=1, client_urls=["http://a:1"], feature_level=1)
TWO = PublishMember(id=2, client_urls=["http://b:1"], feature_level=1)


class Bench:
    def __init__(self) -> None:
        self.storage, self.roster, self.level = MemoryStorage(), Roster(), 0
        members = {MemberId(each): Member(id=each) for each in (1, 2)}
        self.roster.set_members(Configuration(1, 7, members))
        self.proposed: list[Command] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.refuse = False
        self.capable_soon: Callable[[], bool] = lambda: False
        proposer: Any = self
        self.herald = Herald(
            self.roster, proposer, feature_level=lambda: self.level, spawn=self.spawn,
            on_event=lambda *_, **__: None,
        )  # fmt: skip

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def propose(self, command: Command) -> None:
        self.proposed.append(command)
        await asyncio.sleep(0)
        if self.refuse:
            raise NotActiveError
        if command.HasField("publish_member"):
            self.roster.publish(self.storage.writer(), command.publish_member)
        else:
            self.level = command.set_feature_level.level

    async def tell(self, *words: PublishMember) -> None:
        self.herald.tell(words)
        await asyncio.gather(*self.tasks)

    @property
    def levels(self) -> int:
        return sum(command.HasField("set_feature_level") for command in self.proposed)


async def test_what_needs_a_level_waits_as_long_as_it_may_rise() -> None:
    bench = Bench()
    assert bench.capable_soon(), "nobody has told yet"
    await bench.tell(ONE)
    assert bench.capable_soon()
    await bench.tell(TWO)
    assert bench.level == 1
    assert not bench.capable_soon(), "all have told, and it is in force"


async def test_what_is_known_is_not_told_again() -> None:
    bench = Bench()
    await bench.tell(ONE)
    await bench.tell(ONE)
    assert bench.proposed == [Command(publish_member=ONE)]
    changed = PublishMember()
    changed.CopyFrom(ONE)
    changed.out_of_space = True
    await bench.tell(changed)
    assert bench.proposed[1:] == [Command(publish_member=changed)]


async def test_the_level_rises_once_when_all_have_spoken() -> None:
    bench = Bench()
    await bench.tell(ONE)
    assert bench.levels == 0
    await bench.tell(ONE, TWO)
    await bench.tell(ONE, TWO)
    assert (bench.levels, bench.level) == (1, 1)


async def test_what_was_refused_is_tried_at_the_next_news() -> None:
    bench = Bench()
    bench.refuse = True
    await bench.tell(ONE, TWO)
    bench.refuse = False
    await bench.tell(ONE, TWO)
    assert bench.level == 1
