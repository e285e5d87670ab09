"""A cluster that is there before any test begins."""

import pytest
from support.simulation import Cluster


@pytest.fixture
def born() -> Cluster:
    """Three established members, before any election."""
    cluster = Cluster(3)
    everybody = lambda: all(node.status.established for node in cluster.nodes.values())  # noqa: E731
    assert cluster.run(0.2, until=everybody)
    for node in cluster.nodes.values():
        assert node.status.term == 0
    return cluster
