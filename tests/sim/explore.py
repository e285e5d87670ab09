"""Many seeds of the simulation at once, or one with its story told. `make sim` runs it.

python tests/sim/explore.py --seeds 1000 --from 0
python tests/sim/explore.py --kind whole-3-members --seed 17 --trace
"""

import argparse
import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.chaos import COUNTED, Chaos
from support.kinds import Kind
from support.promises import History

from kvserver.pipeline.role import RECOVERED
from kvserver.pipeline.watchdog import STUCK

KINDS = {
    str(kind): kind
    for kind in (
        Kind(3),
        Kind(5),
        Kind(3, members=True),
        Kind(5, members=True),
        Kind(3, whole=True),
        Kind(5, whole=True),
        Kind(3, members=True, whole=True),
        Kind(5, members=True, whole=True),
        Kind(3, whole=True, leases=True),
        Kind(5, whole=True, leases=True),
        Kind(3, whole=True, sessions=True),
        Kind(5, members=True, whole=True, sessions=True),
        Kind(3, members=True, whole=True, damage=True),
        Kind(5, members=True, whole=True, sessions=True, damage=True),
    )
}

TOLD_EVERY_S = 60.0


def figures(history: History) -> Counter[str]:
    """What a run adds to the report."""
    return Counter(
        {
            "virtual seconds": round(history.seconds),
            "acknowledged writes": history.writes or len(history.acknowledged),
            "writes of unknown outcome": history.unknown,
            "numbered writes sent again": history.repeated,
            "sessions that ended": history.lost_sessions,
            "reads": history.reads,
            "elections": len(history.leader_of),
            "crashes": history.crashes,
            "stuck raft threads": history.stuck,
            "actives that stepped aside": history.role_changes.get(STUCK, 0),
            "of them active again in their term": history.role_changes.get(RECOVERED, 0),
            "adopted snapshots": history.adopted,
            "membership changes": history.changes,
            "disks lost": history.wiped,
            "nodes that joined": history.joined,
            "states damaged": history.damaged,
            "damage found": history.found,
            "runs that ended in trust": history.believed,
            "committed entries": len(history.committed),
            "entries sent": history.sent.get("entries", 0),
            "messages": sum(history.sent.get(kind, 0) for kind in COUNTED),
            "committed in the calm": history.calm_sent.get("committed", 0),
            "entries sent in the calm": history.calm_sent.get("entries", 0),
            "appends sent in the calm": history.calm_sent.get("appends", 0),
            "messages in the calm": sum(history.calm_sent.get(kind, 0) for kind in COUNTED),
        }
    )


def say(text: str = "", end: str = "\n") -> None:
    """To the terminal, now."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


@dataclass(frozen=True)
class Ran:
    """One seed."""

    name: str
    seed: int
    broken: str | None = None
    """What broke, if anything did."""
    figures: Counter[str] = field(default_factory=Counter)
    healed_s: float = 0.0
    """Until an active served again."""
    calm_load: float = 0.0


def run_one(task: tuple[str, int, float]) -> Ran:
    name, seed, seconds = task
    chaos = Chaos(seed, KINDS[name])
    try:
        history = chaos.run(seconds)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is worth looking at
        at = traceback.extract_tb(error.__traceback__)[-1]
        broken = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
        return Ran(name, seed, broken)
    return Ran(name, seed, None, figures(history), history.healed_after, history.calm_load)


def tell(name: str, seed: int, seconds: float, *, messages: bool) -> bool:
    """The story of one seed, a line per event; whether the promises held."""
    chaos = Chaos(seed, KINDS[name], say)
    chaos.cluster.trace_messages = messages
    try:
        history = chaos.run(seconds)
    except Exception:  # noqa: BLE001 - it is what is to be shown
        traceback.print_exc()
        return False
    for what, count in figures(history).items():
        say(f"{count:10} {what}")
    return True


def explore(names: list[str], seeds: range, seconds: float, jobs: int) -> bool:
    """All seeds of all kinds; whether the promises held."""
    tasks = [(name, seed, seconds) for seed in seeds for name in names]
    total: Counter[str] = Counter()
    good: list[Ran] = []
    started = told = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(jobs, gc.set_threshold, (50_000, 20, 20)) as pool:
        for done, ran in enumerate(pool.imap_unordered(run_one, tasks, chunksize=4), 1):
            if ran.broken is not None:
                replay = f"--kind {ran.name} --seed {ran.seed} --seconds {seconds:g} --trace"
                say(f"\r{ran.name} seed {ran.seed}: {ran.broken}")
                say(f"  {sys.executable} {sys.argv[0]} {replay}")
            else:
                total += ran.figures
                good.append(ran)
            now = time.perf_counter()
            if sys.stdout.isatty() or now - told > TOLD_EVERY_S:
                told, rate, bad = now, done / (now - started), done - len(good)
                end = " " if sys.stdout.isatty() else "\n"
                say(f"\r{done}/{len(tasks)} runs, {rate:.1f}/s, {bad} bad", end)
    bad = len(tasks) - len(good)
    say(f"\r{len(tasks)} runs, {bad} bad; seeds {seeds[0]} to {seeds[-1]} of {', '.join(names)}")
    for what, count in total.items():
        say(f"{count:12,} {what}")
    if good:
        healed = sorted(ran.healed_s for ran in good)
        say(f"{healed[len(healed) // 2]:12.2f} s until an active after healing, median")
        say(f"{healed[len(healed) * 99 // 100]:12.2f} s, 99th percentile")
        say(f"{healed[-1]:12.2f} s at worst")
        load = max(ran.calm_load for ran in good)
        say(f"{load:12.2f} messages at worst where one is needed, in the calm")
    return not bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=100, help="how many, of each kind")
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--seconds", type=float, default=10.0, help="virtual, under faults")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kind", choices=sorted(KINDS), action="append")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="tell the story of --seed")
    parser.add_argument("--messages", action="store_true", help="and every message in it")
    args = parser.parse_args()
    names = args.kind or list(KINDS)
    if args.seed is None:
        seeds = range(args.first, args.first + args.seeds)
        return 0 if explore(names, seeds, args.seconds, args.jobs) else 1
    if args.trace or args.messages:
        held = [tell(each, args.seed, args.seconds, messages=args.messages) for each in names]
        return 0 if all(held) else 1
    return 0 if explore(names, range(args.seed, args.seed + 1), args.seconds, 1) else 1


if __name__ == "__main__":
    sys.exit(main())
