"""What kinds of runs the simulation has."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Kind:
    """Of a run."""

    size: int = 3
    members: bool = False
    """They are added, promoted, removed, and lose their disks."""
    whole: bool = False
    """Nodes have their KV service, and clients call it."""
    leases: bool = False
    """Some of the clients hold leases."""
    sessions: bool = False
    """Some of the clients number their writes, and send them until they are answered."""
    damage: bool = False
    """Nodes come back with a state that lacks a row, and members are replaced for it."""

    def __str__(self) -> str:
        words = ["whole" if self.whole else "raft", str(self.size)]
        more = [each for each in ("members", "leases", "sessions", "damage") if getattr(self, each)]
        return "-".join(words + more)


RAFT: Final = Kind()
