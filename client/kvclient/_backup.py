"""The command of `kv` that saves backups."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvclient import _render
from kvclient._command import Declined, ask_one, examples, options, run, settings

if TYPE_CHECKING:
    from kvclient import AsyncClient

Progress = Callable[[int, int], object]


@click.group()
def snapshot() -> None:
    """Back up the whole state."""


@snapshot.command(
    "save",
    epilog=examples(
        "kv snapshot save backup.db", "kv --endpoints 10.0.0.2:2379 snapshot save backup.db"
    ),
)
@options(root=False)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def save(file: Path) -> None:
    """Save the whole state, old revisions too, into FILE, with a sha256 behind it.

    It comes from the active, so every acknowledged write is in it; with a single endpoint from
    that node: a standby may lack the newest ones. Nodes serve on meanwhile. FILE appears, or is
    replaced, when all has arrived and the hash is right. `kvserver snapshot-status FILE` looks at
    it, `kvserver restore FILE` makes a new cluster of it.

    JSON: {"file", "endpoint", "size_bytes", "sha256"}.
    """
    from kvclient import _snapshot  # noqa: PLC0415 - loads gRPC

    endpoint = run(_whom)
    with _progress() as told:
        try:
            saved = ask_one(lambda: _snapshot.save_snapshot(endpoint, file, on_progress=told))
        except OSError as error:
            raise Declined(f"{file} can't be written: {error.strerror or error}") from error
    if settings().json:
        _render.print_json(
            {
                "file": str(file), "endpoint": saved.endpoint, "size_bytes": saved.size_bytes,
                "sha256": saved.sha256.hex(),
            }
        )  # fmt: skip
    else:
        click.echo(f"Snapshot of {saved.endpoint} saved at {file}: {saved.size_bytes} bytes")


async def _whom(client: "AsyncClient") -> str:
    """The only endpoint there is, else the active."""
    from kvclient import _survey  # noqa: PLC0415 - loads gRPC

    given = client.endpoints
    if len(given) == 1:
        return given[0]
    for answer in await _survey.statuses(client):
        if answer.word is not None and answer.word.active:
            return answer.endpoint
    raise Declined("no node is active: name one with --endpoints to save what that one holds")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the terminal, if there is one."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    import rich.console  # noqa: PLC0415 - only for people
    import rich.progress as bars  # noqa: PLC0415

    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn(),
        bars.TransferSpeedColumn(), bars.TimeRemainingColumn(),
    )  # fmt: skip
    with bars.Progress(
        *columns, console=rich.console.Console(stderr=True), transient=True
    ) as shown:
        task = shown.add_task("the node makes a copy", total=None)
        yield lambda done, total: shown.update(
            task, completed=done, total=total, description="receiving"
        )
