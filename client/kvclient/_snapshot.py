"""Saving a snapshot of a node into a file: whole and checked, or not at all."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import grpc

from kvclient._channels import open_sync
from kvclient._endpoints import parse_address
from kvclient._outcomes import failure_of
from kvclient.errors import SnapshotDamaged
from kvpb import rpc_pb2, rpc_pb2_grpc

_HASH_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class SavedSnapshot:
    """A snapshot that is in its file, durably."""

    endpoint: str
    """Of the node that sent it."""
    size_bytes: int
    """Of the state; the file has its sha256 behind it."""
    sha256: bytes


def save_snapshot(
    endpoint: str,
    path: str | os.PathLike[str],
    *,
    on_progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> SavedSnapshot:
    """Save what the node at `endpoint` holds; a file of that name is replaced in one step.

    A standby is asked for less than the active is busy with, but may lack the newest writes.
    The node first makes a copy, at the speed of its disk: until then nothing arrives.

    Args:
        endpoint: host:port of one node.
        path: of the file; meanwhile there is one beside it, its name ending in `.part`.
        on_progress: told the bytes that have arrived, and how many there are in all.

    Raises:
        SnapshotDamaged: what arrived is not what was sent; nothing is kept.
        KvError: as of any call to one node; nothing is kept.
        OSError: the file can't be written.
    """
    address, path = parse_address(endpoint), Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open_sync(address) as channel, _create(part) as file:
            size, sha256 = _receive(_responses(channel, address), file, on_progress)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return SavedSnapshot(address, size, sha256)


def _create(path: Path) -> BinaryIO:
    """For this user alone: it may hold secrets."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _responses(channel: grpc.Channel, address: str) -> Iterator[rpc_pb2.SnapshotResponse]:
    try:
        yield from rpc_pb2_grpc.MaintenanceStub(channel).Snapshot(rpc_pb2.SnapshotRequest())
    except grpc.RpcError as error:
        raise failure_of(error).of_one(address) from error


def _receive(
    responses: Iterator[rpc_pb2.SnapshotResponse],
    file: BinaryIO,
    on_progress: Callable[[int, int], object],
) -> tuple[int, bytes]:
    """Write all blobs; the last one is the hash of the others. Size and hash of what they hold."""
    digest, arrived, total, last = hashlib.sha256(), 0, 0, b""
    for response in responses:
        digest.update(last)
        arrived += len(last)
        last = response.blob
        file.write(last)
        total = total or len(last) + response.remaining_bytes
        on_progress(arrived, total)
    if len(last) != _HASH_BYTES or last != digest.digest():
        raise SnapshotDamaged
    return arrived, last
