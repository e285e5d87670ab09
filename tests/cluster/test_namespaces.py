"""Partitions by the kernel itself: nodes in network namespaces, packets dropped between them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

TESTS = Path(__file__).parent.parent
MOUNTED = "mkdir -p /var/run/netns && mount -t tmpfs none /var/run/netns"
"""So that the names of the namespaces are nobody else's."""


def isolated(*command: str) -> list[str]:
    return ["unshare", "--net", "--mount", "sh", "-c", f'{MOUNTED} && exec "$@"', "sh", *command]


def possible() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    done = subprocess.run(isolated("true"), capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not possible(), reason="needs root, iproute2 and the right to make namespaces")
def test_nodes_that_the_kernel_keeps_apart(tmp_path: Path) -> None:
    told = subprocess.run(
        isolated(sys.executable, "-m", "support.namespaces", str(tmp_path)),
        capture_output=True, text=True, timeout=110, check=False, cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.endswith("judged\n")
