"""Opens the data directory and finds out, or asks, who this node is."""

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvpb.raft_pb2 import Identity, Joining
from kvserver.config import Config
from kvserver.errors import DataDirError, NodeError, StoppedError
from kvserver.pipeline.verifier import VerificationFailedError, damage_behind, verify_folder
from kvserver.raft.identity import (
    ClusterPlan,
    load_identity,
    open_identity,
    open_joining,
    plan_cluster,
    refuse_lost_identity,
    settle_in,
)
from kvserver.raft.joining import ask_to_join
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.telemetry import Event

STARTS_UNVERIFIED_MAX: Final = 2
"""After so many in a row that ended before the state was verified the next one begins with that: as
a rule a node is not ended within seconds of its start, so reading the state may be what ends it."""


@dataclass(frozen=True)
class Opened:
    """A node's disk, and who it is."""

    data_dir: DataDir
    storage: LmdbStorage
    identity: Identity
    plan: ClusterPlan
    """Whom to meet before the cluster is born."""
    verified: bool
    """The whole of the state was read, or there was none."""


async def open_node(config: Config, stop: asyncio.Event, event: Event) -> Opened:
    """Lock and open the data directory; be taken in by a running cluster if that is still to be.

    Args:
        config: checked.
        stop: set when the node is told to stop.
        event: log.

    Raises:
        DataDirError: the directory can't be used, or belongs to another cluster.
        StoppedError: told to stop while it waited.
    """
    data_dir = DataDir(config.data_path)
    try:
        folder = data_dir.environment()
        try:
            return await _open(data_dir, folder, config, stop, event)
        except NodeError:
            raise
        except Exception as error:
            await damage_behind(error, folder, stop)
            raise
    except BaseException:
        data_dir.close()
        raise


async def _open(
    data_dir: DataDir, folder: Path, config: Config, stop: asyncio.Event, event: Event
) -> Opened:
    starts = data_dir.note_start()
    verified = starts >= STARTS_UNVERIFIED_MAX and await _verify_first(folder, starts, stop, event)
    storage = LmdbStorage(folder)
    try:
        refuse_lost_identity(storage)
        await _join(storage, config, stop, event)
        identity, plan = _identify(storage, config, event)
        return Opened(data_dir, storage, identity, plan, verified=verified or storage.fresh)
    except BaseException:
        storage.close()
        raise


async def _verify_first(folder: Path, starts: int, stop: asyncio.Event, event: Event) -> bool:
    """Read the state before anybody trips over it again."""
    event("verify.first", reason=f"the last {starts} starts ended before the data was verified")
    try:
        found = await verify_folder(folder, stop=stop)
    except VerificationFailedError as error:
        event("verify.failed", reason=str(error))
        return False
    if found is None:
        raise StoppedError
    return True


def _identify(storage: LmdbStorage, config: Config, event: Event) -> tuple[Identity, ClusterPlan]:
    """Who this node is: as it was told the first time."""
    wanted = plan_cluster(config.members, config.initial_cluster_token)
    identity, plan = open_identity(storage, config.name, wanted, secrets.randbits(64))
    if not identity.recovered:  # else it has outlived the others
        _refuse_other_cluster(config, plan, wanted)
    if config.initial_cluster and _addresses(wanted) != _addresses(plan):
        event(
            "config.ignored", option="--initial-cluster",
            reason="the data directory belongs to a cluster with other members already",
        )  # fmt: skip
    return identity, plan


def _addresses(plan: ClusterPlan) -> set[tuple[str, str]]:
    return {(each.name, each.peer_address) for each in plan.members.values()}


def _refuse_other_cluster(config: Config, plan: ClusterPlan, wanted: ClusterPlan) -> None:
    """A directory that shares no other member with --initial-cluster is of another cluster."""
    mine = [each for each in plan.members.values() if each.name != config.name]
    theirs = [each for each in wanted.members.values() if each.name != config.name]
    known = {each.name for each in mine} | {each.peer_address for each in mine}
    if theirs and not any(each.name in known or each.peer_address in known for each in theirs):
        told = ", ".join(sorted(each.name for each in mine)) or "this node alone"
        raise DataDirError(
            f"--data-dir {config.data_path} belongs to another cluster ({told}) than "
            f"--initial-cluster names ({', '.join(sorted(each.name for each in theirs))}); "
            "name the right one"
        )


async def _join(storage: LmdbStorage, config: Config, stop: asyncio.Event, event: Event) -> None:
    """Be taken in by a running cluster, if this directory is to be and is not yet."""
    with storage.read() as txn:
        found = load_identity(txn)
    if found is None and config.initial_cluster_state == "new":
        return
    if found is not None and not found.joining:
        return
    identity = open_joining(storage, config.name, secrets.randbits(64))
    members = config.members
    asking = Joining(
        name=config.name, peer_address=members[config.name], lost_disk=identity.lost_disk
    )
    others = [address for name, address in members.items() if name != config.name]
    event("cluster.joining", address=asking.peer_address)
    ask = asyncio.create_task(ask_to_join(others, identity.incarnation, asking, event))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({ask, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not ask.done():
        ask.cancel()
        raise StoppedError
    stopping.cancel()
    settle_in(storage, identity, ask.result())
