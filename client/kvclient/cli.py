"""`kv`, the command line: etcdctl's verbs and lines, a status that shows the whole cluster.

Exit codes are a contract, listed in the help; errors are one sentence on stderr. gRPC and rich are
loaded by the commands that need them, so that help and shell completion are quick.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvclient import _alarms, _backup, _nodes, _render
from kvclient._command import EXIT_INTERRUPTED, examples, options, run, settings

if TYPE_CHECKING:
    from kvclient import AsyncClient
    from kvclient._requests import Order, SortBy

_Command = TypeVar("_Command", bound=Callable[..., Any])

_TO_THE_LAST_KEY = b"\0"
_ORDERS: dict[str, "Order"] = {"ASCEND": "ascend", "DESCEND": "descend"}
_SORT_BY: dict[str, "SortBy"] = {
    "KEY": "key",
    "VERSION": "version",
    "CREATE": "create",
    "MODIFY": "mod",
    "VALUE": "value",
}

_EPILOG = """
\b
Examples:
  kv put greeting hello
  kv get greeting
  kv --endpoints 10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379 status

\b
Output:
  --output json prints one object per command, described in the command's help.
  A key or a value is a string if it is valid UTF-8, else {"base64": "..."};
  ids are hexadecimal strings.

\b
Exit codes:
  0  done; also `get` of a key that does not exist, which prints nothing
  1  the server said no; or there is no such member; or `hash` found no equality
  2  the command line is wrong
  3  no node could be reached, or none served in time; nothing was changed
  4  the write may be applied or not: look (get, member list) before repeating it
  130  a `watch` that was ended by Ctrl-C

\b
Shell completion (or zsh_source, fish_source):
  eval "$(_KV_COMPLETE=bash_source kv)"
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@options(root=True)
@click.version_option(package_name="kvserver", message="%(prog)s %(version)s")
def main() -> None:
    """Read and write keys of a kvserver cluster, or of any etcd v3, and look after its nodes.

    The options below may stand before or after the command.
    """
    # Read once, when gRPC is loaded: its remarks on connections are no business of the user's.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@main.command(
    epilog=examples(
        "kv put greeting hello", "kv put config/app - < app.yaml", "kv put -- temperature -12"
    )
)
@options(root=False)
@click.argument("key")
@click.argument("value")
@click.option("--prev-kv", is_flag=True, help="Also print what was there before.")
def put(key: str, value: str, prev_kv: bool) -> None:
    """Set KEY to VALUE; "-" reads the value from standard input, byte by byte.

    A value that begins with a dash stands after "--".

    JSON: {"revision", "prev_kv"}, prev_kv being null or an object as `get` prints it.
    """
    data = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
    result = run(lambda client: client.put(os.fsencode(key), data, prev_kv=prev_kv))
    if settings().json:
        previous = _render.key_value_json(result.prev_kv) if result.prev_kv else None
        _render.print_json({"revision": result.revision, "prev_kv": previous})
        return
    click.echo("OK")
    if result.prev_kv:
        _render.print_key_value(result.prev_kv)


def _span_options(command: _Command) -> _Command:
    for option in (
        click.option("--from-key", is_flag=True, help="All keys from KEY on."),
        click.option("--range-end", metavar="END", help="All keys from KEY up to, without, END."),
        click.option("--prefix", is_flag=True, help='All keys that begin with KEY; "" is all.'),
    ):
        command = option(command)
    return command


def _range_end(prefix: bool, range_end: str | None, from_key: bool) -> bytes | None:
    """End of a range as the client takes it."""
    _at_most_one({"--prefix": prefix, "--range-end": range_end is not None, "--from-key": from_key})
    if from_key:
        return _TO_THE_LAST_KEY
    return None if range_end is None else os.fsencode(range_end)


def _at_most_one(given: dict[str, bool]) -> None:
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise click.UsageError(f"give only one of {' and '.join(names)}")


