"""Nodes that join a running cluster, or come back at another address."""

from collections.abc import Iterable

from support.cluster import WAIT_S_MAX

from kvbench.cluster import Cluster, Node
from kvbench.flavor import KVSERVER, Flavor, NodePlan
from kvbench.ports import LOOPBACK, Ports
from kvclient import Member


def addresses(ports: Ports) -> list[str]:
    return [f"{LOOPBACK}:{port}" for port in ports.numbers]


def newcomer(
    cluster: Cluster, name: str, peer: str, client: str, members: Iterable[Member]
) -> Node:
    """A node that is to be taken in by these members; it does not run yet."""
    peers = {m.name: m.peer_urls[0].removeprefix("http://") for m in members if m.name}
    plan = NodePlan(name, cluster.folder / name, client, peer, {**peers, name: peer})
    options = ["--initial-cluster-state", "existing"]
    return Node(plan, KVSERVER, options, cluster.folder / f"{name}.log")


def at_other_address(cluster: Cluster, node: Node, peer: str) -> Node:
    """The same node with its data, to be reached by the others at `peer`."""
    plan = NodePlan(node.name, node.plan.data, node.client, peer, {**node.plan.peers})
    moved = Node(plan, KVSERVER, (), node.log)
    replace(cluster, node, moved)
    return moved


def started_by(command: list[str], cluster: Cluster, name: str, client: str, peer: str) -> Node:
    """A node that this command starts, but for where its data are."""
    plan = NodePlan(name, cluster.folder / name, client, peer, {})
    flavor = Flavor(
        "as told", lambda plan: [*command, "--data-dir", str(plan.data)],
        KVSERVER.parser, True, KVSERVER.settings,
    )  # fmt: skip
    return Node(plan, flavor, (), cluster.folder / f"{name}.log")


def take(cluster: Cluster, node: Node) -> None:
    """From now on it is one of the cluster's, and is ended with it."""
    cluster.nodes = (*cluster.nodes, node)


def leave(cluster: Cluster, node: Node) -> None:
    """The cluster goes on without it; whoever calls this ends it."""
    cluster.nodes = cluster.others(node)


def replace(cluster: Cluster, old: Node, new: Node) -> None:
    cluster.nodes = tuple(new if node is old else node for node in cluster.nodes)


async def member_of(cluster: Cluster, node: Node) -> Member:
    members = await cluster.control.members(timeout_s=WAIT_S_MAX)
    (found,) = (member for member in members if member.name == node.name)
    return found
