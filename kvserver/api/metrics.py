"""What a node tells Prometheus, gathered when it is asked: nothing is counted for it meanwhile.

A metric that means what one of etcd's does has its name, others begin with `kv_`. What this node
does not know is left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvpb.raft_pb2 import Member
from kvpb.rpc_pb2 import CORRUPT, NOSPACE, AlarmType
from kvserver import __version__
from kvserver.api.door import Door
from kvserver.api.maintenance import API_LEVEL
from kvserver.api.standing import Standing, standing, why_not_ready
from kvserver.mvcc.history import compacted_revision
from kvserver.mvcc.store import current_revision
from kvserver.pipeline.alarms import Alarm
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Reason
from kvserver.raft.status import RaftStatus


@dataclass(frozen=True)
class Figures:
    """Of a node at one moment."""

    me: MemberId
    cluster_id: int
    standing: Standing
    raft: RaftStatus
    members: Mapping[MemberId, Member]
    match_indexes: Mapping[MemberId, int]
    """Of the peers whose journals this node knows, as the leader."""
    alarms: tuple[Alarm, ...]
    file_bytes: int
    used_bytes: int
    quota_bytes: int
    revision: int
    compacted_revision: int
    writes: int
    reads: int
    parked: int
    watchers: int
    watchers_behind: int
    leases: int | None
    """None if this node does not tell their time."""


def figures(door: Door) -> Figures:
    """Look at a node."""
    raft, members = door.raft_status(), door.roster.members
    matches = {peer: door.match_index(peer) for peer in members if peer != door.me}
    file_bytes, used_bytes = door.storage.size()
    with door.storage.read() as txn:
        revision, compacted = current_revision(txn), compacted_revision(txn)
    return Figures(
        me=door.me,
        cluster_id=door.cluster_id,
        standing=standing(door),
        raft=raft,
        members=members,
        match_indexes={peer: match for peer, match in matches.items() if match},
        alarms=tuple(door.alarms.raised),
        file_bytes=file_bytes,
        used_bytes=used_bytes,
        quota_bytes=door.quota_bytes,
        revision=revision,
        compacted_revision=compacted,
        writes=door.proposer.pending,
        reads=door.reader.pending,
        parked=door.role.parked,
        watchers=door.watches.count,
        watchers_behind=door.watches.count_behind,
        leases=door.lessor.count,
    )


class NodeCollector(Collector):
    """The metrics of one node."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def collect(self) -> Iterator[Metric]:
        """Those of this moment."""
        return families(figures(self._door))


def families(now: Figures) -> Iterator[Metric]:
    """All metrics of a node."""
    yield from _agreement(now)
    yield from _space(now)
    yield from _waiting(now)
    yield from _who(now)
    yield from _fitness(now)
    yield from _cluster(now)


def _agreement(now: Figures) -> Iterator[Metric]:
    raft = now.raft
    yield _gauge("etcd_server_has_leader", "Whether a leader is known.", raft.leader is not None)
    yield _gauge("etcd_server_is_leader", "Whether this member leads.", raft.leader == now.me)
    yield _gauge("etcd_server_is_learner", "Whether it is a learner.", now.standing.learner)
    yield _gauge(
        "etcd_server_proposals_committed_total", "Newest log entry known to be committed.",
        raft.commit_index,
    )  # fmt: skip
    yield _gauge(
        "etcd_server_proposals_applied_total", "Newest log entry that is applied.",
        raft.applied_index,
    )  # fmt: skip
    yield _gauge("etcd_server_proposals_pending", "Writes that wait for their result.", now.writes)
    yield _gauge("kv_term", "Term of the agreement.", raft.term)
    yield _gauge("kv_last_index", "Newest entry of this node's log.", raft.last_index)


