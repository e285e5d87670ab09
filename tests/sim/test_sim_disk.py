"""The simulated disk lies no more than a real one can."""

import random

import pytest
from support.sim_disk import SimClock, SimDisk

from kvserver.errors import DiskError
from kvserver.storage.schema import META


@pytest.mark.parametrize("seed", range(10))
def test_a_state_that_is_on_the_disk_comes_after_the_log_it_was_made_of(seed: int) -> None:
    """Found by a run that started with a state ahead of its log."""
    disk = SimDisk(SimClock(), random.Random(seed))
    disk.begin_log(b"", [(b"", 1, 0)])
    disk.commit(durable=True)
    disk.commit_s = 0.01
    disk.log.append((b"entry", 2, 1))
    disk.log.sync(b"state")
    disk.writer().put(META, b"key", b"value")
    disk.die_after_commit = True
    with pytest.raises(DiskError):
        disk.commit()
    disk.crash()
    with disk.read() as txn:
        assert txn.get(META, b"key") == b"value"
    assert disk.log.last_index == 2
