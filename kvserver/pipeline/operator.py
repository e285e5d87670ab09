"""What operators ask of the cluster itself: change its members, move leadership. Main thread.

Each becomes a step of the raft thread; its outcome comes back as a future.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from kvpb import raft_pb2
from kvserver.errors import (
    BadTransfereeError,
    NotActiveError,
    OutcomeUnknownError,
)
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.role import RoleMachine
from kvserver.pipeline.roster import Roster
from kvserver.raft.consensus import GuardedRaft
from kvserver.raft.entry import MemberId
from kvserver.raft.members import MemberChange
from kvserver.raft.membership import (
    Configuration,
    added,
    promotable,
    readdressed,
    removed,
)

HAND_OVER_AGAIN_S: Final = 0.25
"""A target that had to catch up, or a busy machine, may take more than one attempt."""

Decide = Callable[[Configuration, GuardedRaft], Configuration]


class Operator:
    """The road from the API to the members of the raft room."""

    def __init__(
        self,
        me: MemberId,
        limits: Limits,
        role: RoleMachine,
        roster: Roster,
        *,
        post: Callable[[MemberChange], None],
        hand_over: Callable[[MemberId | None, Callable[[object], None]], None],
    ) -> None:
        """Wire it up.

        Args:
            me: id of this node.
            limits: how long a request may take.
            role: of this node.
            roster: the members in force.
            post: brings a change to the raft thread.
            hand_over: begins to hand leadership over, in the raft thread; it tells there whom it
                has chosen, None if there is nobody.
        """
        self._me = me
        self._limits = limits
        self._role = role
        self._roster = roster
        self._post = post
        self._hand_over = hand_over

    async def add(self, member: raft_pb2.Member) -> Configuration:
        """Add a member, learner or voter."""
        return await self._change(lambda now, raft: added(now, member, self._present(raft)))

    async def remove(self, member_id: MemberId) -> Configuration:
        """Remove a member. The active itself hands over first; its successor removes it then."""
        if member_id == self._me and len(self._roster.members) > 1:
            await self.move_leader(None)
            raise NotActiveError
        return await self._change(lambda now, raft: removed(now, member_id, self._present(raft)))

    async def readdress(self, member_id: MemberId, address: str) -> Configuration:
        """Change where a member is reached by the others."""
        return await self._change(lambda now, _: readdressed(now, member_id, address))

    async def promote(self, member_id: MemberId) -> Configuration:
        """Make a learner a voter."""
        return await self._change(
            lambda now, raft: promotable(
                now, member_id, raft.match_index(member_id), raft.commit_index
            )
        )

    async def move_leader(self, target: MemberId | None) -> None:
        """Hand leadership over and return when it is gone; with a target: when that one leads.

        Raises:
            BadTransfereeError: it is not there, did not take over in time, or another did.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.request_timeout_s):
                while self._leader_stays(target):
                    if self._role.active and not await self._begin_to_hand_over(target):
                        break
                    if self._leader_stays(target):
                        with contextlib.suppress(TimeoutError):  # it may have been given up
                            await asyncio.wait_for(self._role.change(), HAND_OVER_AGAIN_S)
        if self._role.active or (target and self._role.leader != target):
            raise BadTransfereeError

    def _leader_stays(self, target: MemberId | None) -> bool:
        """As long as leadership is not gone; with a target: as long as nobody leads instead."""
        return self._role.active or (target is not None and self._role.leader is None)

    async def _begin_to_hand_over(self, target: MemberId | None) -> bool:
        """False if there is nobody who could take over."""
        loop = asyncio.get_running_loop()
        chosen: asyncio.Future[object] = loop.create_future()

        def tell(member: object) -> None:
            loop.call_soon_threadsafe(_settle, chosen, member)

        self._hand_over(target, tell)
        return await chosen is not None

    def _present(self, raft: GuardedRaft) -> set[MemberId]:
        return raft.connected_members | {self._me}

    async def _change(self, decide: Decide) -> Configuration:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Configuration] = loop.create_future()

        def done(outcome: Configuration | Exception) -> None:
            loop.call_soon_threadsafe(_settle, future, outcome)

        self._post(MemberChange(decide, done))
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                return await future
        except TimeoutError:
            raise OutcomeUnknownError from None


def _settle(future: "asyncio.Future[Any]", outcome: object) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
