"""What no sound peer says.

Such a message is dropped before anything is made of it: a member with a fault of its own must not
be the end of the others, least of all of the leader. It is no defence against a member that lies.
"""

from collections.abc import Callable
from typing import Final

from kvpb.raft_pb2 import AppendEntries, AppendReply, PeerMessage
from kvserver.raft.entry import MemberId

TERM_END: Final = 1 << 63
"""No cluster lives so long; a node that took over a term near 2 ** 64 could not name the next."""


class Sense:
    """Tells sense from nonsense, and the operator who talks nonsense."""

    def __init__(self, on_event: Callable[..., None]) -> None:
        """Report with `on_event`: event name, then fields."""
        self._event = on_event
        self._reported: set[MemberId] = set()

    def connected(self, member: MemberId) -> None:
        """A connection to a peer is up: its next nonsense is reported again."""
        self._reported.discard(member)

    def makes(self, member: MemberId, message: PeerMessage, term: int, last_index: int) -> bool:
        """Whether a message of a peer makes sense; `nonsense` says more about the arguments."""
        reason = nonsense(message, term, last_index)
        if reason is not None and member not in self._reported:
            self._reported.add(member)
            self._event("peer.nonsense", member=f"{member:x}", reason=reason)
        return reason is None


def nonsense(message: PeerMessage, term: int, last_index: int) -> str | None:
    """What is wrong with a message about the log, None if nothing is.

    Args:
        message: of a peer.
        term: current one of this node.
        last_index: of its log.
    """
    kind = message.WhichOneof("message")
    assert kind is not None
    body = getattr(message, kind)
    if body.term >= TERM_END:
        return f"{kind} of term {body.term}"
    if kind == "append_entries":
        return _about_append(body)
    if kind == "append_reply" and body.term == term:
        return _about_reply(body, last_index)
    return None


def _about_reply(reply: AppendReply, last_index: int) -> str | None:
    """A reply of this term answers an append of this leader: its log has never ended before that.

    A next index beyond the log would be looked for there, and with `success` count as a match.
    """
    if (reply.success or reply.reset) and not 0 < reply.next_index <= last_index + 1:
        return f"append_reply that goes on at entry {reply.next_index} of {last_index}"
    return None


def _about_append(append: AppendEntries) -> str | None:
    """Entries follow one another and the one before them; terms never fall along a log."""
    index, term = append.prev_log_index, append.prev_log_term
    for entry in append.entries:
        if entry.index != index + 1 or entry.term < term or not entry.payload:
            return f"append_entries with entry {entry.index} behind entry {index}"
        index, term = entry.index, entry.term
    return f"append_entries with an entry of term {term}" if term > append.term else None
