"""A short soak on real nodes, and what makes one a broken promise."""

import random
import subprocess
import sys
from collections import Counter

import pytest

from kvbench.damaged import Damaged
from kvbench.history import Verdict
from kvbench.soak import Mischief, Soaked, choose


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


def test_others_that_are_upset_by_a_damage_break_a_promise() -> None:
    upsets = {"n2 election.won": 1, "n3 role.changed": 1}
    quiet = Damaged("n1", "flipped bits", running=True, found=False)
    loud = Damaged("n1", "CURRENT emptied", running=False, found=True, upsets=upsets)
    late = Damaged("n1", "CURRENT emptied", False, True, ("SIGBUS",), upsets, stalled_s=1.0)
    assert not Soaked(1.0, Counter(), [], [quiet, late]).broken
    soaked = Soaked(1.0, Counter(), [], [quiet, loud, late])
    assert list(soaked.broken.values()) == [2]
    assert soaked.damage_lines() == [
        "3 disks damaged (2 while down, 1 while running): 2 found, the nodes replaced; 1 harmless; "
        "1 ends by a signal on the way; other nodes were upset beside 2, "
        "1 of them while the bench stood still",
        str(loud), str(late),
    ]  # fmt: skip
    assert not Soaked(1.0, Counter(), []).damage_lines()


def test_the_share_of_damages() -> None:
    rng, damages = random.Random(1), {Mischief.DAMAGE_DOWN, Mischief.DAMAGE_RUNNING}
    assert damages.isdisjoint(choose(rng, 0.0) for _ in range(1000))
    assert {choose(rng, 1.0) for _ in range(100)} == damages
    assert 250 < sum(choose(rng, 0.3) in damages for _ in range(1000)) < 350
    assert {choose(rng, 0.3) for _ in range(1000)} == set(Mischief)


@pytest.mark.cluster
def test_a_damaged_node_is_replaced_and_counted() -> None:
    command = [sys.executable, "-m", "kvbench", "soak", "--minutes", "0.05", "--damage-share", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "disks damaged" in done.stdout
    assert "lost 0" in done.stdout
