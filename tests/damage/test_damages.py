"""Damages of every kind, each on a data directory of its own: none is ever served as the truth.

`make damage` does the same with thousands, on a larger directory.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPLORE = Path(__file__).with_name("explore.py")
LIMIT_S = 110
KINDS = 80


@pytest.mark.slow
def test_no_damage_is_served(tmp_path: Path) -> None:
    """One of each kind: found before anything is served, or harmless."""
    report = tmp_path / "report.json"
    ran = subprocess.run(
        [sys.executable, EXPLORE, "--damages", str(KINDS), "--keys", "300", "--writes", "200",
         "--seed", "1", "--jobs", "1", "--folder", tmp_path, "--json", report],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    judged = json.loads(report.read_text())
    assert len({each["kind"] for each in judged}) == KINDS, "a kind is missing"
    found = [each for each in judged if each["end"] == "found"]
    assert len(found) > KINDS // 2, "most damages can't be harmless"
    for each in found:
        assert each["told"].endswith("keep the directory"), each
