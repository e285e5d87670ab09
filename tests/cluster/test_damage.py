"""A standby is hurt while it is down and then made the active: it ends and says why, or is right.

`--damages` says how many; `make damage` runs sixty of them, each of another kind.
"""

import logging
from pathlib import Path
from random import Random

import pytest
from support.cluster import writing
from support.hurt_nodes import End, Known, Ward

from kvbench.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LOG = logging.getLogger("damage")
PATIENT = [
    "--election-timeout-ms-min=1500", "--election-timeout-ms-max=2500", "--check-quorum-ms=2500",
    "--dead-peer-ms=4000",
]  # fmt: skip
"""An election that nobody asked for is what is looked for; a busy machine must not cause one."""

IN_ONE_CLUSTER = 5
START_S = 60
EACH_S = 120


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    count = metafunc.config.getoption("--damages")
    firsts = range(0, count, IN_ONE_CLUSTER)
    metafunc.parametrize(
        "numbers", [range(first, min(first + IN_ONE_CLUSTER, count)) for first in firsts], ids=str
    )


@pytest.mark.timeout(START_S + IN_ONE_CLUSTER * EACH_S)
async def test_a_standby_that_was_hurt_never_lies(
    numbers: range, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--damage-seed")
    (tmp_path / "nodes").mkdir()
    async with Cluster(tmp_path / "nodes", options=PATIENT) as cluster:
        known, rng = Known(), Random(seed)
        await known.fill(cluster.control, rng)
        ward = Ward(cluster, known, tmp_path, seed)
        await cluster.wait_in_step()
        ward.keep_older(*cluster.nodes)
        async with writing(cluster, writers=4) as writers:
            for number in numbers:
                await known.change(cluster.control, rng)
                damage, end = await ward.hurt(number, writers)
                LOG.info("%d %s: %s", number, damage, end.value)
                assert end is not End.UNWILLING, damage
                assert end is not End.LATE, damage
        await writers.verify(cluster)
        await known.check(cluster.control)
