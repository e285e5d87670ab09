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

    def __str__(self) -> str:
        words = ["whole" if self.whole else "raft", str(self.size)]
        more = [each for each in ("members", "leases", "sessions") if getattr(self, each)]
        return "-".join(words + more)


RAFT: Final = Kind()
