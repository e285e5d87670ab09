"""Two disks for the tests of copies."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.copying import Side


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    source, target = Side(tmp_path / "source"), Side(tmp_path / "target")
    yield source, target
    source.close()
    target.close()
