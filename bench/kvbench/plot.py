"""Pictures of runs. Needs matplotlib, so it is imported only by those who want a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from kvbench.failover import Fault, Options, Result, Round
from kvbench.load import Plan, Run, Summary, first_ratios, summaries
from kvbench.report import distribution, facts, ms, shown_version

PARTS: Final = (
    ("detection", "detect: until the first standby stood for election", "#e9a15b"),
    ("election", "elect: until the successor was elected", "#4c78a8"),
    ("activation", "activate: until it served", "#72b7b2"),
    ("first_write", "write: until the client had its first acknowledgement", "#b4a7d6"),
)
UNDIVIDED: Final = ("recovery, the logs tell no more", "#b8bec6")
WINDOW: Final = ("window: longest time without an acknowledgement", "#c1443c")
SERVERS: Final = ("#4c78a8", "#e9a15b", "#72b7b2")
INK: Final = "#2b2f36"
PALE: Final = "#6f7782"

FAULTS: Final = {
    Fault.KILL: "killed (SIGKILL)",
    Fault.STOP: "frozen (SIGSTOP)",
    Fault.TERM: "asked to stop (SIGTERM)",
}
ROUNDS_NUMBERED_MAX: Final = 30
BINS_MAX: Final = 20
DPI: Final = 150


def save(figure: Figure, path: Path) -> None:
    """Write a picture; its kind follows from the file's name."""
    figure.savefig(path, dpi=DPI, facecolor="white")


# ---------------------------------------------------------------------- failover


