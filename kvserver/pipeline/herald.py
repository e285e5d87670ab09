"""Brings into the log what the members say about themselves, and what all of them understand."""

import contextlib
from collections.abc import Callable, Coroutine, Iterable

from kvpb.raft_pb2 import Command, PublishMember, SetFeatureLevel
from kvserver.errors import RequestError
from kvserver.pipeline.features import level_may_rise, level_to_use
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId


class Herald:
    """Speaks while its node is the active; else the proposals come to nothing. Main thread."""

    def __init__(
        self,
        roster: Roster,
        proposer: Proposer,
        *,
        feature_level: Callable[[], int],
        spawn: Callable[[Coroutine[None, None, None]], object],
        on_event: Callable[..., None],
    ) -> None:
        """Wire it up.

        Args:
            roster: what is known already.
            proposer: of the node.
            feature_level: of the cluster.
            spawn: runs what takes a while.
            on_event: log.
        """
        self._roster = roster
        self._proposer = proposer
        self._feature_level = feature_level
        self._spawn = spawn
        self._event = on_event
        self._level_asked = 0
        """Feature level that is on its way into the log."""
        proposer.capable_soon = self.level_may_rise

    def tell(self, words: Iterable[PublishMember]) -> None:
        """Publish what is new in what members say now."""
        for attributes in words:
            if self._roster.published(MemberId(attributes.id)) != attributes:
                self._spawn(self._publish(attributes))
        self._spawn(self._raise_level())

    def level_may_rise(self) -> bool:
        """Whether the cluster may understand more in a moment."""
        return level_may_rise(
            self._feature_level(), self._roster.members, self._roster.all_published
        )

    async def _publish(self, attributes: PublishMember) -> None:
        """Tell all members where clients reach one."""
        with contextlib.suppress(RequestError):  # the next active will do it
            await self._proposer.propose(Command(publish_member=attributes))
            await self._raise_level()

    async def _raise_level(self) -> None:
        """Let the cluster use what all its members understand by now."""
        level = level_to_use(self._roster.members, self._roster.all_published)
        if level is None or level <= max(self._feature_level(), self._level_asked):
            return
        self._level_asked = level
        with contextlib.suppress(RequestError):
            raised = SetFeatureLevel(level=level)
            await self._proposer.propose(Command(set_feature_level=raised))
            self._event("cluster.feature_level", level=level)
        self._level_asked = 0
