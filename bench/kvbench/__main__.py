"""The command `kvbench`: options to runs, results to tables, JSON and exit codes."""

from pathlib import Path
from typing import Final

import click

from kvbench import watch as watching
from kvbench.cluster import Cluster
from kvbench.command import (
    BROKEN,
    FAILURES,
    OK,
    Outputs,
    complaints,
    console,
    elapsing,
    evidence,
    flavors_of,
    json_option,
    plot_option,
    run,
    shown,
)
from kvbench.damaged import SCRUB_S
from kvbench.demo import run_demo
from kvbench.failover import Failover, Fault, Options
from kvbench.failover_report import failover_document, print_failover, round_line
from kvbench.flavor import FLAVORS, KVSERVER, Flavor
from kvbench.load import CALLS, Plan, load_document, measure, print_load, run_line
from kvbench.report import facts, machine, print_verdict, save_json
from kvbench.scale import Scale
from kvbench.soak import Soak
from kvbench.workfolder import work_folder

DEMO_FOLDER: Final = Path("out/demo")

_EXAMPLES: Final = """
\b
Examples:
  kvbench demo
  kvbench failover --rounds 10 --fault kill
  kvbench soak --minutes 15
  kvbench scale --keys 1000000
  kvbench load --flavor kvserver,etcd
  kvbench watch --watchers 1,100,10000

\b
Exit codes:
  0    done, all promises held
  1    a promise was broken: a write lost, applied twice, or a stale read
  2    wrong option
  3    the run could not be completed: a node did not start or did not recover
  130  interrupted
"""

_FAILOVER_EXAMPLES: Final = """
\b
Examples:
  kvbench failover
  kvbench failover --rounds 50 --fault stop --json stop.json --plot stop.png
  kvbench failover --rounds 5 --flavor etcd
"""

_LOAD_EXAMPLES: Final = """
\b
Examples:
  kvbench load
  kvbench load --call get
  kvbench load --flavor kvserver --clients 256 --seconds 10
  kvbench load --requests 20000 --repeats 5 --json load.json --plot load.png
"""

_SOAK_EXAMPLES: Final = """
\b
Examples:
  kvbench soak
  kvbench soak --minutes 60 --nodes 5 --seed 7
  kvbench soak --minutes 30 --damage-share 0.9
"""

_WATCH_EXAMPLES: Final = """
\b
Examples:
  kvbench watch
  kvbench watch --watchers 100 --puts 2000 --repeats 9 --json watch.json
"""

_DEMO_EXAMPLES: Final = """
\b
Examples:
  kvbench demo
  kvbench demo | cat
"""


@click.group(context_settings={"max_content_width": 100}, epilog=_EXAMPLES)
def main() -> None:
    """Measure kvserver and etcd: what a client sees when nodes fail, and how fast they are."""


@main.command(epilog=_FAILOVER_EXAMPLES, short_help="Hurt the active, measure the gap.")
@click.option(
    "--rounds",
    default=10,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="How many faults, one after the other.",
)
@click.option(
    "--fault",
    default="kill",
    show_default=True,
    type=click.Choice([fault.value for fault in Fault]),
    help="kill: SIGKILL. stop: SIGSTOP, later SIGCONT. term: SIGTERM, a clean stop. "
    "cut: other nodes can't be reached, clients can (kvserver only).",
)
@click.option(
    "--nodes",
    default=3,
    show_default=True,
    type=click.IntRange(3, 9),
    help="Members of the cluster.",
)
@click.option(
    "--flavor",
    default="kvserver",
    show_default=True,
    type=click.Choice(list(FLAVORS)),
    help="Which server.",
)
@click.option("--seed", default=1, show_default=True, help="Of the texts and the pauses.")
@click.option(
    "--timeout-ms",
    default=50,
    show_default=True,
    type=click.IntRange(10, 60_000),
    help="How long the client waits for a write before it leaves it behind. A node that "
    "hangs refuses nothing, so this is the grain of what --fault stop can see.",
)
@json_option
@plot_option
@click.option(
    "--keep-data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep data and logs of the nodes there.",
)
def failover(  # noqa: PLR0913 - one for each option
    *, rounds: int, fault: str, nodes: int, flavor: str, seed: int, timeout_ms: int,
    json_file: Path | None, plot_file: Path | None, keep_data: Path | None,
) -> None:  # fmt: skip
    """Hurt the active again and again while a client writes; measure the gap and its parts.

    One client writes distinct keys, one at a time. Each round waits until all nodes are in step,
    hurts the active, waits until another node acknowledges writes, heals the node, and waits until
    it has caught up. With --fault stop, the deposed active is asked for the newest data at the
    moment it goes on: it may decline, but an old answer is a broken promise. At the end every key
    is read back and the copies of all nodes are compared.
    """
    options = Options(FLAVORS[flavor], Fault(fault), rounds, nodes, seed, timeout_ms / 1000)
    if options.fault is Fault.CUT and options.flavor is not KVSERVER:
        raise click.UsageError("--fault cut needs --flavor kvserver")
    run(_failover(options, Outputs(json_file, plot_file), keep_data))


async def _failover(options: Options, outputs: Outputs, keep: Path | None) -> int:
    with work_folder(keep) as folder, shown(options.rounds, round_line) as show:
        try:
            cut = options.fault is Fault.CUT
            async with Cluster(
                folder.path, flavor=options.flavor, nodes=options.nodes, wires=cut
            ) as cluster:
                result = await Failover(cluster, options).run(show)
        except FAILURES:
            folder.keep = True
            complaints.print(f"data and logs: {folder.path}", highlight=False, soft_wrap=True)
            raise
        here = machine(folder.path)
        if result.verdict.broken:
            folder.keep = True
    print_failover(console, options, result, here)
    if outputs.json is not None:
        save_json(outputs.json, failover_document(options, result, here))
    if outputs.plot is not None:
        from kvbench import plot  # noqa: PLC0415 - matplotlib is an extra

        plot.save(plot.failover_figure(options, result, here), outputs.plot)
    if folder.keep:
        console.print(f"data and logs: {folder.path}", highlight=False, soft_wrap=True)
    return BROKEN if result.verdict.broken else OK


@main.command(epilog=_SOAK_EXAMPLES, short_help="Every kind of fault, for a long time.")
@click.option(
    "--minutes",
    default=15.0,
    show_default=True,
    type=click.FloatRange(0.05, 1_440),
    help="How long.",
)
@click.option(
    "--nodes",
    default=3,
    show_default=True,
    type=click.IntRange(3, 9),
    help="Members of the cluster.",
)
@click.option("--seed", default=1, show_default=True, help="Of what happens when.")
@click.option(
    "--damage-share",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Part of the faults that damage the files of one standby.",
)
@click.option(
    "--keep-data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep data and logs of the nodes there.",
)
def soak(
    *, minutes: float, nodes: int, seed: int, damage_share: float, keep_data: Path | None
) -> None:
    """Kill, freeze, stop, cut off and rob nodes at random while clients write and read.

    Each of four clients writes distinct keys one by one and reads the newest of them all the time.
    At the end every key is read back, every read is judged, and the copies of all nodes are
    compared.

    Some faults damage the files of one standby, down or running, while all others are well: bits,
    ranges, pages and the size of its data, its log, its CURRENT. It must then end with exit code 3
    and say what to do, which is done, and come back in step; or what was hit is in no use, and all
    of its data is read without a finding. It counts as a broken promise if other nodes stand for
    election, restart or fail meanwhile, except while the bench itself stood still: then the machine
    has too much to do.
    """
    run(_soak(minutes * 60, nodes, seed, damage_share, keep_data))


async def _soak(
    seconds: float, nodes: int, seed: int, damage_share: float, keep: Path | None
) -> int:
    options = [f"--scrub-interval-s={SCRUB_S}"]
    with work_folder(keep) as folder:
        try:
            async with Cluster(folder.path, nodes=nodes, options=options, wires=True) as cluster:
                with elapsing(seconds) as show:
                    result = await Soak(cluster, seconds, seed, damage_share).run(show)
        except FAILURES:
            folder.keep = True
            complaints.print(f"data and logs: {folder.path}", highlight=False, soft_wrap=True)
            raise
        folder.keep = folder.keep or bool(result.broken)
    faults = ", ".join(f"{count} x {name}" for name, count in result.faults.most_common())
    console.print(f"{result.seconds:.0f} s, {nodes} nodes, seed {seed}; {faults}")
    for line in result.damage_lines():
        console.print(line, highlight=False, soft_wrap=True)
    for verdict in result.verdicts:
        print_verdict(console, verdict)
    return BROKEN if result.broken else OK


@main.command(short_help="What many keys cost.")
@click.option(
    "--keys",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(1_000, 1_000_000_000),
    help="How many.",
)
@click.option(
    "--value-bytes",
    default=100,
    show_default=True,
    type=click.IntRange(1, 8_192),
    help="Of each key's value.",
)
@click.option(
    "--seconds",
    default=15.0,
    show_default=True,
    type=click.FloatRange(1, 3_600),
    help="How long writes are counted before and after.",
)
def scale(*, keys: int, value_bytes: int, seconds: float) -> None:
    """Fill in many keys; start a standby again, then beside writes, then let it lose its disk.

    Shows the memory of the nodes before and after, how long the standby takes to be ready and to be
    verified, that is to read all of its data, how long until it votes again after the loss, and how
    many writes are acknowledged meanwhile.
    """
    run(_scale(keys, value_bytes, seconds))


async def _scale(keys: int, value_bytes: int, seconds: float) -> int:
    with work_folder(None) as folder:
        async with Cluster(folder.path) as cluster:
            run = Scale(
                cluster, keys=keys, value_bytes=value_bytes, seconds=seconds,
                on_step=lambda step: complaints.print(step, highlight=False),
            )  # fmt: skip
            result = await run.run()
        console.print(facts(machine(folder.path)), style="dim")
    for line in result.lines():
        console.print(line, highlight=False)
    for verdict in result.verdicts if result.broken else ():
        print_verdict(console, verdict)
    return BROKEN if result.broken else OK