def failover_figure(options: Options, result: Result, machine: Mapping[str, object]) -> Figure:
    """The parts of every round, and beside them how the gap is distributed."""
    figure = Figure(figsize=(11, 6.2))
    grid = figure.add_gridspec(
        1, 2, width_ratios=(4, 1.25), wspace=0.04, left=0.07, right=0.98, top=0.75, bottom=0.14
    )
    rounds = figure.add_subplot(grid[0])
    spread = figure.add_subplot(grid[1], sharey=rounds)
    _draw_rounds(rounds, result.rounds)
    _draw_spread(spread, [one.parts.window * 1000 for one in result.rounds])
    _title(
        figure,
        f"{options.flavor.name} {shown_version(result.server_version)}: what a client sees when "
        f"the active is {FAULTS[options.fault]}",
        f"{options.nodes} nodes, {len(result.rounds)} rounds, one client writing key after key "
        f"(timeout {ms(options.put_timeout_s).removesuffix('.0')} ms). {_verdict(result)}",
    )
    rounds.legend(
        loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2, frameon=False, fontsize=8.5,
        labelcolor=INK, handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip
    figure.text(0.07, 0.025, facts(machine), fontsize=7.5, color=PALE)
    return figure


def _draw_rounds(axes: Axes, rounds: Sequence[Round]) -> None:
    numbers = [one.number for one in rounds]
    width = 0.72 if len(rounds) <= ROUNDS_NUMBERED_MAX else 1.0
    base = [0.0] * len(rounds)
    for name, label, color in PARTS:
        heights = [(getattr(one.parts, name) or 0.0) * 1000 for one in rounds]
        if any(heights):
            axes.bar(numbers, heights, width, bottom=base, color=color, label=label)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    rest = [
        max(0.0, one.parts.recovery * 1000 - low) if not low else 0.0
        for one, low in zip(rounds, base, strict=True)
    ]
    if any(rest):
        axes.bar(numbers, rest, width, color=UNDIVIDED[1], label=UNDIVIDED[0])
    size = 5.0 if len(rounds) <= ROUNDS_NUMBERED_MAX else 2.0
    axes.plot(
        numbers, [one.parts.window * 1000 for one in rounds], linestyle="", marker="D",
        markersize=size, color=WINDOW[1], label=WINDOW[0],
    )  # fmt: skip
    axes.set_xlabel("round", color=INK)
    axes.set_ylabel("milliseconds since the fault", color=INK)
    if len(rounds) <= ROUNDS_NUMBERED_MAX:
        axes.set_xticks(numbers)
    axes.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
    _dress(axes)


def _draw_spread(axes: Axes, windows_ms: Sequence[float]) -> None:
    """A histogram lying on its side, so that it shares the scale of the rounds."""
    found = distribution(windows_ms)
    assert found is not None, "a run has at least one round"
    bins = min(BINS_MAX, max(5, len(windows_ms) // 2))
    axes.hist(windows_ms, bins=bins, orientation="horizontal", color=WINDOW[1], alpha=0.35)
    digits = 1 if found.max < 100 else 0
    figures = [("median", found.median), ("p90", found.p90), ("max", found.max)]
    top = axes.get_ylim()[1]
    at = -top
    for name, value in figures:
        axes.axhline(value, color=WINDOW[1], linewidth=0.9, linestyle=(0, (4, 3)))
        at = max(value, at + top * 0.045)  # labels of equal values stand above one another
        axes.text(
            0.98, at, f"{name} {value:.{digits}f} ms", transform=axes.get_yaxis_transform(),
            ha="right", va="bottom", fontsize=8.5, color=WINDOW[1],
        )  # fmt: skip
    axes.set_ylim(0, max(top, at + top * 0.06))
    axes.set_xlabel("rounds", color=INK)
    axes.set_title("the window", fontsize=9, color=INK, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelleft=False)
    _dress(axes)


def _verdict(result: Result) -> str:
    verdict = result.verdict
    if verdict.broken:
        broken = ", ".join(f"{count} {what}" for what, count in verdict.broken.items())
        return f"A PROMISE WAS BROKEN: {broken}."
    return f"{verdict.acknowledged:,} writes acknowledged, none lost or applied twice."


# ---------------------------------------------------------------------- load


def load_figure(plan: Plan, runs: Sequence[Run], machine: Mapping[str, object]) -> Figure:
    """Throughput above, latency below, a column for each number of clients."""
    found = summaries(runs)
    figure = Figure(figsize=(4.4 * len(plan.clients) + 1.2, 6.8))
    grid = figure.subplots(2, len(plan.clients), squeeze=False)
    figure.subplots_adjust(
        left=0.75 / figure.get_figwidth(), right=0.97, top=0.8, bottom=0.1, hspace=0.32, wspace=0.25
    )
    ratios = first_ratios(plan, found)
    for column, clients in enumerate(plan.clients):
        here = [each for each in found if each.clients == clients]
        throughput, latency = grid[0][column], grid[1][column]
        _draw_throughput(throughput, here, [run for run in runs if run.clients == clients])
        _draw_latency(latency, here)
        title = f"{clients} client{'s' if clients > 1 else ''}"
        if clients in ratios:
            names = f"{plan.flavors[0].name} / {plan.flavors[1].name}"
            title += f":  {names} = {ratios[clients]:.2f}"
        throughput.set_title(title, fontsize=10, color=INK, loc="left", pad=10)
    grid[0][0].set_ylabel(f"{plan.call}s per second", color=INK)
    grid[1][0].set_ylabel("milliseconds", color=INK)
    versions = {run.flavor: shown_version(run.server_version) for run in runs}
    length = f"{plan.requests:,} requests" if plan.requests is not None else f"{plan.seconds:g} s"
    doubt = (
        "" if all(run.honest for run in runs) else f" NOT EVERY ANSWER WAS A {plan.call.upper()}."
    )
    _title(
        figure,
        f"Unary {plan.call}s: "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{plan.nodes} nodes, {length} each, medians of {plan.repeats} interleaved repeats "
        f"(dots: each of them). Latency: bar to the median, whisker to p99.{doubt}",
    )
    figure.text(
        0.75 / figure.get_figwidth(), 0.025, facts(machine), fontsize=7, color=PALE, wrap=True
    )
    return figure


def _colors(found: Sequence[Summary]) -> list[str]:
    return [SERVERS[index % len(SERVERS)] for index in range(len(found))]


def _draw_throughput(axes: Axes, found: Sequence[Summary], runs: Sequence[Run]) -> None:
    places = list(range(len(found)))
    heights = [each.per_second for each in found]
    bars = axes.bar(places, heights, 0.56, color=_colors(found))
    axes.bar_label(bars, [f"{height:,.0f}" for height in heights], padding=5, color=INK)
    for place, each in zip(places, found, strict=True):
        dots = [run.per_second for run in runs if run.flavor == each.flavor]
        # Beside the middle, so that they do not hide behind the number above the bar.
        axes.plot([place + 0.2] * len(dots), dots, "o", markersize=3.5, color=INK, alpha=0.6)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _name_bars(axes, found)


def _draw_latency(axes: Axes, found: Sequence[Summary]) -> None:
    places = list(range(len(found)))
    medians = [each.latency_median_s * 1000 for each in found]
    tails = [each.latency_p99_s * 1000 for each in found]
    axes.bar(places, medians, 0.56, color=_colors(found), alpha=0.85)
    above = [tail - median for tail, median in zip(tails, medians, strict=True)]
    axes.errorbar(
        places, medians, yerr=[[0.0] * len(above), above], fmt="none", ecolor=INK, capsize=7,
        elinewidth=1.1,
    )  # fmt: skip
    for place, median, tail in zip(places, medians, tails, strict=True):
        axes.annotate(
            f"{tail:.1f}", (place, tail), (0, 4), textcoords="offset points", ha="center", color=INK
        )
        axes.text(place, median / 2, f"{median:.1f}", ha="center", va="center", color="white")
    _name_bars(axes, found)


def _name_bars(axes: Axes, found: Sequence[Summary]) -> None:
    axes.set_xticks(range(len(found)), [each.flavor for each in found], color=INK)
    axes.set_xlim(-0.6, len(found) - 0.4)
    axes.margins(y=0.16)
    _dress(axes)


# ---------------------------------------------------------------------- looks


def _title(figure: Figure, title: str, below: str) -> None:
    left = 0.75 / figure.get_figwidth()
    figure.text(left, 0.94, title, fontsize=13, fontweight="bold", color=INK)
    figure.text(left, 0.9, below, fontsize=9, color=PALE)


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.tick_params(colors=PALE, length=0)
    axes.yaxis.grid(visible=True, color="#e6e9ed")
    axes.set_axisbelow(True)
