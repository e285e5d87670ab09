"""etcdctl says the same of this cluster as of etcd's, whichever node is the active."""

from collections.abc import Iterator

import pytest
from support.cluster import make_active
from support.etcd import Etcd, running_etcd
from support.etcdctl import said

from kvbench.cluster import Cluster

pytestmark = pytest.mark.cluster

TXN = """\
value("k1") = "one"
version("k2") > "0"

put k4 "from a transaction"
get k4

get k1

"""

LINES = [
    ("put k1 one", ""),
    ("put k2 -- -two", ""),
    ("put k3 der Käse", ""),
    ("put k1 ein --prev-kv", ""),
    ("put k5", "from standard input"),
    ("put k1 one -w json", ""),
    ("get k1", ""),
    ("get k1 -w json", ""),
    ("get k1 -w fields", ""),
    ("get k1 --print-value-only", ""),
    ("get k1 --hex", ""),
    ("get missing", ""),
    ("get k --prefix", ""),
    ("get k --prefix --keys-only", ""),
    ("get k --prefix --limit=2 -w json", ""),
    ("get k --prefix --sort-by=MODIFY --order=DESCEND", ""),
    ("get k --prefix --count-only -w fields", ""),
    ("get k2 --from-key", ""),
    ("get k2 k4", ""),
    ("get k1 --consistency=s", ""),
    ("get k1 --rev=1000000", ""),
    ("txn", TXN),
    ("txn -w json", TXN.replace("one", "two")),
    ("del k4", ""),
    ("del k4", ""),
    ("del k3 --prev-kv", ""),
    ("endpoint status", ""),
    ("endpoint status -w table", ""),
    ("member list", ""),
    ("member list -w table", ""),
    ("member list -w fields", ""),
    ("del k --prefix", ""),
    ("get k --prefix", ""),
]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), members=3) as started:
        yield started


async def test_all_its_verbs_on_each_of_three_actives(cluster: Cluster, etcd: Etcd) -> None:
    for wanted in cluster.nodes:
        await make_active(cluster, wanted)
        for line, stdin in LINES:
            ours = said(cluster.endpoints, line, stdin)
            assert ours == said(etcd.endpoints, line, stdin), line


async def test_the_active_alone_is_healthy_since_health_is_a_read(
    cluster: Cluster, etcd: Etcd
) -> None:
    active = await cluster.wait_in_step()
    healthy = said((active.client,), "endpoint health", "")
    assert healthy == said(etcd.endpoints[:1], "endpoint health", "")
    assert healthy[0] == 0
    for standby in cluster.others(active):
        code, _, words = said((standby.client,), "endpoint health --command-timeout=1s", "")
        assert code == 1
        assert any("is unhealthy" in line for line in words), words
