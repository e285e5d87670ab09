"""A simulated cluster whose messages a test moves by itself."""

from support.simulation import Cluster, SimNode

from kvpb.raft_pb2 import PeerMessage
from kvserver.raft.entry import MemberId


def outgoing(cluster: Cluster, source: MemberId, target: MemberId, kind: str) -> list[PeerMessage]:
    """Messages of a kind on their way."""
    queue = cluster.link(source, target).queue
    decoded = [PeerMessage.FromString(encoded) for _, encoded in queue]
    return [message for message in decoded if message.WhichOneof("message") == kind]


def lead(cluster: Cluster) -> SimNode:
    """An active whose followers' answers no longer arrive by themselves."""
    active = cluster.elect()
    cluster.run(0.1)
    for link in cluster.links.values():
        link.auto = False
        link.queue.clear()
    return active
