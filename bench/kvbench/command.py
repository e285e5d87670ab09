"""What the commands of `kvbench` share: options, exit codes, progress, how a run ends."""

import asyncio
import contextlib
import importlib.util
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kvbench.cluster import ClusterError
from kvbench.demo import DemoError
from kvbench.failover import RunError
from kvbench.flavor import FLAVORS, Flavor, FlavorError
from kvbench.h2load import H2LoadError
from kvbench.workfolder import FolderInUse, WorkFolder
from kvclient import KvError

OK: Final = 0
BROKEN: Final = 1
INCOMPLETE: Final = 3
INTERRUPTED: Final = 130

WIDTH_WITHOUT_TERMINAL: Final = 120

FAILURES = (
    ClusterError, DemoError, FlavorError, FolderInUse, H2LoadError, KvError, RunError
)  # fmt: skip
_PICTURES: Final = (".png", ".svg", ".pdf")
_Done = TypeVar("_Done")

console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
complaints = Console(stderr=True)


@dataclass(frozen=True)
class Outputs:
    """Files that are wanted besides what is printed."""

    json: Path | None
    plot: Path | None


def _file(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse now what could not be written after all the measuring."""
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}")
    return path


def _picture(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    if path.suffix not in _PICTURES:
        raise click.BadParameter(f"'{path.name}' must end in one of {', '.join(_PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'kvserver[bench]'")
    return _file(context, option, path)


json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_file,
    help="Save everything measured there.",
)
plot_option = click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_picture,
    help="Draw what was measured there: a .png, .svg or .pdf file.",
)


def flavors_of(given: str) -> list[Flavor]:
    """The servers that an option names; refuses unknown ones."""
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in FLAVORS or names.count(name) > 1:
            raise click.BadParameter(
                f"'{name}': name each of {', '.join(FLAVORS)} at most once",
                param_hint="--flavor",
            )
    return [FLAVORS[name] for name in names]


@contextlib.contextmanager
def elapsing(seconds: float) -> Iterator[Callable[[float, str], None]]:
    """A bar for the time, or without a terminal a line for each fault."""
    if not complaints.is_terminal:
        yield lambda at, told: complaints.print(
            f"{at:7.1f} s  {told}", highlight=False, soft_wrap=True
        )
        return
    columns = (TextColumn("{task.description:>16}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=complaints, transient=True) as bar:
        task = bar.add_task("", total=seconds)
        yield lambda at, told: bar.update(task, completed=at, description=told)


@contextlib.asynccontextmanager
async def evidence(folder: WorkFolder) -> AsyncIterator[None]:
    """Keep the folder of a run that failed, and say where it is."""
    try:
        yield
    except FAILURES:
        folder.keep = True
        print(f"data and logs: {folder.path}", file=sys.stderr)
        raise


@contextlib.contextmanager
def shown(total: int, line: Callable[[_Done], str]) -> Iterator[Callable[[_Done], None]]:
    """Show progress on stderr: a bar on a terminal, else one line for each step done."""
    if not complaints.is_terminal:
        yield lambda done: print(line(done), file=sys.stderr, flush=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=complaints, transient=True) as progress:
        bar = progress.add_task("starting", total=total)
        yield lambda done: progress.update(bar, advance=1, description=line(done))


def run(work: Coroutine[None, None, int]) -> NoReturn:
    """Run to the end or to a signal, and exit."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            sys.exit(runner.run(_until_signal(work)))
        except FAILURES as error:
            print(f"kvbench: {error}", file=sys.stderr)
            sys.exit(INCOMPLETE)
        except Exception:  # noqa: BLE001 - 1, Python's own code for it, means a broken promise here
            traceback.print_exc()
            sys.exit(INCOMPLETE)


async def _until_signal(work: Coroutine[None, None, int]) -> int:
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED
