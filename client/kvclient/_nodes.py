"""The commands of `kv` that look after the nodes: where they stand, who is a member, who leads."""

import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import click

from kvclient import _render
from kvclient._command import EXIT_DECLINED, EXIT_UNREACHABLE, examples, options, run, settings

if TYPE_CHECKING:
    from kvclient import AsyncClient, Member, MemberAdded


@click.command(
    epilog=examples(
        "kv status",
        """kv status -o json | jq -r '.nodes[] | select(.lag > 100).name'""",
    )
)
@options(root=False)
def status() -> None:
    """Show where every node stands: those of --endpoints and the members that they know.

    LAG counts log entries behind the furthest node. Ends with 3 if no node answers at all.

    JSON: {"nodes"}, with {"endpoint", "name", "id", "role", "errors"} for each node, and
    {"term", "leader", "revision", "index", "applied_index", "lag", "db_size_bytes",
    "db_size_in_use_bytes", "db_size_quota_bytes", "version"} for each that answers. The
    role is active, standby, learner, unverified (it reads its data before it serves),
    disqualified (its data differs from the others') or unreachable.
    """
    from kvclient import _survey  # noqa: PLC0415 - see above

    answers = run(_survey.statuses)
    if settings().json:
        _render.print_json({"nodes": _render.status_json(answers)})
    else:
        _render.print_table(_render.status_rows(answers), _render.STATUS_NUMBERS)
        _render.print_errors(answers)
    if all(answer.word is None for answer in answers):
        click.get_current_context().exit(EXIT_UNREACHABLE)


@click.command("hash", epilog=examples("kv hash", "kv hash -o json | jq -r .verdict"))
@options(root=False)
@click.option("--rev", type=click.IntRange(min=0), default=0, help="As of this revision.")
def hash_(rev: int) -> None:
    """Compare what the nodes hold: the hash of all that each keeps, old revisions too.

    Hashes compare at one revision, and after the same compaction, only: while writes go on, try
    again or name a revision that the nodes still keep. Ends with 0 if all nodes answer and are
    equal, else with 1.

    JSON: {"verdict", "nodes"}, with {"endpoint", "name", "id"} for each node and {"hash",
    "revision", "compact_revision"} or {"error"}. The verdict is equal, different,
    incomparable (other revisions) or incomplete (a node did not answer).
    """
    from kvclient import _survey  # noqa: PLC0415 - see above

    answers = run(lambda client: _survey.hashes(client, rev))
    verdict = _survey.compare(answers)
    if settings().json:
        nodes = [_render.hash_json(answer) for answer in answers]
        _render.print_json({"verdict": verdict.value, "nodes": nodes})
    else:
        _render.print_table(_render.hash_rows(answers), _render.HASH_NUMBERS)
        _render.print_errors(answers)
        click.echo(f"\n{_HASH_SENTENCES[verdict.value]}")
    if verdict is not _survey.Verdict.EQUAL:
        click.get_current_context().exit(EXIT_DECLINED)


_HASH_SENTENCES = {
    "equal": "equal: all nodes hold the same keys and values",
    "different": "different: nodes hold different keys or values at the same revision",
    "incomparable": "not compared: the nodes are at different revisions; try again",
    "incomplete": "not compared: a node gave no hash",
}


@click.group()
def member() -> None:
    """Look at the members of the cluster, and change them."""


_MEMBER = click.argument("member", metavar="NAME|ID")


@member.command("list", epilog=examples("kv member list"))
@options(root=False)
def member_list() -> None:
    """Print the members as the cluster is configured, whether they run or not.

    JSON: {"members"}, with {"id", "name", "client_urls", "peer_urls", "learner"} for each.
    """
    _print_members(run(lambda client: client.members(linearizable=False)))


@member.command(
    "add",
    epilog=examples(
        "kv member add n4 10.0.0.4:2380 --learner",
        "kv member add n4 http://10.0.0.4:2380 --client 10.0.0.4:12379",
    ),
)
@options(root=False)
@click.argument("name")
@click.argument("peer")
@click.option("--learner", is_flag=True, help="Without a vote before `kv member promote`.")
@click.option(
    "--client", metavar="HOST:PORT", help="Where clients will reach it. [default: PEER's port - 1]"
)
def member_add(name: str, peer: str, learner: bool, client: str | None) -> None:
    """Let the cluster expect a member NAME at PEER, and print how to start it.

    PEER is host:port, where the others will reach it. Add it with --learner: it is sent
    the data first, and counts for the quorum only when it is promoted.

    JSON: {"member", "start"}, with the member as `member list` prints it, and the command
    that starts it as a list of words.
    """
    from kvclient import _endpoints, _members  # noqa: PLC0415 - loads gRPC

    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise click.UsageError(f"name {name!r}: use letters, digits, '-', '_' and '.'")
    try:
        peer = _endpoints.parse_address(peer)
        client = _endpoints.parse_address(client) if client else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    async def add(cluster: "AsyncClient") -> "MemberAdded":
        _members.check_new_name(await cluster.members(), name)
        return await cluster.add_member(peer, learner=learner)

    added = run(add)
    start = _members.start_command(added.members, name, peer, client)
    if settings().json:
        _render.print_json({"member": _render.member_json(added.member), "start": start})
        return
    click.echo(f"{name} ({added.member.id:x}) is expected at {peer}; start it there:\n")
    click.echo(f"  {shlex.join(start)}\n")
    if learner:
        click.echo(f"It has no vote yet; when it is in step: kv member promote {name}")


@member.command(
    "remove", epilog=examples("kv member remove n3", "kv member remove 8e9e05c52164694d")
)
@options(root=False)
@_MEMBER
def member_remove(member: str) -> None:
    """Remove a member for ever, whether it runs or not.

    If it is the active, it hands over first. Stop its process afterwards; its data is of no
    use to the cluster any more, and it may only come back as a new member.

    JSON: {"member", "members"}: the one that was removed, and those that remain.
    """
    found, members = _change(member, lambda client, member_id: client.remove_member(member_id))
    _print_change(found, members, "is removed; stop its process and delete its data directory")


@member.command("update", epilog=examples("kv member update n3 10.0.0.9:2380"))
@options(root=False)
@_MEMBER
@click.argument("peer")
def member_update(member: str, peer: str) -> None:
    """Tell the others that a member will be reached at PEER, as host:port.

    Then restart it with --listen-peer set to that address.

    JSON: {"member", "members"}: the one that was changed as it is now, and all.
    """
    found, members = _change(
        member, lambda client, member_id: client.update_member(member_id, peer)
    )
    _print_change(found, members, f"is expected at {peer}; restart it with --listen-peer {peer}")


@member.command("promote", epilog=examples("kv member promote n4"))
@options(root=False)
@_MEMBER
def member_promote(member: str) -> None:
    """Give a learner its vote; refused while it is not in step yet.

    JSON: {"member", "members"}: the one that was promoted as it is now, and all.
    """
    found, members = _change(member, lambda client, member_id: client.promote_member(member_id))
    _print_change(found, members, "votes from now on")


def _change(
    wanted: str,
    change: "Callable[[AsyncClient, int], Awaitable[tuple[Member, ...]]]",
) -> "tuple[Member, tuple[Member, ...]]":
    """Find a member and change it; the member, as it is afterwards if it is still one, and all."""
    from kvclient import _members  # noqa: PLC0415 - loads gRPC

    async def ask(client: "AsyncClient") -> "tuple[Member, tuple[Member, ...]]":
        found = _members.find(await client.members(), wanted)
        now = await change(client, found.id)
        return next((each for each in now if each.id == found.id), found), now

    return run(ask)


def _print_change(found: "Member", members: "Sequence[Member]", sentence: str) -> None:
    from kvclient import _members  # noqa: PLC0415 - loads gRPC

    if settings().json:
        all_json = [_render.member_json(each) for each in members]
        _render.print_json({"member": _render.member_json(found), "members": all_json})
    else:
        click.echo(f"{_members.called(found)} {sentence}")


def _print_members(members: "Sequence[Member]") -> None:
    if settings().json:
        _render.print_json({"members": [_render.member_json(each) for each in members]})
    else:
        _render.print_table(_render.member_rows(members))


@click.command("move-leader", epilog=examples("kv move-leader", "kv move-leader n2"))
@options(root=False)
@click.argument("member", metavar="[NAME|ID]", required=False)
def move_leader(member: str | None) -> None:
    """Make another member the active, by default the standby that has most of the log.

    The active finishes what it has begun, and hands over; writes go on within milliseconds.

    JSON: {"active"}: the new one, as `member list` prints it.
    """
    from kvclient import _members, _survey  # noqa: PLC0415 - loads gRPC

    async def move(client: "AsyncClient") -> "Member":
        if member is None:
            target = _members.best_standby(await _survey.statuses(client))
        else:
            target = _members.find(await client.members(linearizable=False), member)
        await client.move_leader(target.id)
        return target

    target = run(move)
    if settings().json:
        _render.print_json({"active": _render.member_json(target)})
    else:
        click.echo(f"{_members.called(target)} is the active now")
