"""`kvserver recover`: one surviving data directory becomes a new cluster of one.

For when a majority is gone for good. All that is in the survivor's log is applied, the uncommitted
end too: it may have been acknowledged. The log then begins anew with one entry that names the new
member alone. Cluster and member get other ids, so nobody of the old cluster is believed any more.
"""

import secrets
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import click

from kvpb import raft_pb2
from kvserver.config import parse_address
from kvserver.errors import DataDirError, NodeError, UsageError
from kvserver.mvcc.store import current_revision
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import REGULAR, Entry, MemberId
from kvserver.raft.identity import check_name, digest, load_identity, store_identity
from kvserver.raft.journal import DurableJournal, begin_log, store_configuration
from kvserver.raft.membership import Configuration
from kvserver.storage.check import check_all
from kvserver.storage.contract import Storage
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import ALARM, CLUSTER, MEMBER
from kvserver.storage.structure import verify_structure

_HELP: Final = """Make a new cluster of one out of the data directory of a stopped node.

Only for when a majority of the members is lost for good. Writes that only the lost members have
acknowledged are gone. Of several survivors take the one whose last index has the highest term,
then the highest number: answer no, and it only tells.

Afterwards start the node with the same options as before and add other members to it, with empty
data directories. Members of the old cluster are refused: never start them again beside the new one.

\b
Example:
  kvserver recover --data-dir /var/lib/kv --name n1
"""


@dataclass(frozen=True)
class Survivor:
    """What a data directory holds."""

    identity: raft_pb2.Identity
    configuration: Configuration
    revision: int
    applied_index: int
    commit_index: int
    last_index: int
    last_term: int
    term: int

    def describe(self) -> str:
        """For whoever decides."""
        members = ", ".join(each.name for each in self.configuration.members.values())
        return (
            f"member '{self.identity.name}' of cluster {self.identity.cluster_id:x} ({members})\n"
            f"revision {self.revision}, applied index {self.applied_index}, "
            f"last index {self.last_index} of term {self.last_term}, term {self.term}\n"
            f"{self.last_index - self.commit_index} entries at the end are not known to be "
            "committed here: they will be\n"
            "writes that were acknowledged by the lost members only may be missing"
        )


def inspect(storage: Storage, name: str) -> Survivor:
    """Read all that a directory holds.

    Raises:
        DataDirError: nothing can be recovered from it.
    """
    with storage.read() as txn:
        identity = load_identity(txn)
    if identity is None or not identity.established:
        raise DataDirError("this directory was never part of a running cluster; start it instead")
    check_name(identity, name)
    for _ in chain(check_all(storage), storage.log.check()):
        pass
    applier = _applier(storage)
    journal = DurableJournal(storage, applier.applied_index)
    with storage.read() as txn:
        revision = current_revision(txn)
    return Survivor(
        identity, journal.configuration, revision, applier.applied_index, journal.commit_index,
        journal.last_index, journal.last_term, journal.term,
    )  # fmt: skip


def recover(
    storage: Storage, survivor: Survivor, *, peer_address: str, random: int
) -> raft_pb2.Identity:
    """Make it a cluster of one, in one commit.

    Args:
        storage: of the survivor, which nobody else uses.
        survivor: what `inspect` has read.
        peer_address: of the new member; empty to keep that of the old one.
        random: 64 bits, never used before.

    Returns:
        Who it is from now on.
    """
    applier = _applier(storage)
    for index in range(survivor.applied_index + 1, survivor.last_index + 1):
        payload, _, term = storage.log.read(index)
        applier.apply(index, term, payload[1:] if payload[:1] == REGULAR else None)
    index = survivor.last_index + 1
    applier.apply(index, survivor.term, None)  # the entry that is made here
    applier.stage()
    old = survivor.identity
    cluster_id = digest("recovered", f"{old.cluster_id:x}", f"{random:x}")
    member_id = MemberId(digest(str(cluster_id), old.name, f"{random:x}"))
    before = survivor.configuration.members.get(MemberId(old.member_id))
    address = peer_address or (before.peer_address if before is not None else "")
    if not address:
        raise UsageError("this node was removed from its cluster: name its address, --listen-peer")
    member = raft_pb2.Member(
        id=member_id, name=old.name, peer_address=address, incarnation=random
    )  # fmt: skip
    identity = raft_pb2.Identity(
        cluster_id=cluster_id, member_id=member_id, name=old.name, incarnation=random,
        pins={member_id: random}, established=True, recovered=True,
    )  # fmt: skip
    configuration = Configuration(index, cluster_id, {member_id: member})
    writer = storage.writer()
    for database in (CLUSTER, MEMBER, ALARM):
        writer.clear(database)
    store_identity(storage, identity)
    store_configuration(writer, configuration)
    first = Entry(configuration.payload(), index, survivor.term)
    begin_log(storage, raft_pb2.HardState(term=survivor.term, commit_index=index), first)
    storage.commit(durable=True)
    return identity


def _applier(storage: Storage) -> Applier:
    return Applier(storage, Roster(), on_applied=lambda *_: None)


def _run(*, data_dir: Path | None, name: str, listen_peer: str, yes: bool) -> None:
    path = data_dir or Path(f"{name}.kv")
    if listen_peer:
        parse_address("--listen-peer", listen_peer)
    if not (path / "CURRENT").exists():
        raise DataDirError(f"--data-dir {path} is no data directory of kvserver")
    with DataDir(path) as held:
        verify_structure(held.environment() / "data.mdb")
        storage = LmdbStorage(held.environment())
        try:
            survivor = inspect(storage, name)
            click.echo(survivor.describe())
            if not yes:
                if not sys.stdin.isatty():
                    raise UsageError("there is no terminal to ask on: add --yes if you are sure")
                click.confirm("Make it a new cluster of one?", abort=True)
            identity = recover(
                storage, survivor, peer_address=listen_peer, random=secrets.randbits(64)
            )
        finally:
            storage.close()
    click.echo(
        f"it is member {identity.member_id:x}, alone in the new cluster {identity.cluster_id:x}: "
        "start it with the same options as before, and add others with empty data directories"
    )


@click.command(
    help=_HELP,
    short_help="Make a new cluster of one surviving data directory.",
    context_settings={"max_content_width": 100},
)
@click.option(
    "--data-dir", envvar="KV_DATA_DIR", type=click.Path(path_type=Path, file_okay=False),
    help="Of the survivor. [default: <name>.kv]",
)  # fmt: skip
@click.option("--name", envvar="KV_NAME", required=True, help="Of the survivor.")
@click.option("--listen-peer", default="", help="host:port for other members, if another now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(data_dir: Path | None, name: str, listen_peer: str, *, yes: bool) -> None:
    """`kvserver recover`."""
    try:
        _run(data_dir=data_dir, name=name, listen_peer=listen_peer, yes=yes)
    except NodeError as error:
        print(f"kvserver recover: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
