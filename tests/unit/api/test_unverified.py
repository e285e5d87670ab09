"""A node that is unverified gives no snapshot away."""

from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvpb.rpc_pb2 import SnapshotRequest
from kvserver.api.door import Door
from kvserver.api.maintenance import MaintenanceServicer
from kvserver.errors import UnverifiedError
from kvserver.raft.fitness import Fitness, Reason


@pytest.mark.parametrize("trusted", [True, False])
async def test_nobody_gets_a_copy_of_what_nobody_has_read(trusted: bool) -> None:
    """It would be sound, and lack what the state lacks."""

    async def answer(_context: object, work: Awaitable[Any]) -> Any:
        return await work

    door = SimpleNamespace(
        me=1, answer=answer, make_backup=None, alarms=SimpleNamespace(corrupt=frozenset()),
        raft_status=lambda: SimpleNamespace(
            fitness=Fitness(frozenset({Reason.UNVERIFIED}), trusted=trusted)
        ),
    )  # fmt: skip
    servicer = MaintenanceServicer(cast("Door", door))
    with pytest.raises(UnverifiedError):
        await servicer.Snapshot(SnapshotRequest(), cast("Any", None))
