"""A short soak on real nodes, and what makes one a broken promise."""

import subprocess
import sys
from collections import Counter

import pytest

from kvbench.history import Verdict
from kvbench.soak import Soaked


@pytest.mark.cluster
def test_a_short_soak_is_clean_and_says_what_it_did() -> None:
    command = [sys.executable, "-m", "kvbench", "soak", "--minutes", "0.1", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost 0" in done.stdout
    assert "seed 3" in done.stdout


def test_broken_promises_of_all_clients_add_up() -> None:
    clean = Verdict(acknowledged=5, unknown=0, refused=0, reads=0)
    bad = Verdict(acknowledged=5, unknown=0, refused=0, reads=0, lost=["a", "b"])
    assert not Soaked(1.0, Counter(), [clean, clean]).broken
    assert list(Soaked(1.0, Counter(), [bad, clean, bad]).broken.values()) == [4]
