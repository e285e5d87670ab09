"""What several tests of the pipeline begin with."""

from collections.abc import Iterator

import pytest
from support.lessor_bench import Bench, Log
from support.sim_disk import SimClock


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(Log(SimClock())).activate()
    yield bench
    bench.loop.kill()
