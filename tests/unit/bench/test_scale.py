"""What many keys cost: a small run on real nodes, and the arithmetic."""

import subprocess
import sys

import pytest

from kvbench.history import Verdict
from kvbench.nodelog import LogEvent
from kvbench.scale import Rate, Restart, Scaled, grown


def scaled(*verdicts: Verdict) -> Scaled:
    return Scaled(
        keys=1000, fill_s=2.0, memory_empty={"n1": 30_000_000, "n2": 31_000_000},
        memory_full={"n1": 36_000_000, "n2": 32_000_000}, file_bytes=5_000_000,
        idle=Restart(0.5, 4.0, 0), loaded=Restart(0.7, 9.0, 2_500_000),
        before=Rate(1000, 10.0), beside=Rate(475, 5.0), meanwhile=Rate(450, 5.0),
        wiped_verified_s=7.5, after=Rate(4000, 20.0), verdicts=verdicts,
    )  # fmt: skip


def test_what_was_kept_is_compared_with_before_and_after() -> None:
    assert scaled().kept == pytest.approx(0.6)
    assert scaled().kept_beside == pytest.approx(0.95)
    assert Rate(0, 0.0).per_second == 0.0


def test_the_report_names_the_worst_node_and_broken_promises() -> None:
    good = Verdict(acknowledged=5, unknown=0, refused=0, reads=0)
    bad = Verdict(acknowledged=5, unknown=0, refused=0, reads=0, lost=["a"])
    told = "\n".join(scaled(good, good).lines())
    assert "36 MB after (+6 MB at most)" in told
    assert "a voter in step after 5.0 s" in told
    assert "60% of what it was" in told
    assert "(100 before, 200 after); verified after 7.5 s" in told
    assert "ready after 0.50 s, verified after 4.0 s" in told
    assert (
        "beside writes: ready after 0.70 s, verified after 9.0 s, its file grew by 2.5 MB" in told
    )
    assert "95 writes/s, 95% of what it was before" in told
    assert "10 writes read back: none lost" in told
    assert not scaled(good).broken
    assert scaled(good, bad).broken
    assert "a promise is broken" in "\n".join(scaled(good, bad).lines())


def test_the_first_verification_tells_how_much_the_file_grew() -> None:
    done = [LogEvent(at, "verify.done", {"grew_bytes": str(at)}) for at in (4, 5)]
    assert grown([LogEvent(1, "node.ready"), *done]) == 4
    assert grown([LogEvent(1, "node.ready")]) is None


@pytest.mark.cluster
def test_a_small_run_says_what_it_found() -> None:
    command = [sys.executable, "-m", "kvbench", "scale", "--keys", "2000", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2,000 keys filled" in done.stdout
    assert "none lost" in done.stdout
    assert done.stdout.count("verified after") == 3
