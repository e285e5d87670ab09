"""`kv snapshot save` and `save_snapshot`: a whole file with the right hash, or none."""

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.fake_node import Context, FakeNode, Step, fails
from support.kv_command import kv, status_step, three_members

from kvclient import Unavailable, save_snapshot
from kvclient.errors import SnapshotDamaged
from kvpb import rpc_pb2

Nodes = Callable[[int], list[FakeNode]]

DATA = bytes(i * 31 % 251 for i in range(100_000))
SHA256 = hashlib.sha256(DATA).digest()
BLOB = 32 << 10


def sends(*blobs: bytes) -> Step:
    """A step: a stream of these, as a server sends them."""

    def step(request: Any, context: Context) -> Any:
        left = sum(len(blob) for blob in blobs[:-1])
        for blob in blobs[:-1]:
            left -= len(blob)
            yield rpc_pb2.SnapshotResponse(remaining_bytes=left, blob=blob)
        yield rpc_pb2.SnapshotResponse(blob=blobs[-1])

    return step


def breaks_off(code: grpc.StatusCode, *blobs: bytes) -> Step:
    def step(request: Any, context: Context) -> Any:
        for blob in blobs:
            yield rpc_pb2.SnapshotResponse(remaining_bytes=1 << 20, blob=blob)
        context.abort(code, "it breaks off")

    return step


PARTS = [DATA[at : at + BLOB] for at in range(0, len(DATA), BLOB)]


def test_what_was_sent_is_in_the_file(node: FakeNode, tmp_path: Path) -> None:
    node.on("Snapshot", sends(*PARTS, SHA256))
    file = tmp_path / "backup.db"
    file.write_text("an older one")
    progress: list[tuple[int, int]] = []
    saved = save_snapshot(
        node.address, file, on_progress=lambda done, total: progress.append((done, total))
    )
    assert file.read_bytes() == DATA + SHA256
    assert (saved.endpoint, saved.size_bytes, saved.sha256) == (node.address, len(DATA), SHA256)
    assert {total for _, total in progress} == {len(DATA)}
    assert [done for done, _ in progress] == [0, BLOB, 2 * BLOB, 3 * BLOB, len(DATA)]
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, "it is nobody else's"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "blobs",
    [
        [*PARTS, b"\0" * 32],
        [*PARTS[:-1], SHA256],
        [*PARTS, PARTS[0], SHA256],
        PARTS,
        [*PARTS, SHA256[:-1]],
        [SHA256],
    ],
    ids=["hash", "lacks a part", "too much", "no hash", "half a hash", "only a hash"],
)
def test_what_is_damaged_is_not_kept(node: FakeNode, tmp_path: Path, blobs: list[bytes]) -> None:
    node.on("Snapshot", sends(*blobs))
    file = tmp_path / "backup.db"
    file.write_text("an older one")
    with pytest.raises(SnapshotDamaged, match="save it again"):
        save_snapshot(node.address, file)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["an older one"]


def test_a_stream_that_breaks_off_leaves_nothing(node: FakeNode, tmp_path: Path) -> None:
    node.on("Snapshot", breaks_off(grpc.StatusCode.UNAVAILABLE, *PARTS[:2]))
    with pytest.raises(Unavailable, match="breaks off"):
        save_snapshot(node.address, tmp_path / "backup.db")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cluster(nodes: Nodes) -> list[FakeNode]:
    """Three, of which the second is the active."""
    three = nodes(3)
    for member_id, each in enumerate(three, 0xA1):
        each.on("Status", status_step(member_id, 0xA2, 7))
        each.on("MemberList", three_members(*(node.address for node in three)))
    three[1].on("Snapshot", sends(*PARTS, SHA256))
    return three


def test_the_command_asks_the_active(cluster: list[FakeNode], tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    endpoints = ",".join(node.address for node in cluster)
    result = kv("--endpoints", endpoints, "snapshot", "save", str(file))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        f"Snapshot of {cluster[1].address} saved at {file}: {len(DATA)} bytes\n"
    )
    assert file.read_bytes() == DATA + SHA256
    result = kv("--endpoints", endpoints, "snapshot", "save", str(file), "-o", "json")
    assert json.loads(result.stdout) == {
        "file": str(file), "endpoint": cluster[1].address, "size_bytes": len(DATA),
        "sha256": SHA256.hex(),
    }  # fmt: skip


def test_a_single_endpoint_is_asked_whoever_it_is(cluster: list[FakeNode], tmp_path: Path) -> None:
    cluster[0].on("Snapshot", sends(*PARTS, SHA256))
    result = kv("--endpoints", cluster[0].address, "snapshot", "save", str(tmp_path / "backup.db"))
    assert result.exit_code == 0, result.stderr
    assert cluster[0].asked("Snapshot") == 1
    assert cluster[1].asked("Snapshot") == 0


def test_how_the_command_ends(cluster: list[FakeNode], nodes: Nodes, tmp_path: Path) -> None:
    cluster[1].on("Snapshot", fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many"))
    endpoints = ",".join(node.address for node in cluster)
    result = kv("--endpoints", endpoints, "snapshot", "save", str(tmp_path / "a"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "too many" in result.stderr
    result = kv("--endpoints", endpoints, "snapshot", "save", str(tmp_path / "missing" / "a"))
    assert result.exit_code == 1
    assert "can't be written: No such file or directory" in result.stderr
    for each in cluster:
        each.on("Status", status_step(1, 0, 7))
    result = kv("--endpoints", endpoints, "snapshot", "save", str(tmp_path / "a"))
    assert result.exit_code == 1
    assert "no node is active" in result.stderr
    result = kv("--endpoints", "127.0.0.1:1", "snapshot", "save", str(tmp_path / "a"))
    assert result.exit_code == 3
    assert list(tmp_path.iterdir()) == []
