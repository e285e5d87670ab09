"""A cluster of three for a story."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvbench.cluster import Cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Up and in step; ended whatever the test did to it."""
    async with Cluster(tmp_path) as started:
        yield started
