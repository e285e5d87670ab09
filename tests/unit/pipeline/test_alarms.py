"""Which alarms are raised is a function of the log; what is proposed, of what members say."""

from collections.abc import Mapping

import pytest
from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import ChangeAlarm
from kvpb.rpc_pb2 import CORRUPT, NONE, NOSPACE, AlarmRequest, AlarmType
from kvserver.pipeline.alarms import Alarm, Alarms, disarming, due_changes, raising
from kvserver.raft.entry import MemberId

ONE, TWO, GONE = MemberId(1), MemberId(2**63 + 2), MemberId(3)
FULL_1, FULL_2, BAD_2 = Alarm(ONE, NOSPACE), Alarm(TWO, NOSPACE), Alarm(TWO, CORRUPT)


class Node:
    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.alarms = Alarms()

    def change(self, command: ChangeAlarm) -> list[Alarm]:
        response = self.alarms.change(self.storage.writer(), command)
        return [Alarm(MemberId(each.memberID), each.alarm) for each in response.alarms]

    def raise_by_hand(self, alarm: Alarm) -> list[Alarm]:
        return self.change(by_hand(AlarmRequest.ACTIVATE, alarm.member, alarm.kind))

    @property
    def raised(self) -> list[Alarm]:
        """The same now and after a restart."""
        self.storage.commit()
        fresh = Alarms()
        with self.storage.read() as txn:
            fresh.load(txn)
        assert fresh.raised == self.alarms.raised
        assert list(fresh.raised) == list(self.alarms.raised)
        return list(self.alarms.raised)


def by_hand(
    action: AlarmRequest.AlarmAction.ValueType, member: int, kind: AlarmType.ValueType
) -> ChangeAlarm:
    return ChangeAlarm(request=AlarmRequest(action=action, memberID=member, alarm=kind))


def test_an_alarm_is_raised_once_and_disarmed_once() -> None:
    node = Node()
    assert node.raised == []
    assert node.change(raising(FULL_2)) == [FULL_2]
    assert node.change(raising(FULL_2)) == [FULL_2], "etcd tells it again, too"
    assert node.raised == [FULL_2]
    assert node.alarms.out_of_space
    assert node.change(disarming(FULL_2)) == [FULL_2]
    assert node.change(disarming(FULL_2)) == []
    assert node.raised == []
    assert not node.alarms.out_of_space


@pytest.mark.parametrize(
    ("member", "kind", "left"),
    [
        (0, NONE, []),
        (0, NOSPACE, [BAD_2]),
        (TWO, NONE, [FULL_1]),
        (TWO, CORRUPT, [FULL_1, FULL_2]),
        (ONE, CORRUPT, [FULL_1, FULL_2, BAD_2]),
    ],
)
def test_whom_disarming_means(member: int, kind: AlarmType.ValueType, left: list[Alarm]) -> None:
    node = Node()
    for alarm in (BAD_2, FULL_2, FULL_1):
        node.raise_by_hand(alarm)
    assert node.raised == [FULL_1, FULL_2, BAD_2]
    gone = node.change(by_hand(AlarmRequest.DEACTIVATE, member, kind))
    assert node.raised == left
    assert sorted([*gone, *left]) == [FULL_1, FULL_2, BAD_2]


@pytest.mark.parametrize("kind", [NONE, AlarmType.ValueType(7)])
def test_what_is_no_alarm_is_not_raised(kind: AlarmType.ValueType) -> None:
    node = Node()
    assert node.change(by_hand(AlarmRequest.ACTIVATE, ONE, kind)) == []
    assert node.raised == []


def test_the_cluster_does_not_take_back_what_was_raised_by_hand() -> None:
    node = Node()
    node.change(raising(FULL_1))
    node.raise_by_hand(FULL_1)
    node.raise_by_hand(FULL_2)
    node.change(raising(FULL_2))
    assert node.alarms.raised == {FULL_1: False, FULL_2: False}
    assert node.change(disarming(FULL_1)) == node.change(disarming(FULL_2)) == []
    assert node.raised == [FULL_1, FULL_2]


def test_the_texts_are_etcds() -> None:
    assert FULL_1.text() == "memberID:1 alarm:NOSPACE "
    assert BAD_2.text() == f"memberID:{2**63 + 2} alarm:CORRUPT "


def due(
    raised: Mapping[Alarm, bool], out_of_space: Mapping[MemberId, bool | None]
) -> list[ChangeAlarm]:
    return list(due_changes(raised, out_of_space=out_of_space, members={ONE, TWO}))


def test_who_runs_out_of_space_gets_an_alarm_once() -> None:
    assert due({}, {ONE: True, TWO: False}) == [raising(FULL_1)]
    assert due({FULL_1: True}, {ONE: True, TWO: False}) == []
    assert due({FULL_1: False}, {ONE: True, TWO: False}) == []
    assert due({BAD_2: True}, {TWO: True}) == [raising(FULL_2)]


def test_who_is_not_a_member_gets_none() -> None:
    assert due({}, {GONE: True}) == []


@pytest.mark.parametrize("words", [{ONE: False, TWO: False}, {ONE: False}])
def test_it_ends_when_there_is_room_or_the_member_is_not_there(words: dict[MemberId, bool]) -> None:
    assert due({FULL_2: True}, words) == [disarming(FULL_2)]
    assert due({FULL_2: False}, words) == [], "raised by hand"


def test_who_can_not_tell_keeps_its_alarm_and_gets_none() -> None:
    assert due({FULL_2: True}, {ONE: False, TWO: None}) == []
    assert due({}, {ONE: False, TWO: None}) == []


def test_a_corrupt_member_stays_so_until_it_is_replaced() -> None:
    gone = Alarm(GONE, CORRUPT)
    assert due({BAD_2: True, gone: True}, {ONE: False, TWO: False}) == [disarming(gone)]
    assert due({gone: False}, {ONE: False}) == []
