"""Read-index rounds: which reads may be answered, after which echoes. Pure (Raft thesis 6.4).

All reads that wait at one moment share a round: the commit index is noted, a quorum confirms that
this node still leads, and once that index is applied the reads see every write acknowledged before
they came.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvserver.raft.entry import MemberId

Token = TypeVar("Token")


@dataclass
class _Round(Generic[Token]):
    number: int
    read_index: int
    reads: list[Token]
    echoes: set[MemberId] = field(default_factory=set)


class ReadRounds(Generic[Token]):
    """Rounds of one leadership. A new term starts with a new object."""

    def __init__(self) -> None:
        self._number = 0
        self._rounds: list[_Round[Token]] = []
        self._confirmed: list[_Round[Token]] = []
        """Leadership is confirmed, the index may not be applied yet."""

    @property
    def open_round(self) -> int | None:
        """Number of the newest round that waits for echoes."""
        return self._rounds[-1].number if self._rounds else None

    @property
    def waiting(self) -> bool:
        """True if there are reads that nobody has taken yet."""
        return bool(self._rounds or self._confirmed)

    def begin(self, reads: list[Token], commit_index: int) -> int:
        """Start a round for `reads`; returns its number, which goes out to all members."""
        self._number += 1
        self._rounds.append(_Round(self._number, commit_index, reads))
        return self._number

    def echo(self, number: int, member: MemberId, needed: int) -> None:
        """`member` confirmed round `number`; `needed` members besides this node make a quorum.

        A confirmed round confirms all earlier ones: who leads now led then, in the same term.
        """
        for position, found in enumerate(self._rounds):
            if found.number == number:
                found.echoes.add(member)
                if len(found.echoes) >= needed:
                    self._confirmed += self._rounds[: position + 1]
                    del self._rounds[: position + 1]
                return

    def confirm_all(self) -> None:
        """A lone voter needs no echo."""
        self._confirmed += self._rounds
        self._rounds.clear()

    def take_ready(self, applied_index: int) -> list[Token]:
        """Reads whose round is confirmed and whose index is applied."""
        if not self._confirmed:
            return []
        ready = [read for r in self._confirmed if r.read_index <= applied_index for read in r.reads]
        self._confirmed = [r for r in self._confirmed if r.read_index > applied_index]
        return ready

    def take_all(self) -> list[Token]:
        """Reads that can't be answered any more: the leadership ended."""
        reads = [read for r in self._confirmed + self._rounds for read in r.reads]
        self._rounds.clear()
        self._confirmed.clear()
        return reads
