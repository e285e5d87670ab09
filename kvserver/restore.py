"""`kvserver restore`: a snapshot becomes the data directory of one member of a new cluster.

Every member is restored from the same file with the same --initial-cluster and token, so all begin
with the same state and the same log: one entry, behind all that the snapshot holds, that names the
new members. The ids of cluster and members follow from these options and from the snapshot: nobody
of the old cluster is believed, and whoever was restored from another file is not either. Each
directory has an incarnation of its own; the cluster is born when all have met.

All is made in a folder beside, which becomes the data directory at the end by being renamed.
"""

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from kvpb import raft_pb2
from kvserver.config import Config
from kvserver.errors import DataDirError, NodeError
from kvserver.mvcc.history import compacted_revision
from kvserver.mvcc.kepthash import KeptHash
from kvserver.mvcc.statehash import StateHash
from kvserver.mvcc.store import current_revision
from kvserver.pipeline.applier import Applier, feature_level_of
from kvserver.pipeline.features import KEPT_HASH_LEVEL
from kvserver.pipeline.roster import Roster
from kvserver.raft.identity import ClusterPlan, begin_member, load_plan, plan_cluster
from kvserver.storage.contract import Storage
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import ALARM, CLUSTER, KV, MEMBER
from kvserver.storage.snapshot_file import (
    Progress,
    SnapshotFile,
    opened_snapshot,
    read_snapshot,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])

_RESTORE_HELP: Final = """Make the data directory of one member of a new cluster out of a snapshot.

For when all members are lost, or to take the state back to what it was: run it once for each
member of the new cluster, with the same file, the same --initial-cluster and the same token, then
start all of them with the same options. The new cluster goes on from the revision of the snapshot;
leases keep the time they had left. Members of the old cluster are refused.

All of the file is checked before anything is written. A data directory that exists is refused.

\b
Example, of one of three:
  kvserver restore backup.db --name n1 --data-dir /var/lib/kv \\
      --initial-cluster n1=10.0.0.1:2380,n2=10.0.0.2:2380,n3=10.0.0.3:2380
"""

_STATUS_HELP: Final = """Check a snapshot and tell what it holds.

Prints hash, revision, number of keys and size, as `etcdctl snapshot status` does. The hash is that
of all that is kept as of the revision: the same as `kv hash --rev` of the cluster it is of, until
that is compacted again.

JSON: {"hash", "revision", "totalKey", "totalSize", "compactRevision", "clusterId", "members"}.
"""


@dataclass(frozen=True)
class Content:
    """What a snapshot holds."""

    hash: int
    """As HashKV of its cluster at the revision."""
    revision: int
    compact_revision: int
    """-1 before the first compaction."""
    keys: int
    plan: ClusterPlan
    """The cluster it is of."""


def content_of(storage: Storage) -> Content:
    """Read what a checked snapshot holds."""
    with storage.read() as txn:
        revision, compacted = current_revision(txn), compacted_revision(txn)
        plan, keys = load_plan(txn), sum(1 for _ in txn.keys(KV))
        kept = feature_level_of(txn) >= KEPT_HASH_LEVEL
    hashed = (KeptHash if kept else StateHash)(storage, revision)
    while not hashed.step():
        pass
    return Content(hashed.value, revision, compacted, keys, plan)


def become_member(
    storage: LmdbStorage, name: str, plan: ClusterPlan, incarnation: int
) -> raft_pb2.Identity:
    """Make a checked copy of a snapshot the storage of a member that was never started.

    Args:
        storage: the copy, which nobody else uses.
        name: of the member.
        plan: the new cluster.
        incarnation: 64 random bits.
    """
    storage.forget_node()  # of a file that was copied by hand
    applier = Applier(storage, Roster(), on_applied=lambda *_: None)
    with storage.read() as txn:
        before, term = applier.applied_of(txn)
    index = before + 1
    applier.apply(index, term, None)  # the entry that names the new members
    applier.stage()
    for database in (CLUSTER, MEMBER, ALARM):  # of members that are not these
        storage.writer().clear(database)
    return begin_member(storage, name, plan, incarnation, index=index, term=term)


def plan_restored(config: Config, file: SnapshotFile) -> ClusterPlan:
    """The new cluster: other ids than those of the old one, the same for all that are restored."""
    token = f"{config.initial_cluster_token} restored from {file.sha256.hex()}"
    return plan_cluster(config.members, token)