@main.command(epilog=_LOAD_EXAMPLES, short_help="Puts or gets per second, servers side by side.")
@click.option(
    "--call",
    default="put",
    show_default=True,
    type=click.Choice(sorted(CALLS)),
    help="What the clients do; gets are linearizable.",
)
@click.option(
    "--flavor",
    default="kvserver,etcd",
    show_default=True,
    help="Servers to measure, in turn, with commas between them.",
)
@click.option(
    "--clients",
    default=64,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Concurrent clients of the second run; the first has one.",
)
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0.5, 3600),
    help="Length of each run.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 100_000_000),
    help="Calls of each run, instead of --seconds.",
)
@click.option(
    "--repeats",
    default=3,
    show_default=True,
    type=click.IntRange(1, 1_000),
    help="How often each server's turn comes.",
)
@click.option(
    "--nodes",
    default=3,
    show_default=True,
    type=click.IntRange(1, 9),
    help="Members of each cluster.",
)
@json_option
@plot_option
def load(  # noqa: PLR0913 - one for each option
    *, call: str, flavor: str, clients: int, seconds: float, requests: int | None, repeats: int,
    nodes: int, json_file: Path | None, plot_file: Path | None,
) -> None:  # fmt: skip
    """Puts or gets per second and their latency, of one client and of many, servers side by side.

    The load generator is h2load (package nghttp2-client). Each of its clients is a connection that
    sends the next call when the last one is answered. All put, or get, the same key: h2load can
    send one body only. Whether the calls really happened is checked by the revision, or by the
    length of the answers.
    """
    plan = Plan(
        call=call,
        flavors=flavors_of(flavor),
        clients=[1] if clients == 1 else [1, clients],
        seconds=seconds, requests=requests, repeats=repeats, nodes=nodes,
    )  # fmt: skip
    run(_load(plan, Outputs(json_file, plot_file)))


async def _load(plan: Plan, outputs: Outputs) -> int:
    total = len(plan.flavors) * len(plan.clients) * plan.repeats
    with work_folder(None) as folder, shown(total, run_line) as show:
        async with evidence(folder):
            runs = await measure(plan, folder.path, show)
        facts = machine(folder.path)
    print_load(console, plan, runs, facts)
    if outputs.json is not None:
        save_json(outputs.json, load_document(plan, runs, facts))
    if outputs.plot is not None:
        from kvbench import plot  # noqa: PLC0415 - matplotlib is an extra

        plot.save(plot.load_figure(plan, runs, facts), outputs.plot)
    return OK if all(run.honest for run in runs) else BROKEN


def _counts(_context: click.Context, _option: click.Parameter, given: str) -> list[int]:
    counts = [part.strip() for part in given.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= 100_000 for part in counts):
        raise click.BadParameter(f"'{given}': give numbers from 1 to 100000, such as 1,100")
    return [int(part) for part in counts]


@main.command(epilog=_WATCH_EXAMPLES, short_help="What watchers cost, servers side by side.")
@click.option("--flavor", default="kvserver,etcd", show_default=True, help="Servers, in turn.")
@click.option(
    "--watchers", default="1,100,10000", show_default=True, callback=_counts,
    help="How many watch, one case after the other.",
)  # fmt: skip
@click.option(
    "--puts", default=1000, show_default=True, type=click.IntRange(10, 1_000_000),
    help="Of a case; fewer where they would make more than 100000 events.",
)  # fmt: skip
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 9))
@json_option
def watch(
    *, flavor: str, watchers: list[int], puts: int, repeats: int, nodes: int, json_file: Path | None
) -> None:
    """Processor time of the active per put and per event, while nobody, few and many watch.

    Once they watch keys that are not put, once all of them the one that is. Every event is checked.
    """
    plan = watching.Plan(flavors_of(flavor), watchers, puts, repeats, nodes)
    run(_watch(plan, json_file))


async def _watch(plan: watching.Plan, json_file: Path | None) -> int:
    total = len(plan.flavors) * len(plan.cases) * plan.repeats
    with work_folder(None) as folder, shown(total, watching.run_line) as show:
        async with evidence(folder):
            runs = await watching.measure(plan, folder.path, show)
        facts = machine(folder.path)
    watching.print_watch(console, plan, runs, facts)
    if json_file is not None:
        save_json(json_file, watching.watch_document(plan, runs, facts))
    return OK if all(run.complete for run in runs) else BROKEN


@main.command(epilog=_DEMO_EXAMPLES, short_help="A cluster to look at, a failover shown.")
@click.option(
    "--flavor",
    default="kvserver",
    show_default=True,
    type=click.Choice(list(FLAVORS)),
    help="Which server.",
)
def demo(*, flavor: str) -> None:
    """Three nodes on loopback: a failover shown, then the cluster is yours until Ctrl-C.

    Clients' ports are 2379, 22379 and 32379 where those are free. Data and logs are in ./out/demo,
    emptied at the start. Without a terminal it ends after the demonstration.
    """
    run(_demo(FLAVORS[flavor]))


async def _demo(flavor: Flavor) -> int:
    verdict = await run_demo(DEMO_FOLDER, flavor, console)
    return BROKEN if verdict.broken else OK


if __name__ == "__main__":
    main()
