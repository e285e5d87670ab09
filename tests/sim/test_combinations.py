"""Members in every state there is when the active dies: who leads, and who serves."""

from itertools import product

import pytest
from support.simulation import Cluster, SimNode

LONG_S = 1000.0
"""Of a verification: it ends when the test says so."""

STATES = ("down", "verified", "unverified", "verified, behind", "unverified, behind")


class Story:
    """A cluster whose active has died."""

    def __init__(self, states: tuple[str, str]) -> None:
        self.cluster = cluster = Cluster(3)
        self.active = cluster.elect()
        cluster.run(0.5)
        cluster.verify_s = LONG_S
        self.names = [node.name for node in cluster.standbys()]
        for name, state in zip(self.names, states, strict=True):
            self._bring(name, state)
        cluster.run(0.5)
        self._write(states)
        cluster.crash(self.active.me)
        cluster.heal()

    def _bring(self, name: str, state: str) -> None:
        node = self.cluster.node(name)
        if state.partition(",")[0] != "verified":
            self.cluster.crash(node.me)
        if "unverified" in state:
            self.cluster.start(name)

    def _write(self, states: tuple[str, str]) -> None:
        """One entry that those behind do not get; acknowledged if a quorum does."""
        for name, state in zip(self.names, states, strict=True):
            if "behind" in state:
                self.cluster.hold(self.active.me, self.cluster.id_of(name))
        self.active.proposals.waiting.append(b"newest")
        self.active.due = 0.0
        self.cluster.run(0.05)
        self.acknowledged = any(batch == b"newest" for _, _, batch in self.active.machine.applied)

    @property
    def up(self) -> list[SimNode]:
        return list(self.cluster.nodes.values())

    @property
    def verified(self) -> list[SimNode]:
        return [node for node in self.up if not node.status.fitness.reasons]

    def serving(self) -> list[SimNode]:
        return [node for node in self.up if node.status.active and node.status.fitness.may_serve]


@pytest.mark.parametrize("states", list(product(STATES, STATES)), ids=" and ".join)
def test_two_that_are_left(states: tuple[str, str]) -> None:
    story = Story(states)
    cluster, seen = story.cluster, set[str]()

    def look() -> bool:
        seen.update(node.name for node in story.serving() if node not in story.verified)
        return False

    cluster.run(4.0, until=look)
    assert not seen, "it served a state that nobody had read"
    if len(story.up) < 2:
        assert cluster.active() is None
        return
    leading = cluster.active()
    assert leading is not None, "two of three can always elect one, whatever they are"
    if story.acknowledged:
        assert b"newest" in [batch for _, _, batch in leading.machine.applied]
    if story.verified:
        assert story.serving() == [leading], "a verified one gets what it lacks, and leads"
        return
    assert story.serving() == []
    leading.end_verification()
    assert cluster.run(0.2, until=lambda: story.serving() == [leading])


@pytest.mark.parametrize("states", list(product(STATES, STATES)), ids=" and ".join)
def test_the_one_that_led_comes_back_unverified(states: tuple[str, str]) -> None:
    story = Story(states)
    cluster = story.cluster
    cluster.run(1.0)
    back = cluster.start(story.active.name)
    cluster.run(4.0)
    if len(story.up) < 2:
        assert cluster.active() is None
        return
    if story.verified:
        assert len(story.serving()) == 1
        assert story.serving()[0] in story.verified
    else:
        assert story.serving() == [], "somebody has met a verified one, and tells"
    if story.acknowledged:
        assert b"newest" in [batch for _, _, batch in back.machine.applied]
    for node in story.up:
        node.end_verification()
    assert cluster.run(2.0, until=lambda: len(story.serving()) == 1)
    cluster.commit(b"all is well")


OF_FIVE = [
    states
    for states in product(("down", "verified", "unverified"), repeat=5)
    if "verified" in states and states.count("down") <= 2
]


@pytest.mark.parametrize("states", OF_FIVE, ids=" ".join)
def test_one_verified_of_five_is_enough(states: tuple[str, ...]) -> None:
    cluster = Cluster(5)
    cluster.elect()
    cluster.run(0.5)
    cluster.verify_s = LONG_S
    for number, state in enumerate(states):
        name = f"n{number + 1}"
        if state == "verified":
            continue
        cluster.crash(cluster.id_of(name))
        if state == "unverified":
            cluster.start(name)
    assert cluster.run(
        4.0,
        until=lambda: any(
            node.status.active and not node.status.fitness.reasons
            for node in cluster.nodes.values()
        ),
    )
