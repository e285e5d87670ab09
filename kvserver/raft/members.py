"""Changes of the members, one at a time: for operators, for nodes that join, for learners in step.

Which changes are safe is said in membership.py; this carries them into the log.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from kvpb import raft_pb2
from kvpb.raft_pb2 import PeerMessage
from kvserver.errors import NotActiveError, OutcomeUnknownError, RequestError
from kvserver.raft import identity as identities
from kvserver.raft.consensus import GuardedRaft
from kvserver.raft.entry import MemberId
from kvserver.raft.membership import Configuration, promoted

JOINING_MAX: Final = 16
IN_STEP_ENTRIES: Final = 100
"""A learner that lacks no more than this many committed entries is in step."""


class MemberChange:
    """A change of the members that somebody waits for."""

    def __init__(
        self,
        decide: Callable[[Configuration, GuardedRaft], Configuration],
        done: Callable[[Configuration | Exception], None],
    ) -> None:
        """Wait for a turn.

        Args:
            decide: the wanted configuration from the one in force, or raises a RequestError.
            done: called once, with the new configuration when it is committed, or the reason.
        """
        self._decide = decide
        self._done = done
        self._appended: tuple[int, int] | None = None
        self._wanted: Configuration | None = None

    def step(self, raft: GuardedRaft) -> bool:
        """Append it, or see whether it is committed; True once `done` was told."""
        if self._appended is None:
            return self._append(raft)
        index, term = self._appended
        current = raft.configuration
        if current.index == index and index <= raft.applied_index:
            self._done(current)
            return True
        if raft.term != term or not raft.leading or current.index > index:
            self._done(OutcomeUnknownError())
            return True
        return False

    def _append(self, raft: GuardedRaft) -> bool:
        if not raft.activated or raft.transferring:
            self._done(NotActiveError())
            return True
        try:
            wanted = self._decide(raft.configuration, raft)
        except RequestError as error:
            self._done(error)
            return True
        index = raft.change_members(wanted)
        if index is None:
            return False  # an earlier change is under way: the next turn tries again
        self._appended = (index, raft.term)
        return False


class MemberService:
    """What one leadership after the other does about members."""

    def __init__(
        self,
        raft: GuardedRaft,
        pins: Callable[[], Mapping[int, int]],
        on_event: Callable[..., None],
    ) -> None:
        """Serve the members of `raft`; `pins` gives the incarnations known since the birth."""
        self._raft = raft
        self._pins = pins
        self._event = on_event
        self._joining: dict[int, raft_pb2.Hello] = {}
        """Who asked to be taken in, by incarnation; looked at in the next turn."""
        self._complete: Configuration | None = None
        """Newest one that was found to lack no incarnation that is known."""
        self.changes: list[MemberChange] = []
        """Asked for, and not decided yet."""

    def answer_joining(self, hello: raft_pb2.Hello) -> PeerMessage:
        """To a node that asks to be taken in: who it is, or why not yet. Between turns."""
        configuration = self._raft.configuration
        welcome = identities.welcome(configuration, hello)
        if welcome is not None and configuration.index <= self._raft.commit_index:
            return PeerMessage(welcome=welcome)
        reason = "it is not the active that was asked"
        if self._raft.leading and len(self._joining) < JOINING_MAX:
            self._joining[hello.incarnation] = hello
            address = hello.joining.peer_address
            known = any(m.peer_address == address for m in configuration.members.values())
            reason = (
                "it is being taken in"
                if known
                else f"no member at {address} is expected; add it first: kv member add"
            )
        return PeerMessage(refusal=raft_pb2.Refusal(reason=reason))

    def serve(self, present: AbstractSet[MemberId]) -> None:
        """Append what can be, and tell whoever waits. In the turn.

        Args:
            present: members that are connected, this one included.
        """
        if self._raft.leading:
            self._pin()
            self._take_in(present)
            self._promote_in_step()
        else:
            self._joining.clear()
        self.changes = [change for change in self.changes if not change.step(self._raft)]

    def _pin(self) -> None:
        configuration = self._raft.configuration
        if configuration is self._complete:
            return
        wanted = identities.with_pins(configuration, self._pins())
        if wanted is None:
            self._complete = configuration
        else:
            self._raft.change_members(wanted)

    def _take_in(self, present: AbstractSet[MemberId]) -> None:
        waiting, self._joining = self._joining, {}
        for hello in waiting.values():
            configuration = self._raft.configuration
            if identities.welcome(configuration, hello) is not None:
                continue
            wanted = identities.take_in(configuration, hello, present)
            if wanted is not None and self._raft.change_members(wanted) is not None:
                asking = hello.joining
                self._event(
                    "member.taken_in", member=asking.name, address=asking.peer_address,
                    lost_disk=asking.lost_disk,
                )  # fmt: skip

    def _promote_in_step(self) -> None:
        raft = self._raft
        configuration = raft.configuration
        for member_id, member in configuration.members.items():
            if not member.promote_in_step or not member.learner:
                continue
            match = raft.match_index(member_id)
            if not match or match < raft.commit_index - IN_STEP_ENTRIES:
                continue
            if raft.change_members(promoted(configuration, member_id)) is not None:
                self._event("member.promoted", member=member.name)
                return
