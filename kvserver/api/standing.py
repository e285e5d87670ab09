"""How a node stands, for those who watch it from outside: the picture, and what follows from it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from kvserver.api.door import Door
from kvserver.raft.fitness import Fitness, Reason

SILENT_S_MAX: Final = 5.0
"""A raft thread that shows no life for so long counts as dead: half of what ends the process."""


@dataclass(frozen=True)
class Standing:
    """Of one moment, by what the node itself knows."""

    active: bool
    leader_known: bool
    fit: bool
    """For promotion, as the consensus sees it."""
    learner: bool = False
    removed: bool = False
    fitness: Fitness = field(default_factory=Fitness)
    """Of the node's state."""
    out_of_space: bool = False
    """Any member is: all refuse what takes room."""
    obstacle: str | None = None
    """Why this node serves nobody, for a reason of its own."""
    verified_part: float = 1.0
    """Which part of the state was read since it came back."""
    raft_silent_s: float = 0.0


def standing(door: Door) -> Standing:
    """Look at a node."""
    raft, mine = door.raft_status(), door.roster.members.get(door.me)
    return Standing(
        active=door.role.active,
        leader_known=door.role.leader is not None,
        fit=raft.fit,
        learner=mine is not None and mine.learner,
        removed=door.role.removed,
        fitness=raft.fitness,
        out_of_space=door.alarms.out_of_space,
        obstacle=door.role.obstacle,
        verified_part=door.verified_part(),
        raft_silent_s=door.raft_silent_s(),
    )


def why_unfit(node: Standing) -> str:
    """Why a node should not serve, or could not at once, for an operator; empty if it could."""
    if Reason.UNVERIFIED not in node.fitness.reasons:
        return node.fitness.text
    serves = (
        "serves all the same, as all were restarted" if node.active else "serves nothing before"
    )
    return f"{node.fitness.text}: {node.verified_part:.0%} of its data is read; it {serves}"


def why_not_live(node: Standing) -> str:
    """What has died in the process; empty if nothing has."""
    return "raft thread stuck" if node.raft_silent_s > SILENT_S_MAX else ""


def why_not_ready(node: Standing) -> str:
    """Why a node can't play its role: serve as the active, be promoted as a standby; else empty."""
    if node.active:
        return ""
    if node.obstacle is not None:
        return node.obstacle
    flaws = (
        (node.removed, "removed from the cluster"),
        (Reason.DISQUALIFIED in node.fitness.reasons, Reason.DISQUALIFIED.value),
        (node.learner, "learner"),
        (not node.leader_known, "no leader"),
        (bool(node.fitness.reasons), node.fitness.text),
        (not node.fit, "not fit for promotion"),
    )
    return next((flaw for found, flaw in flaws if found), "")


def why_not_healthy(node: Standing, excluded: Collection[str] = ()) -> str:
    """What etcd's `/health` gives as the reason, and ours in its style; empty if nothing is wrong.

    Args:
        node: as it stands.
        excluded: alarms that are left out of account.
    """
    if node.obstacle is not None:
        return node.obstacle.upper()
    flaws = (
        (node.removed, "NODE REMOVED"),
        (node.out_of_space and "NOSPACE" not in excluded, "ALARM NOSPACE"),
        (
            Reason.DISQUALIFIED in node.fitness.reasons and "CORRUPT" not in excluded,
            "ALARM CORRUPT",
        ),
        (not node.leader_known, "RAFT NO LEADER"),
    )
    return next((flaw for found, flaw in flaws if found), "")