def _restore(snapshot: Path, config: Config, *, check_hash: bool) -> None:
    config.check()
    path = config.data_path
    if path.exists():
        raise DataDirError(
            f"--data-dir {path} is there already: restore makes a new one; name another, or move "
            "it away"
        )
    with _new_data_dir(path) as folder:
        with (folder / "data.mdb").open("wb") as copy, _bar("copying") as told:
            file = read_snapshot(snapshot, check_hash=check_hash, on_progress=told, copy=copy)
            copy.flush()
            os.fsync(copy.fileno())
        plan = plan_restored(config, file)
        with (
            _bar("checking rows") as told,
            opened_snapshot(folder, name=snapshot, read_only=False, on_progress=told) as storage,
        ):
            with storage.read() as txn:
                revision = current_revision(txn)
            identity = become_member(storage, config.name, plan, secrets.randbits(64))
    click.echo(
        f"{path} is member '{config.name}' ({identity.member_id:x}) of the new cluster "
        f"{plan.cluster_id:x} at revision {revision}\n"
        "restore the other members from the same file, then start all with these options"
        if len(plan.members) > 1
        else f"{path} is the new cluster {plan.cluster_id:x} at revision {revision}; start it"
    )


@contextmanager
def _new_data_dir(path: Path) -> Iterator[Path]:
    """A folder for an environment; at the end it is in a data directory at `path`, all at once."""
    beside = path.with_name(path.name + ".restoring")
    with DataDir(beside) as held:
        try:
            for left in (beside / "copy-in", *beside.glob("env-[0-9]*")):  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            folder = beside / "copy-in"
            folder.mkdir(mode=0o700)
            yield folder
            held.switch(held.new_environment(folder).name)
            beside.rename(path)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise DataDirError(f"{beside} can't be written: {error.strerror}") from error
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _status(snapshot: Path, *, check_hash: bool, output: str) -> None:
    with _bar("reading") as told:
        file = read_snapshot(snapshot, check_hash=check_hash, on_progress=told)
    with (
        _bar("checking rows") as told,
        opened_snapshot(snapshot, name=snapshot, read_only=True, on_progress=told) as storage,
    ):
        found = content_of(storage)
    if output == "json":
        told_json = {
            "hash": found.hash, "revision": found.revision, "totalKey": found.keys,
            "totalSize": file.size_bytes, "compactRevision": found.compact_revision,
            "clusterId": f"{found.plan.cluster_id:x}",
            "members": sorted(each.name for each in found.plan.members.values()),
        }  # fmt: skip
        click.echo(json.dumps(told_json))
    else:
        size = _size(file.size_bytes)
        click.echo(f"{found.hash:x}, {found.revision}, {found.keys}, {size}")


def _size(count: int) -> str:
    """In etcdctl's words: 20 kB, 2.1 MB."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}" if size < 10 and unit != "B" else f"{size:.0f} {unit}"


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """Progress on the terminal, if there is one."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    import rich.console  # noqa: PLC0415 - only for people
    import rich.progress as bars  # noqa: PLC0415

    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(),
        bars.TextColumn("{task.completed:,.0f}"), bars.TimeElapsedColumn(),
    )  # fmt: skip
    console = rich.console.Console(stderr=True)
    with bars.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total or None)


def _ending(name: str, run: Callable[[], None]) -> None:
    try:
        run()
    except NodeError as error:
        print(f"kvserver {name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _of_snapshots(command: _Command) -> _Command:
    """What both commands are told."""
    for decorate in (
        click.option(
            "--skip-hash-check",
            is_flag=True,
            help="Take a file without the sha256 at its end: a database copied by hand.",
        ),
        click.argument("snapshot", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


@click.command(
    "restore",
    help=_RESTORE_HELP,
    short_help="Make a member of a new cluster out of a snapshot.",
    context_settings={"max_content_width": 100},
)
@_of_snapshots
@click.option(
    "--name", envvar="KV_NAME", default="default", show_default=True, help="Of the member."
)
@click.option("--data-dir", envvar="KV_DATA_DIR", default="", help="To make. [default: <name>.kv]")
@click.option(
    "--initial-cluster",
    envvar="KV_INITIAL_CLUSTER",
    default="",
    help="All members of the new cluster: name=host:port,... [default: this one alone]",
)
@click.option(
    "--initial-cluster-token",
    envvar="KV_INITIAL_CLUSTER_TOKEN",
    default="kvserver",
    show_default=True,
    help="Another one for each restore of the same snapshot.",
)
@click.option(
    "--listen-peer",
    envvar="KV_LISTEN_PEER",
    default="127.0.0.1:2380",
    show_default=True,
    help="Of a member that is alone.",
)
def restore_command(snapshot: Path, *, skip_hash_check: bool, **options: Any) -> None:
    """`kvserver restore`."""
    config = Config(**options, allow_insecure=True)
    _ending("restore", lambda: _restore(snapshot, config, check_hash=not skip_hash_check))


@click.command(
    "snapshot-status",
    help=_STATUS_HELP,
    short_help="Check a snapshot and tell what it holds.",
    context_settings={"max_content_width": 100},
)
@_of_snapshots
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text")
def status_command(snapshot: Path, *, skip_hash_check: bool, output: str) -> None:
    """`kvserver snapshot-status`."""
    _ending(
        "snapshot-status",
        lambda: _status(snapshot, check_hash=not skip_hash_check, output=output),
    )