@main.command(
    epilog=examples(
        "kv get greeting",
        "kv get config/ --prefix --keys-only",
        "kv get a --range-end n --limit 10 --order DESCEND",
        'kv get "" --prefix --count-only',
    )
)
@options(root=False)
@click.argument("key")
@_span_options
@click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many keys.")
@click.option("--rev", type=click.IntRange(min=0), default=0, help="As of this revision.")
@click.option(
    "--order", type=click.Choice(list(_ORDERS), case_sensitive=False), help="Order of the keys."
)
@click.option(
    "--sort-by",
    type=click.Choice(list(_SORT_BY), case_sensitive=False),
    default="KEY",
    show_default=True,
    help="What the order is about.",
)
@click.option("--keys-only", is_flag=True, help="Print no values.")
@click.option("--print-value-only", is_flag=True, help="Print no keys.")
@click.option("--count-only", is_flag=True, help="Print how many keys there are.")
def get(
    *,
    key: str,
    prefix: bool,
    range_end: str | None,
    from_key: bool,
    limit: int,
    rev: int,
    order: str | None,
    sort_by: str,
    keys_only: bool,
    print_value_only: bool,
    count_only: bool,
) -> None:
    """Print KEY and its value, or all keys of a range, a line each.

    A key that does not exist prints nothing and is no error.

    JSON: {"revision", "count", "more", "kvs"}, with {"key", "value", "create_revision",
    "mod_revision", "version", "lease"} for each key.
    """
    end = _range_end(prefix, range_end, from_key)
    _at_most_one(
        {
            "--keys-only": keys_only,
            "--print-value-only": print_value_only,
            "--count-only": count_only,
        }
    )
    result = run(
        lambda client: client.range(
            os.fsencode(key),
            range_end=end,
            prefix=prefix,
            limit=limit,
            order=_ORDERS[order] if order else None,
            sort_by=_SORT_BY[sort_by],
            keys_only=keys_only,
            count_only=count_only,
            revision=rev,
        )
    )
    if settings().json:
        _render.print_json(_render.range_json(result))
        return
    if count_only:
        click.echo(result.count)
    for kv in result.kvs:
        if not print_value_only:
            click.echo(kv.key)
        click.echo(kv.value)


@main.command("del", epilog=examples("kv del greeting", "kv del config/ --prefix --prev-kv"))
@options(root=False)
@click.argument("key")
@_span_options
@click.option("--prev-kv", is_flag=True, help="Also print what was deleted.")
def delete(key: str, prefix: bool, range_end: str | None, from_key: bool, prev_kv: bool) -> None:
    """Delete KEY, or all keys of a range, and print how many there were.

    JSON: {"revision", "deleted", "prev_kvs"}, with keys as `get` prints them.
    """
    end = _range_end(prefix, range_end, from_key)
    result = run(
        lambda client: client.delete(
            os.fsencode(key), range_end=end, prefix=prefix, prev_kv=prev_kv
        )
    )
    if settings().json:
        previous = [_render.key_value_json(kv) for kv in result.prev_kvs]
        _render.print_json(
            {"revision": result.revision, "deleted": result.deleted, "prev_kvs": previous}
        )
        return
    click.echo(result.deleted)
    for kv in result.prev_kvs:
        _render.print_key_value(kv)


@main.command(
    epilog=examples(
        "kv watch greeting", "kv watch config/ --prefix --prev-kv", "kv watch a --rev 7"
    )
)
@options(root=False)
@click.argument("key")
@_span_options
@click.option("--rev", type=click.IntRange(min=0), default=0, help="From this revision on.")
@click.option("--prev-kv", is_flag=True, help="Also print what was there before.")
def watch(
    *, key: str, prefix: bool, range_end: str | None, from_key: bool, rev: int, prev_kv: bool
) -> None:
    """Print every change of KEY, or of a range, as it happens, until Ctrl-C.

    When the active fails it goes on at the next one, with no change missed and none printed
    twice; it gives up when none was found for --timeout. Prints what etcdctl prints: PUT or
    DELETE, the pair before if wanted, the key and the value, a line each.

    JSON, one object per change and line: {"type", "kv", "prev_kv"}, with pairs as `get`
    prints them.
    """
    end = _range_end(prefix, range_end, from_key)

    async def follow(client: "AsyncClient") -> None:
        from kvclient import _watching  # noqa: PLC0415 - loads gRPC

        async for event in _watching.watch(
            client.endpoints, os.fsencode(key), range_end=end, prefix=prefix,
            start_revision=rev, prev_kv=prev_kv, patience_s=client.timeout_s,
        ):  # fmt: skip
            _render.print_event(event, as_json=settings().json)

    try:
        run(follow)
    except KeyboardInterrupt:
        click.get_current_context().exit(EXIT_INTERRUPTED)


for command in (
    _nodes.status, _nodes.hash_, _nodes.member, _nodes.move_leader, _alarms.alarm, _backup.snapshot
):  # fmt: skip
    main.add_command(command)


if __name__ == "__main__":
    main()
