"""A node that can't start says why in one sentence and ends with a code that tells the kind."""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from support.cluster import START_S_MAX, data_file, run_kvserver
from support.etcd import free_ports

from kvbench.cluster import Cluster
from kvserver.storage.rows import seal

pytestmark = pytest.mark.cluster

USAGE, DATA_DIR, ADDRESS, NEWER_LOG = 2, 3, 4, 7


def refused(*options: str) -> tuple[int, str]:
    """Exit code and the sentence."""
    done = run_kvserver(*options)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def listening_on_free_ports() -> list[str]:
    peer, client = free_ports(2)
    return [f"--listen-peer=127.0.0.1:{peer}", f"--listen-client=127.0.0.1:{client}"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--frobnicate", "--frobnicate"),
        ("surplus", "surplus"),
        ("--config /nowhere/kv.toml", "/nowhere/kv.toml"),
        ("--listen-client nonsense", "--listen-client nonsense: give host:port"),
        ("--listen-client 0.0.0.0:2379", "add --allow-insecure"),
        ("--listen-client 127.0.0.1:1 --listen-peer 127.0.0.1:1", "are the same address"),
        ("--name n1 --initial-cluster n2=127.0.0.1:1", "does not name this member, 'n1'"),
        ("--heartbeat-ms 500", "--election-timeout-ms-min 300 must be above"),
    ],
)
def test_a_wrong_option_is_named(options: str, words: str, tmp_path: Path) -> None:
    code, said = refused("--data-dir", str(tmp_path / "data"), *options.split())
    assert code == USAGE, said
    assert words in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heartbeat = 5", "there is no option 'heartbeat'"),
        ("heartbeat-ms = 'x'", "'heartbeat-ms' must be a whole number"),
    ],
)
def test_a_wrong_configuration_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "kv.toml"
    file.write_text(text)
    code, said = refused("--config", str(file))
    assert code == USAGE, said
    assert words in said


# ---------------------------------------------------------------------- data directories


def a_file(data: Path) -> None:
    data.write_text("not a directory")


def of_etcd(data: Path) -> None:
    (data / "member" / "snap").mkdir(parents=True)


def names_nothing(data: Path) -> None:
    data.mkdir()
    (data / "CURRENT").write_text("env-7\n")


def current_of_no_text(data: Path) -> None:
    data.mkdir()
    (data / "CURRENT").write_bytes(b"\xff\xfe\xff")


def no_database(data: Path) -> None:
    (data / "env-1").mkdir(parents=True)
    (data / "CURRENT").write_text("env-1\n")
    (data / "env-1" / "data.mdb").write_bytes(b"something else entirely" * 1000)


def of_a_newer_format(data: Path) -> None:
    (data / "env-1").mkdir(parents=True)
    (data / "CURRENT").write_text("env-1\n")
    with lmdb.open(str(data / "env-1"), max_dbs=4, lib_version=0) as environment:
        identity = environment.open_db(b"identity")
        with environment.begin(write=True) as txn:
            txn.put(b"format", seal(b"format", struct.pack(">I", 1_000_000)), db=identity)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (a_file, "name a directory"),
        (of_etcd, "holds files that are not kvserver's (such as 'member')"),
        (names_nothing, "CURRENT names 'env-7', which is not there"),
        (current_of_no_text, "can't read CURRENT"),
        (no_database, "the database can't be opened"),
        (of_a_newer_format, "has format version 1000000"),
    ],
)
def test_a_data_directory_that_is_not_ours(
    spoil: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    spoil(tmp_path / "data")
    before = contents(tmp_path)
    code, said = refused("--data-dir", str(tmp_path / "data"), *listening_on_free_ports())
    assert code == DATA_DIR, said
    assert words in said
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb")
    return {path: path.read_bytes() for path in files}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_data_directory_that_can_not_be_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0)
    code, said = refused("--data-dir", str(data))
    assert code == DATA_DIR, said
    assert "name a directory this user can write to" in said


async def test_a_data_directory_that_was_cut_off(tmp_path: Path) -> None:
    async with Cluster(tmp_path, nodes=1) as cluster:
        (node,) = cluster.nodes
        for number in range(20):
            await cluster.control.put(f"key {number}", "x" * 10_000, timeout_s=10)
        node.term()
        assert await node.wait_exit() == 0
        file = data_file(node)
        os.truncate(file, file.stat().st_size // 2)
        node.start()
        assert await node.wait_exit(START_S_MAX) == DATA_DIR
        assert (
            "it was cut off; see whether the disk is sound, then replace this node"
            in node.log.read_text()
        )


async def test_data_that_a_newer_version_has_raised(tmp_path: Path) -> None:
    async with Cluster(tmp_path, nodes=1) as cluster:
        (node,) = cluster.nodes
        await cluster.control.put("key", "value", timeout_s=10)
        node.term()
        assert await node.wait_exit() == 0
        folder = data_file(node).parent
        row = seal(b"feature_level", (99).to_bytes(8, "big"))
        with lmdb.open(str(folder), max_dbs=32, lib_version=0) as environment:
            meta = environment.open_db(b"meta", create=False)
            with environment.begin(write=True) as txn:
                txn.put(b"feature_level", row, db=meta)
        node.start()
        assert await node.wait_exit(START_S_MAX) == NEWER_LOG
        assert "the data is of feature level 99" in node.log.read_text()
        assert "start the version that wrote it" in node.log.read_text()


async def test_a_data_directory_of_another_member_or_in_use(tmp_path: Path) -> None:
    async with Cluster(tmp_path, nodes=1) as cluster:
        (node,) = cluster.nodes
        data = ("--data-dir", str(node.plan.data))
        code, said = refused("--name", node.name, *data, *listening_on_free_ports())
        assert code == DATA_DIR, said
        assert "is in use by another process" in said
        await cluster.control.put("key", "value", timeout_s=10)
        node.term()
        assert await node.wait_exit() == 0
        code, said = refused("--name", "other", *data, *listening_on_free_ports())
        assert code == DATA_DIR, said
        assert "belongs to member 'n1', not to 'other'" in said
        node.start()
        await cluster.wait_in_step()
        assert await cluster.control.get("key", timeout_s=10) is not None


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize("flag", ["--listen-client", "--listen-peer"])
def test_an_address_in_use(flag: str, tmp_path: Path) -> None:
    (free,) = free_ports(1)
    other = "--listen-peer" if flag == "--listen-client" else "--listen-client"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = refused(
            "--data-dir", str(tmp_path / "data"), "--name=n1", flag, address,
            other, f"127.0.0.1:{free}", "--initial-cluster=n1=127.0.0.1:1,n2=127.0.0.1:2",
        )  # fmt: skip
    assert code == ADDRESS, said
    assert f"{flag} {address} can't be bound" in said


@pytest.mark.parametrize("flag", ["--listen-client", "--listen-peer"])
def test_an_address_that_is_not_this_machines(flag: str, tmp_path: Path) -> None:
    (free,) = free_ports(1)
    other = "--listen-peer" if flag == "--listen-client" else "--listen-client"
    code, said = refused(
        "--data-dir", str(tmp_path / "data"), "--name=n1", "--allow-insecure",
        flag, "192.0.2.1:2379", other, f"127.0.0.1:{free}",
        "--initial-cluster=n1=127.0.0.1:1,n2=127.0.0.1:2",
    )  # fmt: skip
    assert code == ADDRESS, said
    assert f"{flag} 192.0.2.1:2379 can't be bound" in said