def _space(now: Figures) -> Iterator[Metric]:
    yield _gauge(
        "etcd_mvcc_db_total_size_in_bytes", "Bytes of the file of the state.", now.file_bytes
    )
    yield _gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of it that are in use.", now.used_bytes
    )
    yield _gauge(
        "etcd_server_quota_backend_bytes", "Bytes that the state may take.", now.quota_bytes
    )
    yield _gauge(
        "etcd_debugging_mvcc_current_revision", "Newest revision that can be read here.",
        now.revision,
    )  # fmt: skip
    yield _gauge(
        "etcd_debugging_mvcc_compact_revision", "Revision of the newest compaction.",
        now.compacted_revision,
    )  # fmt: skip


def _waiting(now: Figures) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "kv_requests_waiting",
        "Requests that wait: for the result of a write, for the moment of a read, for an active.",
        labels=["for"],
    )
    for what, count in (("write", now.writes), ("read", now.reads), ("active", now.parked)):
        waiting.add_metric([what], count)
    yield waiting
    yield _gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", now.watchers)
    yield _gauge(
        "etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind the present.",
        now.watchers_behind,
    )  # fmt: skip
    if now.leases is not None:
        yield _gauge("kv_leases", "Leases, sessions included; on the active only.", now.leases)


def _who(now: Figures) -> Iterator[Metric]:
    mine = now.members.get(now.me)
    yield _info("etcd_server_version", "Level of etcd's API.", server_version=API_LEVEL)
    yield _info(
        "etcd_cluster_version", "Level of etcd's API, as a cluster has it.",
        cluster_version=API_LEVEL.rpartition(".")[0],
    )  # fmt: skip
    yield _info("etcd_server_id", "Id of this member.", server_id=f"{now.me:x}")
    yield _info(
        "kv_node_info", "Who this node is.", name=mine.name if mine is not None else "",
        version=__version__, cluster_id=f"{now.cluster_id:x}",
    )  # fmt: skip
    role = GaugeMetricFamily("kv_role", "1 for the role of this node.", labels=["role"])
    role.add_metric(["active"], now.standing.active)
    role.add_metric(["standby"], not now.standing.active)
    yield role
    yield _gauge(
        "kv_ready", "Whether the active serves, or a standby is fit for promotion; as /readyz.",
        not why_not_ready(now.standing),
    )  # fmt: skip


def _fitness(now: Figures) -> Iterator[Metric]:
    unfit = GaugeMetricFamily(
        "kv_unfit", "Whether this node is unfit for this reason.", labels=["reason"]
    )
    for reason in Reason:
        unfit.add_metric([reason.value], reason in now.standing.fitness.reasons)
    yield unfit
    yield _gauge(
        "kv_verified_part", "Part of the data that was read since the node came back.",
        now.standing.verified_part,
    )  # fmt: skip


def _cluster(now: Figures) -> Iterator[Metric]:
    """What this node knows of the others, and of all together."""
    alarms = GaugeMetricFamily(
        "kv_alarms", "Members with this alarm, as applied here.", labels=["alarm"]
    )
    for kind in (NOSPACE, CORRUPT):
        count = sum(1 for alarm in now.alarms if alarm.kind == kind)
        alarms.add_metric([AlarmType.Name(kind)], count)
    yield alarms
    labels = ["peer", "peer_id"]  # names are not unique: a new member has none before it starts
    connected = GaugeMetricFamily(
        "kv_peer_connected", "Whether the connection to a peer is up.", labels=labels
    )
    lag = GaugeMetricFamily(
        "kv_peer_lag_entries",
        "Log entries of the active that a peer is not known to have on its disk.",
        labels=labels,
    )
    for peer, member in now.members.items():
        if peer == now.me:
            continue
        who = [member.name, f"{peer:x}"]
        connected.add_metric(who, peer in now.raft.peers)
        if peer in now.match_indexes:  # looked at a moment later than the own log
            lag.add_metric(who, max(0, now.raft.last_index - now.match_indexes[peer]))
    yield connected
    yield lag


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _info(name: str, text: str, /, **labels: str) -> Metric:
    """Labels that say something, with the value 1."""
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family
