"""What `kvbench failover` shows and saves."""

from collections.abc import Mapping
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from kvbench.failover import Options, Result, Round
from kvbench.report import (
    distributions_table,
    facts,
    histogram_lines,
    ms,
    print_table,
    print_verdict,
    shown_version,
)

LEGEND = """\
window      longest time without an acknowledgement that the client saw, with the time
            from the last one before the fault, which is long on a machine that is busy otherwise
recovery    fault to the first acknowledgement by the successor = the sum of the next four
detect      fault to the first standby standing for election
elect       until the successor was elected
activate    until it served (etcd does not log it)
write       until the client had its first acknowledgement
unknown     writes left with unknown outcome
refused     writes told that nothing was done
in step     healing the node until it had caught up
reads       answers of the old active to reads of the newest key as it went on; declined: none"""


def round_line(done: Round) -> str:
    """One round in a line."""
    return (
        f"round {done.number}: {done.victim} -> {done.successor or '?'}, "
        f"window {ms(done.parts.window)} ms, recovery {ms(done.parts.recovery)} ms, "
        f"back in step after {done.back_in_step_s:.1f} s"
    )


def print_failover(
    console: Console, options: Options, result: Result, machine: Mapping[str, object]
) -> None:
    """Everything about a run, for people."""
    console.print(
        f"\n[bold]{options.flavor.name} {shown_version(result.server_version)}[/], "
        f"{options.nodes} nodes, "
        f"{options.rounds} rounds of {options.fault.value} on the active, seed {options.seed}, "
        f"one client writing one key after the other (timeout {options.put_timeout_s:g} s)"
    )
    console.print(facts(machine), style="dim")
    print_table(console, rounds_table(result))
    console.print(LEGEND, style="dim", highlight=False)
    overall = distributions_table("Over all rounds, by nearest rank", result.distributions())
    print_table(console, overall)
    console.print("\nUnavailability window")
    for line in histogram_lines([one.parts.window for one in result.rounds]):
        console.print(line)
    console.print()
    print_verdict(console, result.verdict)


def rounds_table(result: Result) -> Table:
    """One row for each round."""
    table = Table(
        title="Rounds (ms)", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    columns = (
        "#", "fault on", "window", "recovery", "detect", "elect", "activate",
        "write", "unknown", "refused", "in step s",
    )  # fmt: skip
    stale_probes = any(one.reads or one.declined for one in result.rounds)
    for column in (*columns, *(["reads", "declined"] if stale_probes else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for one in result.rounds:
        each = one.parts
        cells = [
            str(one.number), f"{one.victim} -> {one.successor or '?'}", ms(each.window),
            ms(each.recovery), ms(each.detection), ms(each.election), ms(each.activation),
            ms(each.first_write), str(one.unknown), str(one.refused), f"{one.back_in_step_s:.2f}",
        ]  # fmt: skip
        if stale_probes:
            cells += [str(one.reads), str(sum(one.declined.values()))]
        table.add_row(*cells)
    return table


def failover_document(
    options: Options, result: Result, machine: Mapping[str, object]
) -> dict[str, object]:
    """Everything about a run, for machines; times in seconds."""
    return {
        "benchmark": "failover",
        "machine": machine,
        "options": {
            "flavor": options.flavor.name,
            "fault": options.fault.value,
            "rounds": options.rounds,
            "nodes": options.nodes,
            "seed": options.seed,
            "put_timeout_s": options.put_timeout_s,
        },
        "server_version": result.server_version,
        "rounds": [asdict(one) for one in result.rounds],
        "distributions": {
            name: asdict(each) if each else None for name, each in result.distributions().items()
        },
        "verdict": asdict(result.verdict),
        "broken": result.verdict.broken,
    }
