"""What a version of kvserver understands, and a cluster may use: the least of its members. Pure.

The level in use is part of the replicated state and only rises. A command waits until the cluster's
level has reached its own; a node below the level can neither read the disk nor join.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from kvpb.raft_pb2 import Command, PublishMember
from kvserver.errors import LogNotUnderstoodError, NotCapableError
from kvserver.raft.entry import MemberId

FEATURE_LEVEL: Final = 4
"""Of this version. Raised when the log, the state or the peer messages get something new."""

COMMAND_LEVELS: Final[Mapping[str, int]] = {
    "put": 0, "delete_range": 0, "txn": 0, "compact": 0,
    "publish_member": 0, "set_feature_level": 0, "change_alarm": 1,
    "lease_grant": 1, "lease_revoke": 1, "renew_leases": 1, "expire_leases": 1, "pass_time": 1,
    "open_session": 2,
}  # fmt: skip
"""Level of the cluster that a kind of command needs; 0 for those of the first version."""

NUMBERED_LEVEL: Final = COMMAND_LEVELS["open_session"]
"""For commands with a session. Load-bearing: an older member would apply a repeated one again."""

KEPT_HASH_LEVEL: Final = 3
"""From this level of the cluster on, HashKV is the hash of all that is kept. Before, it is that of
the keys at the revision, since older members answer that: members stay comparable by it while a
cluster is upgraded node by node."""

DIGESTS_LEVEL: Final = 3
"""From here on the state names the digests of its databases: an older version would change rows
without counting them."""

CALLER_LEVEL: Final = 3
"""For commands that name who asks. Load-bearing: an older member would apply one without asking."""

ERROR_NUMBER_LEVEL: Final = 3
"""From here on answers that are kept name errors by number. Decided by the level as of the command,
which is the same on all members."""

LIMITS_LEVEL: Final = 4
"""From here on a command is held to limits of what it looks at and answers (`mvcc/budget.py`)."""

BATCH_FORMATS: Final = (1, 2)
"""Of entries, as far as this version reads them."""

_FORMAT_2_LEVEL: Final = 3


def batch_format(level: int) -> int:
    """Format in which an entry is written at a level of the cluster.

    With 2 an older version stops at the entry. In 1 it would pass over fields that it does not know
    and go on with another state than the others.
    """
    return 2 if level >= _FORMAT_2_LEVEL else 1


def level_to_use(
    members: Iterable[MemberId], published: Mapping[MemberId, PublishMember]
) -> int | None:
    """Least level of all members, None while one of them has not told its own."""
    levels = [
        published[member].feature_level if member in published else None for member in members
    ]
    known = [level for level in levels if level is not None]
    return min(known, default=None) if len(known) == len(levels) else None


def level_may_rise(
    level: int, members: Iterable[MemberId], published: Mapping[MemberId, PublishMember]
) -> bool:
    """Whether more may be understood in a moment: no member is known that holds the others back."""
    to_use = level_to_use(members, published)
    return to_use is None or to_use > level


def check_command(command: Command, level: int) -> None:
    """Refuse a command that some member would not understand.

    Raises:
        NotCapableError: the cluster is not at its level yet.
    """
    kind = command.WhichOneof("request")
    assert kind is not None
    needed = [COMMAND_LEVELS[kind]]
    if command.session:
        needed.append(NUMBERED_LEVEL)
    if command.HasField("caller"):
        needed.append(CALLER_LEVEL)
    if max(needed) > level:
        raise NotCapableError


def check_level(level: int) -> None:
    """Refuse a state that this version is too old for.

    Raises:
        LogNotUnderstoodError: start the version that wrote it.
    """
    if level > FEATURE_LEVEL:
        raise LogNotUnderstoodError(
            f"the data is of feature level {level}, this kvserver knows {FEATURE_LEVEL}; start the "
            "version that wrote it, or a newer one"
        )
