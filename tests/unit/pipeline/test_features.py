"""Feature levels: what all understand may be used, what one does not is refused."""

import pytest
from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import Caller, Command, CommandBatch, PublishMember, SetFeatureLevel
from kvpb.rpc_pb2 import LeaseGrantRequest, PutRequest
from kvserver.errors import LogNotUnderstoodError, NotCapableError
from kvserver.pipeline import features
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.features import FEATURE_LEVEL, check_command, level_may_rise, level_to_use
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.journal import store_configuration
from kvserver.raft.membership import Configuration

ONE, TWO, THREE = MemberId(1), MemberId(2), MemberId(3)


def told(**levels: int) -> dict[MemberId, PublishMember]:
    names = {"one": ONE, "two": TWO, "three": THREE}
    return {names[n]: PublishMember(feature_level=level) for n, level in levels.items()}


def test_the_least_member_decides() -> None:
    assert level_to_use([ONE, TWO, THREE], told(one=3, two=2, three=4)) == 2
    assert level_to_use([ONE, TWO], told(one=3, two=3, three=1)) == 3, "three is no member"


def test_nobody_decides_before_all_have_told() -> None:
    assert level_to_use([ONE, TWO], told(one=3)) is None
    assert level_to_use([], told(one=3)) is None


def test_whoever_may_still_tell_is_waited_for_and_nobody_else() -> None:
    assert level_may_rise(0, [ONE, TWO], told(one=3)), "two has not told"
    assert level_may_rise(0, [ONE, TWO], told(one=3, two=2)), "it is on its way into the log"
    assert not level_may_rise(1, [ONE, TWO], told(one=3, two=1)), "two is older"


def test_where_no_time_can_be_passed_no_lease_can_have_been_ended() -> None:
    """Load-bearing for `Lessor`: it goes on without an entry of its own where it gets none."""
    assert features.COMMAND_LEVELS["pass_time"] <= features.COMMAND_LEVELS["expire_leases"]


def test_a_command_waits_for_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "COMMAND_LEVELS", {"put": 0, "lease_grant": 2})
    put, grant = Command(put=PutRequest()), Command(lease_grant=LeaseGrantRequest())
    check_command(put, 0)
    check_command(grant, 2)
    with pytest.raises(NotCapableError):
        check_command(grant, 1)


def test_a_numbered_write_waits_until_all_members_know_what_that_is() -> None:
    """An older one would see an ordinary write, and apply it as often as it comes."""
    write = Command(put=PutRequest(), session=7, sequence=1)
    check_command(write, features.NUMBERED_LEVEL)
    with pytest.raises(NotCapableError):
        check_command(write, features.NUMBERED_LEVEL - 1)


def test_who_asks_is_named_only_where_all_members_look_at_it() -> None:
    """An older one would apply the command without a look at the rights."""
    asked = Command(put=PutRequest(), caller=Caller(user="alice"))
    check_command(asked, features.CALLER_LEVEL)
    with pytest.raises(NotCapableError):
        check_command(asked, features.CALLER_LEVEL - 1)


def test_entries_are_written_as_all_members_read_them() -> None:
    assert [features.batch_format(level) for level in range(5)] == [1, 1, 1, 2, 2]
    assert (1, features.batch_format(FEATURE_LEVEL)) == features.BATCH_FORMATS


def test_every_command_has_a_level() -> None:
    kinds = {field.name for field in Command.DESCRIPTOR.oneofs_by_name["request"].fields}
    assert features.COMMAND_LEVELS.keys() == kinds


def applier(storage: MemoryStorage) -> Applier:
    return Applier(storage, Roster(), on_applied=lambda *_: None)


def started() -> tuple[MemoryStorage, Applier]:
    storage = MemoryStorage()
    store_configuration(storage.writer(), Configuration(1, 7, {}))
    storage.commit()
    return storage, applier(storage)


def set_level(one: Applier, level: int) -> None:
    command = Command(set_feature_level=SetFeatureLevel(level=level))
    batch = CommandBatch(format=1, commands=[command]).SerializeToString()
    one.apply(one.applied_index + 1, 1, batch)


def test_the_level_survives_a_restart_and_never_falls() -> None:
    storage, one = started()
    assert one.feature_level == 0
    set_level(one, FEATURE_LEVEL)
    set_level(one, 0)
    one.stage()
    storage.commit()
    assert one.feature_level == FEATURE_LEVEL == applier(storage).feature_level


def test_an_older_version_refuses_the_data_of_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, one = started()
    set_level(one, FEATURE_LEVEL)
    one.stage()
    storage.commit()
    monkeypatch.setattr(features, "FEATURE_LEVEL", FEATURE_LEVEL - 1)
    with pytest.raises(LogNotUnderstoodError, match="feature level"):
        applier(storage)


def test_a_level_that_is_not_known_stops_the_node() -> None:
    _, one = started()
    with pytest.raises(LogNotUnderstoodError, match="feature level"):
        set_level(one, FEATURE_LEVEL + 1)


@pytest.mark.parametrize("number", features.BATCH_FORMATS)
def test_every_format_is_read_at_every_level(number: int) -> None:
    for level in (0, FEATURE_LEVEL):
        _, one = started()
        set_level(one, level)
        batch = CommandBatch(format=number, commands=[Command(put=PutRequest(key=b"k"))])
        one.apply(one.applied_index + 1, 1, batch.SerializeToString())
        assert one.revision == 2
