"""The metrics of a node, as Prometheus reads them."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from kvpb.raft_pb2 import Member, PublishMember
from kvpb.rpc_pb2 import CORRUPT, NOSPACE
from kvserver import __version__
from kvserver.api.metrics import Figures, families
from kvserver.api.standing import Standing
from kvserver.pipeline.alarms import Alarm
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Fitness, Reason
from kvserver.raft.status import RaftStatus

ME, UP, DOWN, NEW = MemberId(0xA), MemberId(0xB), MemberId(0xC), MemberId(0xD)

ACTIVE = Figures(
    me=ME, cluster_id=0xCAFE,
    standing=Standing(active=True, leader_known=True, fit=True),
    raft=RaftStatus(
        term=7, leader=ME, leading=True, active=True, established=True, commit_index=98,
        applied_index=97, visible_index=96, last_index=100, peers={UP: PublishMember(id=UP)},
    ),
    members={
        ME: Member(id=ME, name="n1"), UP: Member(id=UP, name='n"2'), DOWN: Member(id=DOWN, name=""),
        NEW: Member(id=NEW, name=""),
    },
    match_indexes={UP: 101, DOWN: 40},
    alarms=(Alarm(UP, NOSPACE), Alarm(DOWN, NOSPACE)),
    file_bytes=8192, used_bytes=4096, quota_bytes=1 << 31, revision=50, compacted_revision=20,
    writes=3, reads=2, parked=1, watchers=5, watchers_behind=4, leases=6,
)  # fmt: skip

STANDBY = replace(
    ACTIVE,
    standing=Standing(active=False, leader_known=True, fit=True, learner=True),
    raft=replace(ACTIVE.raft, leader=UP, leading=False, active=False),
    match_indexes={},
    alarms=(Alarm(ME, CORRUPT),),
    leases=None,
)

ALONE = replace(STANDBY, raft=replace(STANDBY.raft, leader=None, peers={}))


class Fixed(Collector):
    """Tells of one moment."""

    def __init__(self, now: Figures) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        return families(self._now)


def read(now: Figures) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of their labels -> value."""
    registry = CollectorRegistry()
    registry.register(Fixed(now))
    text = generate_latest(registry).decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    found = {(each.name, *dict(sorted(each.labels.items())).values()): each.value
             for each in samples}  # fmt: skip
    assert len(found) == len(samples), "told twice"
    return found


def test_everything_is_told_under_its_name() -> None:
    assert read(ACTIVE) == {
        ("etcd_server_has_leader",): 1,
        ("etcd_server_is_leader",): 1,
        ("etcd_server_is_learner",): 0,
        ("etcd_server_proposals_committed_total",): 98,
        ("etcd_server_proposals_applied_total",): 97,
        ("kv_unfit", "disqualified"): 0,
        ("kv_unfit", "unverified"): 0,
        ("kv_unfit", "lagging"): 0,
        ("kv_verified_part",): 1,
        ("etcd_server_proposals_pending",): 3,
        ("kv_term",): 7,
        ("kv_last_index",): 100,
        ("etcd_mvcc_db_total_size_in_bytes",): 8192,
        ("etcd_mvcc_db_total_size_in_use_in_bytes",): 4096,
        ("etcd_server_quota_backend_bytes",): 1 << 31,
        ("etcd_debugging_mvcc_current_revision",): 50,
        ("etcd_debugging_mvcc_compact_revision",): 20,
        ("kv_requests_waiting", "write"): 3,
        ("kv_requests_waiting", "read"): 2,
        ("kv_requests_waiting", "active"): 1,
        ("etcd_debugging_mvcc_watcher_total",): 5,
        ("etcd_debugging_mvcc_slow_watcher_total",): 4,
        ("kv_leases",): 6,
        ("etcd_server_version", "3.5.0"): 1,
        ("etcd_cluster_version", "3.5"): 1,
        ("etcd_server_id", "a"): 1,
        ("kv_node_info", "cafe", "n1", __version__): 1,
        ("kv_role", "active"): 1,
        ("kv_role", "standby"): 0,
        ("kv_ready",): 1,
        ("kv_alarms", "NOSPACE"): 2,
        ("kv_alarms", "CORRUPT"): 0,
        ("kv_peer_connected", 'n"2', "b"): 1,
        ("kv_peer_connected", "", "c"): 0,
        ("kv_peer_connected", "", "d"): 0,
        ("kv_peer_lag_entries", 'n"2', "b"): 0,  # it had the next entry when it was looked at
        ("kv_peer_lag_entries", "", "c"): 60,
    }


def test_a_standby_tells_what_it_knows() -> None:
    told = read(STANDBY)
    assert told["etcd_server_has_leader",] == 1
    assert told["etcd_server_is_leader",] == 0
    assert told["etcd_server_is_learner",] == 1
    assert told["kv_role", "standby"] == 1
    assert told["kv_ready",] == 0
    assert told["kv_alarms", "CORRUPT"] == 1
    assert not [name for name, *_ in told if name in {"kv_leases", "kv_peer_lag_entries"}]


@pytest.mark.parametrize("now", [ALONE, replace(ALONE, members={})])
def test_a_node_that_knows_nobody(now: Figures) -> None:
    told = read(now)
    assert told["etcd_server_has_leader",] == 0
    assert told["kv_role", "active"] == 0
    assert not any(told[key] for key in told if key[0] == "kv_peer_connected")


def test_why_a_node_is_unfit_has_a_figure_for_each_reason() -> None:
    fitness = Fitness(frozenset({Reason.UNVERIFIED}))
    now = read(
        replace(STANDBY, standing=replace(STANDBY.standing, fitness=fitness, verified_part=0.5))
    )
    assert now["kv_unfit", "unverified"] == 1
    assert now["kv_unfit", "disqualified"] == now["kv_unfit", "lagging"] == 0
    assert now["kv_verified_part",] == 0.5
