"""Disqualified members under random faults: all promises hold, in the end another one leads."""

import pytest
from support.chaos import Chaos
from support.kinds import Kind
from support.sim_log import Log


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--seeds")
        assert isinstance(count, int)
        metafunc.parametrize("seed", range(count))


@pytest.mark.parametrize(("size", "disqualified"), [(3, 1), (5, 2)])
def test_promises_hold_with_disqualified_members(
    size: int, disqualified: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaos = Chaos(seed, Kind(size))
    members = sorted(chaos.cluster.nodes)
    chosen = frozenset((members + members)[seed % size :][:disqualified])
    monkeypatch.setattr(Log, "disqualified", chosen)
    history = chaos.run(seconds=10)
    assert history.acknowledged
    active = chaos.cluster.active()
    assert active is not None
    assert active.me not in chosen
