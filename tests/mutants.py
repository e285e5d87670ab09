"""Small changes of the server, drawn from a seed, and which of them no test notices.

python tests/mutants.py --seed 1 --count 40
python tests/mutants.py --seed 1 --count 40 --list
python tests/mutants.py --under kvserver/raft/flow.py --count 10

Each is made in a copy of the tree, alone. The tests of its room run first, then all unit tests,
then a few seeds of the simulation; the first that fails is enough. Whoever survives all of them is
listed with its diff: a test is missing, or the change means nothing. `make mutants` runs it.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from support.mutating import Mutant, mutants

ROOT: Final = Path(__file__).parent.parent
ROOMS: Final = {
    "kvserver/raft/": ("tests/unit/raft",),
    "kvserver/storage/": ("tests/unit/storage",),
    "kvserver/pipeline/": ("tests/unit/pipeline",),
    "kvserver/mvcc/": ("tests/unit/mvcc",),
}
"""Where mutants are drawn, and the tests that know that room."""

EVERYTHING: Final = (("tests/unit",), ("tests/sim/test_chaos.py", "--seeds", "2"))
"""What runs afterwards."""

SLOWER: Final = 3
"""A stage that takes so many times as long as without a change hangs: that is noticed too."""

SPARE_S: Final = 20.0


class RedError(Exception):
    """Tests fail without any change."""


@dataclass(frozen=True)
class Verdict:
    """How a mutant ended."""

    mutant: Mutant
    stage: str
    """Tests that noticed it; empty if none did."""
    how: str
    seconds: float


# ---------------------------------------------------------------------------- drawing


def sources(under: str) -> Iterator[str]:
    """Paths of the files that may be changed."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            if path.startswith(under):
                yield path


def draw(paths: Sequence[str], seed: int, count: int) -> list[Mutant]:
    """Mutants of different lines, each line of code as likely as any other."""
    by_line: defaultdict[tuple[str, int], list[Mutant]] = defaultdict(list)
    for path in paths:
        for mutant in mutants(path, (ROOT / path).read_text()):
            by_line[path, mutant.line].append(mutant)
    rng = random.Random(seed)
    lines = rng.sample(sorted(by_line), min(count, len(by_line)))
    return [rng.choice(by_line[line]) for line in lines]


def stages(path: str) -> list[tuple[str, ...]]:
    """What is run for a change of this file, one after the other."""
    room = next(tests for room, tests in ROOMS.items() if path.startswith(room))
    return [room, *EVERYTHING]


# ---------------------------------------------------------------------------- running


class Copy:
    """A copy of the tree, in which one file at a time is changed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._took: dict[tuple[str, ...], float] = {}
        """Seconds of each stage without a change."""
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
        for path in filter(None, listed.stdout.split("\0")):
            if (ROOT / path).is_file():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, root / path)

    def try_out(self, mutant: Mutant) -> Verdict:
        """Run its stages until one notices it.

        Raises:
            RedError: a stage fails without it.
        """
        seconds = 0.0
        for stage in stages(mutant.path):
            self._measure(stage)
            began = time.perf_counter()
            self._write(mutant.path, mutant.after)
            try:
                failed = self._run(stage, SLOWER * self._took[stage] + SPARE_S)
            finally:
                self._write(mutant.path, mutant.before)
            seconds += time.perf_counter() - began
            if failed is not None:
                return Verdict(mutant, stage[0], failed, seconds)
        return Verdict(mutant, "", "", seconds)

    def _write(self, path: str, text: str) -> None:
        """Size and second of the change may be those of the other text: no cache is believed."""
        target = self._root / path
        target.write_text(text)
        for cached in target.parent.glob(f"__pycache__/{target.stem}.*"):
            cached.unlink()

    def _measure(self, stage: tuple[str, ...]) -> None:
        if stage in self._took:
            return
        say(f"{stage[0]}: without a change ...")
        began = time.perf_counter()
        failed = self._run(stage, 1800.0)
        if failed is not None:
            raise RedError(f"{stage[0]}: {failed}")
        self._took[stage] = time.perf_counter() - began
        say(f"{stage[0]}: {self._took[stage]:.0f} s")

    def _run(self, stage: tuple[str, ...], within_s: float) -> str | None:
        """The first test that fails, None if all pass."""
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
            "-m", "not cluster", *stage,
        ]  # fmt: skip
        places = ("", "client", "bench", "protos")
        path = os.pathsep.join(str(self._root / each) for each in places)
        process = subprocess.Popen(
            command, cwd=self._root, env={**os.environ, "PYTHONPATH": path}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            return "a time limit"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nobody else's
                process.communicate()
        if process.returncode == 0:
            return None
        failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if not failed:
            return f"an end of pytest with {process.returncode}"
        return failed[0].partition(" ")[2].partition(" - ")[0]


# ---------------------------------------------------------------------------- telling


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def describe(mutant: Mutant) -> str:
    return f"{mutant.path}:{mutant.line} {mutant.what}"


def try_all(drawn: Sequence[Mutant], minutes: float) -> list[Verdict]:
    """Try them in turn, and begin none after so many minutes."""
    verdicts: list[Verdict] = []
    end = time.perf_counter() + minutes * 60
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(Path(folder))
        for number, mutant in enumerate(drawn, 1):
            if time.perf_counter() > end:
                say(f"{minutes:g} minutes are over: {len(drawn) - number + 1} were not tried")
                break
            verdict = copy.try_out(mutant)
            verdicts.append(verdict)
            word = f"noticed by {verdict.how}" if verdict.stage else "SURVIVES"
            say(f"[{number}/{len(drawn)}] {describe(mutant)}: {word} ({verdict.seconds:.0f} s)")
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40, help="how many, each of another line")
    parser.add_argument("--under", default="", help="only files whose path begins so")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin none after that")
    parser.add_argument("--list", action="store_true", help="only show what would be tried")
    args = parser.parse_args()
    drawn = draw(list(sources(args.under)), args.seed, args.count)
    if args.list:
        for mutant in drawn:
            say(f"{describe(mutant)}\n{mutant.diff}")
        return 0
    try:
        verdicts = try_all(drawn, args.minutes)
    except RedError as error:
        say(f"these tests fail without any change: {error}")
        return 2
    survivors = [each.mutant for each in verdicts if not each.stage]
    say(f"\n{len(verdicts)} tried, {len(survivors)} survived")
    for mutant in survivors:
        say(f"\n{describe(mutant)}\n{mutant.diff}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
