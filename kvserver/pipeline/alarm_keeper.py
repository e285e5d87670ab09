"""Keeps the alarms as the members need them: each looks at itself, the active asks the log."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import CORRUPT, AlarmType
from kvserver.errors import RequestError
from kvserver.pipeline.alarms import Alarm, Alarms, due_changes
from kvserver.pipeline.proposer import Proposer
from kvserver.pipeline.role import RoleMachine
from kvserver.pipeline.roster import Roster
from kvserver.pipeline.space import Space
from kvserver.raft.entry import MemberId
from kvserver.raft.fitness import Reason
from kvserver.raft.status import RaftStatus

LOOK_S: Final = 0.25

DISQUALIFIED: Final = (
    "the data of this node differs from that of the others: it acknowledges the log, but does not "
    "serve. If others go on, replace it: stop it, empty its --data-dir, start it again. If none "
    "does, compare them (kv hash), disarm the one whose data is right (kv alarm disarm NAME) and "
    "replace the others"
)


class AlarmKeeper:
    """One node's part in the alarms. Main thread."""

    def __init__(  # noqa: PLR0913 - it listens to all and speaks for all
        self,
        me: MemberId,
        alarms: Alarms,
        space: Space,
        *,
        role: RoleMachine,
        roster: Roster,
        proposer: Proposer,
        on_word: Callable[[bool], None],
        on_event: Callable[..., None],
    ) -> None:
        """Wire it up.

        Args:
            me: id of this node.
            alarms: of the cluster.
            space: of this node.
            role: of this node.
            roster: the members.
            proposer: of this node.
            on_word: told when this node runs out of space, or has some again: the active must hear.
            on_event: log.
        """
        self._me = me
        self._alarms = alarms
        self._space = space
        self._role = role
        self._roster = roster
        self._proposer = proposer
        self._on_word = on_word
        self._event = on_event
        self._said_full = False
        self._told: frozenset[Alarm] = frozenset()

    async def run(self, status: Callable[[], RaftStatus | None]) -> None:
        """Look now and then; `status` is that of the newest turn."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look(status())

    async def look(self, status: RaftStatus | None) -> None:
        """See what has changed; on the active propose what is due, and wait for it."""
        self._space.look()
        # how much an unverified state takes is told by numbers that may be damaged
        verified = status is not None and Reason.UNVERIFIED not in status.fitness.reasons
        full = self._space.full and verified
        if full is not self._said_full:
            self._said_full = full
            self._on_word(full)
        self._tell()
        if status is None or not self._role.leads:
            return
        words: dict[MemberId, bool | None]
        words = {peer: said.out_of_space for peer, said in status.peers.items()}
        words[self._me] = full
        due = due_changes(
            self._alarms.raised,
            out_of_space=words | dict.fromkeys(status.unverified & words.keys()),
            members=self._roster.members.keys(),
        )
        for change in due:
            with contextlib.suppress(RequestError):  # the next look sees whether it is still due
                await self._proposer.propose(Command(change_alarm=change))

    def _tell(self) -> None:
        raised = frozenset(self._alarms.raised)
        for event, alarms in (
            ("alarm.raised", raised - self._told),
            ("alarm.disarmed", self._told - raised),
        ):
            for alarm in sorted(alarms):
                name = self._roster.name(alarm.member)
                self._event(event, alarm=AlarmType.Name(alarm.kind), member=name)
                if alarm == Alarm(self._me, CORRUPT) and event == "alarm.raised":
                    self._event("node.disqualified", reason=DISQUALIFIED)
        self._told = raised
