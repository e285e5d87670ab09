"""The alarms that are raised, as the log has it: who, what, and whether by hand.

What follows from them is decided elsewhere: writes are refused before they are proposed (space.py).
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from kvpb.raft_pb2 import ChangeAlarm
from kvpb.rpc_pb2 import CORRUPT, NONE, NOSPACE, AlarmMember, AlarmRequest, AlarmResponse, AlarmType
from kvserver.raft.entry import MemberId
from kvserver.storage.contract import ReadTxn, WriteTxn
from kvserver.storage.schema import ALARM

_KINDS: Final = (NOSPACE, CORRUPT)


class Alarm(NamedTuple):
    """Something is wrong with a member."""

    member: MemberId
    kind: AlarmType.ValueType

    def message(self) -> AlarmMember:
        """As etcd's API has it."""
        return AlarmMember(memberID=self.member, alarm=self.kind)

    def text(self) -> str:
        """As etcd prints it, the blank at the end included."""
        return f"memberID:{self.member} alarm:{AlarmType.Name(self.kind)} "


class Alarms:
    """Written by the raft thread as it applies; read by any (whole objects are replaced)."""

    def __init__(self) -> None:
        self.raised: Mapping[Alarm, bool] = {}
        """Alarm -> whether the cluster has raised it by itself. In order of members and kinds."""

    @property
    def out_of_space(self) -> bool:
        """True if no more data may be put."""
        return any(alarm.kind == NOSPACE for alarm in self.raised)

    @property
    def corrupt(self) -> frozenset[MemberId]:
        """Members whose state differs from that of others."""
        return frozenset(alarm.member for alarm in self.raised if alarm.kind == CORRUPT)

    def load(self, txn: ReadTxn) -> None:
        """Take over what a state tells."""
        self.raised = {_alarm(key): bool(row[0]) for key, row in txn.scan(ALARM)}

    def change(self, txn: WriteTxn, command: ChangeAlarm) -> AlarmResponse:
        """A committed entry raises or disarms alarms; the response has those that it is about.

        To disarm, member 0 stands for all members and NONE for all kinds. Invariant: the cluster by
        itself never disarms what was raised by hand.
        """
        request, raised = command.request, dict(self.raised)
        found: list[Alarm] = []
        if request.action == AlarmRequest.ACTIVATE and request.alarm in _KINDS:
            alarm = Alarm(MemberId(request.memberID), request.alarm)
            found = [alarm]
            raised[alarm] = raised.get(alarm, True) and command.by_itself
            txn.put(ALARM, _key(alarm), bytes([raised[alarm]]))
        if request.action == AlarmRequest.DEACTIVATE:
            found = [
                alarm
                for alarm, by_itself in raised.items()
                if _meant(request, alarm) and (by_itself or not command.by_itself)
            ]
            for alarm in found:
                del raised[alarm]
                txn.delete(ALARM, _key(alarm))
        self.raised = dict(sorted(raised.items()))
        return AlarmResponse(alarms=[alarm.message() for alarm in found])


def _key(alarm: Alarm) -> bytes:
    return alarm.member.to_bytes(8, "big") + bytes([alarm.kind])


def _alarm(key: bytes) -> Alarm:
    return Alarm(MemberId(int.from_bytes(key[:8], "big")), AlarmType.ValueType(key[8]))


def _meant(request: AlarmRequest, alarm: Alarm) -> bool:
    return request.memberID in (0, alarm.member) and request.alarm in (NONE, alarm.kind)


def raising(alarm: Alarm) -> ChangeAlarm:
    """The command by which the cluster raises an alarm."""
    return _by_itself(alarm, AlarmRequest.ACTIVATE)


def disarming(alarm: Alarm) -> ChangeAlarm:
    """The command by which it takes it back."""
    return _by_itself(alarm, AlarmRequest.DEACTIVATE)


def _by_itself(alarm: Alarm, action: AlarmRequest.AlarmAction.ValueType) -> ChangeAlarm:
    request = AlarmRequest(action=action, memberID=alarm.member, alarm=alarm.kind)
    return ChangeAlarm(request=request, by_itself=True)


def due_changes(
    raised: Mapping[Alarm, bool],
    *,
    out_of_space: Mapping[MemberId, bool | None],
    members: AbstractSet[MemberId],
) -> Iterable[ChangeAlarm]:
    """What the active has to propose so that the alarms are as the members say.

    Args:
        raised: alarm -> whether by the cluster itself.
        out_of_space: what each member that is there says, None while it can't tell. One that is not
            there has no say: it may never come back, and says so itself if it does.
        members: of the cluster. Alarms of others are about nobody any more.
    """
    for member, full in out_of_space.items():
        if full and member in members and Alarm(member, NOSPACE) not in raised:
            yield raising(Alarm(member, NOSPACE))
    for alarm, by_itself in raised.items():
        over = alarm.kind == NOSPACE and out_of_space.get(alarm.member, False) is False
        if by_itself and (over or alarm.member not in members):
            yield disarming(alarm)
