"""Damages data directories by the thousand and judges what a node makes of each. `make damage`.

python tests/damage/explore.py --damages 2500 --seed 1
python tests/damage/explore.py --seed 1 --only 17
"""

import argparse
import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.damage import Damages
from support.judging import ENDS, Explorer, Judged, draw
from support.served import build

LOOKS = {
    "its structure is damaged": "structure", "a row of the database": "checksum",
    "is not in order": "order", "does not find it": "lookup", "and counts": "count",
    "of another time": "digest", "ends the verification": "signal",
}  # fmt: skip
"""Which look of the verification found what it says."""

BAD = ("WRONG", "hung", "untidy")
"""Ends that must not be."""

TOLD_EVERY_S = 30.0
"""On what is no terminal."""

MEMORY = Path("/dev/shm")


def say(text: str, end: str = "\n") -> None:
    """To the terminal, now."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


@contextlib.contextmanager
def scratch(wanted: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards; in memory if it can be: nothing must survive a crash."""
    parent = wanted or (MEMORY if MEMORY.is_dir() else None)
    folder = Path(tempfile.mkdtemp(prefix="damage-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Report:
    """What came of all damages."""

    def __init__(self, replay: str) -> None:
        self._replay = replay
        self._by_kind: dict[str, Counter[str]] = defaultdict(Counter)
        self._found_by: dict[str, Counter[str]] = defaultdict(Counter)
        self.all: list[Judged] = []
        self._began = self._told = time.perf_counter()

    def add(self, judged: Judged) -> None:
        self.all.append(judged)
        self._by_kind[judged.kind][judged.end] += 1
        if judged.end == "found":
            self._found_by[judged.kind][found_by(judged)] += 1

    def tell(self, judged: Judged) -> None:
        say(
            f"\r{judged.number} {judged.end} at '{judged.step}': {judged.told}\n    {judged.damage}"
        )
        say(f"    {self._replay} --only {judged.number}")

    def progress(self, of: int) -> None:
        now, terminal = time.perf_counter(), sys.stdout.isatty()
        if terminal or now > self._told + TOLD_EVERY_S:
            self._told = now
            rate = len(self.all) / (now - self._began)
            say(f"\r{len(self.all)}/{of} damages, {rate:.1f}/s, {self.count('WRONG')} wrong",
                " " if terminal else "\n")  # fmt: skip

    def count(self, end: str) -> int:
        return sum(each.end == end for each in self.all)

    def table(self) -> None:
        say(f"{'':48}" + "".join(f"{end:>9}" for end in ENDS) + "  found by")
        for kind in sorted(self._by_kind):
            ends = self._by_kind[kind]
            by = ", ".join(f"{by} {n}" for by, n in self._found_by[kind].most_common())
            say(f"{kind:48}" + "".join(f"{ends[end] or '':>9}" for end in ENDS) + f"  {by}")
        say(f"{'all':48}" + "".join(f"{self.count(end):>9}" for end in ENDS))


def found_by(judged: Judged) -> str:
    """Which of the looks at a directory found it."""
    if judged.step != "verify":
        return judged.step
    return next((name for text, name in LOOKS.items() if text in judged.told), "engine")


def explore(args: argparse.Namespace) -> int:
    """Whether no answer was wrong."""
    began = time.perf_counter()
    with scratch(args.folder) as folder:
        sound = build(folder, args.keys)
        damages = Damages(sound.data_dir, sound.older)
        numbers = [args.only] if args.only is not None else range(args.damages)
        say(f"{args.keys} keys built in {time.perf_counter() - began:.1f} s; "
            f"{len(damages.kinds)} kinds of damage")  # fmt: skip
        gc.freeze()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and nothing is left behind
        report = Report(f"{sys.executable} {sys.argv[0]} --seed {args.seed} --keys {args.keys}")
        explorer = Explorer(folder, sound, args.writes, args.jobs)
        drawn = ((number, draw(damages, args.seed, number)) for number in numbers)
        try:
            for judged in explorer.judge(drawn):
                report.add(judged)
                if judged.end in (*BAD, *args.tell) or args.only is not None:
                    report.tell(judged)
                report.progress(len(numbers))
        finally:
            explorer.close()
    if sys.stdout.isatty():
        say("")
    report.table()
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in report.all], indent=1))
    say(f"{len(report.all)} damages in {time.perf_counter() - began:.0f} s: "
        + ", ".join(f"{report.count(end)} {end}" for end in BAD))  # fmt: skip
    return 1 if any(report.count(end) for end in BAD) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="only the damage with this number")
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--writes", type=int, default=2_000, help="after the first answers")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where directories are made")
    parser.add_argument("--json", type=Path, help="what became of each damage")
    parser.add_argument("--tell", action="append", default=[], choices=ENDS,
                        help="show each damage that ends so")  # fmt: skip
    return explore(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
