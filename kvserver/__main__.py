"""The command `kvserver`: options to Config, signals to stop, errors to exit codes."""

import asyncio
import faulthandler
import os
import signal
import sys
import time
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import uvloop

from kvserver import __version__, recover, restore
from kvserver.clock import SystemClock
from kvserver.config import Config, flag_name
from kvserver.errors import DiskError, ExitCode, LostDiskError, NodeError, StoppedError
from kvserver.node import Node
from kvserver.storage.open_files import raise_limit
from kvserver.telemetry import Event, drain_log, start_logging

_RESTARTS: Final = "_KVSERVER_RESTARTS"
"""How often in a row this process has started over; kept across exec."""

RESTART_DELAY_S_MAX: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0

FILES_ADVISED_MIN: Final = 4096
"""For clients, peers and the node itself."""

_KINDS: Final = {bool: "true or false", int: "a whole number", str: "a string"}
"""What the values of a TOML file are called."""


def _load_file(context: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Options from a TOML file become the defaults of the command line."""
    if path is None:
        return
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"--config {path}: {error}") from error
    known = {field.name.replace("_", "-"): field for field in fields(Config)}
    for key, value in table.items():
        if key not in known:
            raise click.UsageError(f"--config {path}: there is no option '{key}'")
        kind = type(known[key].default)
        if type(value) is not kind:
            raise click.UsageError(f"--config {path}: '{key}' must be {_KINDS[kind]}")
    context.default_map = {known[key].name: value for key, value in table.items()}


def _options() -> list[click.Option]:
    options: list[click.Option] = [
        click.Option(
            ["--config"], type=click.Path(path_type=Path, dir_okay=False), is_eager=True,
            expose_value=False, callback=_load_file, help="TOML file with any of these options.",
        )
    ]  # fmt: skip
    for field in fields(Config):
        assert field.default is not MISSING
        flag = flag_name(field.name)
        names = [f"{flag}/--no-{flag[2:]}"] if field.default is True else [flag]
        options.append(
            click.Option(
                [*names, field.name], default=field.default, help=field.metadata["help"],
                show_default=field.default not in ("", False), show_envvar=False,
                is_flag=isinstance(field.default, bool),
                type=None if isinstance(field.default, bool) else type(field.default),
            )
        )  # fmt: skip
    return options


_HELP = """Run one member of an active-passive replicated key-value server.

With no --initial-cluster it is a complete single-node server on loopback. Every option can also be
given in the environment (--data-dir as KV_DATA_DIR) or in a TOML file (--config); the command line
wins, then the environment, then the file.

\b
Examples:
  kvserver
  kvserver --name n1 --data-dir /var/lib/kv \\
      --listen-peer 127.0.0.1:2380 --listen-client 127.0.0.1:2379 \\
      --initial-cluster n1=127.0.0.1:2380,n2=127.0.0.1:22380,n3=127.0.0.1:32380

\b
Exit codes:
  0 stopped on request          4 a listen address can't be bound
  1 crashed (see the log)       5 disk failed (with --no-restart)
  2 wrong option                6 a thread was stuck
  3 data directory unusable     7 the log is of a newer version

Ended by SIGABRT, SIGBUS or SIGSEGV (134, 135, 139 in a shell) it most likely met damage in the
mapped data file, such as one that was cut off while it ran: treat that as exit code 3.
"""


@click.pass_context
def _serve(context: click.Context, /, **given: Any) -> None:
    if context.invoked_subcommand is None:
        sys.exit(serve(Config(**given)))


command = click.Group(
    "kvserver", params=[*_options()], callback=_serve, help=_HELP, invoke_without_command=True,
    commands={
        "recover": recover.command,
        "restore": restore.restore_command,
        "snapshot-status": restore.status_command,
    },
    subcommand_metavar="[recover|restore|snapshot-status ...]",
    context_settings={"auto_envvar_prefix": "KV", "max_content_width": 100},
)  # fmt: skip
command = click.version_option(__version__, prog_name="kvserver")(command)


def serve(config: Config) -> ExitCode:
    """Run a node to its end, starting over after a failed disk write if the config says so."""
    try:
        config.check()
    except NodeError as error:
        print(f"kvserver: {error}", file=sys.stderr)
        return error.exit_code
    event = start_logging(config.log_level)
    try:
        return _serve_and_say(config, event)
    finally:
        drain_log()


def _serve_and_say(config: Config, event: Event) -> ExitCode:
    _raise_limit(event)
    started = SystemClock().monotonic()
    try:
        return uvloop.run(_run(config, event))
    except StoppedError:
        return ExitCode.OK
    except LostDiskError as error:
        event("node.restart", reason=f"{error}: it joins as a new member")
        _replace_process()
    except NodeError as error:
        event("node.failed", reason=str(error), exit_code=int(error.exit_code))
        if isinstance(error, DiskError) and config.restart:
            _start_over(event, ran_s=SystemClock().monotonic() - started)
        return error.exit_code


async def _run(config: Config, event: Event) -> ExitCode:
    node = Node(config, SystemClock(), event)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.stop)
    return await node.run()


def _raise_limit(event: Event) -> None:
    files = raise_limit()
    if files < FILES_ADVISED_MIN:
        event(
            "config.advice", option="ulimit -Hn", value=files,
            reason=f"every client connection takes a file: allow {2 * FILES_ADVISED_MIN} "
            "(LimitNOFILE of systemd)",
        )  # fmt: skip


def _start_over(event: Event, *, ran_s: float) -> None:
    """Replace this process by a new one that knows only what is on disk."""
    before = 0 if ran_s > HEALTHY_AFTER_S else int(os.environ.get(_RESTARTS, "0"))
    delay = min(2.0 ** min(before, 10), RESTART_DELAY_S_MAX)  # it may fail for days
    event("node.restart", in_s=delay, reason="starting over from what is on disk")
    for number in (signal.SIGTERM, signal.SIGINT):  # nothing is open: it may stop at any moment
        signal.signal(number, lambda *_: sys.exit(ExitCode.OK))
    time.sleep(delay)
    os.environ[_RESTARTS] = str(before + 1)
    _replace_process()


def _replace_process() -> NoReturn:
    drain_log()
    # as it was started: with -m instead, a kvserver in the working directory would take its place
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def main() -> None:
    """Entry point."""
    faulthandler.enable()  # a damaged file that is mapped can end the process by a signal
    command()


if __name__ == "__main__":
    main()
