"""Damage to the states of simulated nodes, and what follows: it is found, and they are replaced."""

from typing import TYPE_CHECKING

from support.promises import ViolationError
from support.simulation import SimNode

from kvserver.errors import DataDirError
from kvserver.raft.entry import MemberId

if TYPE_CHECKING:
    from support.chaos import Chaos


class StateDamage:
    """Of the members of one run."""

    def __init__(self, chaos: "Chaos") -> None:
        self._chaos = chaos
        self._hurt: set[MemberId] = set()
        """Members that have found their state to be damaged, and wait to be replaced."""
        chaos.cluster.on_damage = self.found_damage

    @property
    def waiting(self) -> bool:
        return bool(self._hurt)

    def run(self) -> None:
        """Replace who can be replaced now."""
        for member in sorted(self._hurt):
            self._replace(member)

    def hurt(self, member: MemberId) -> None:
        """The state of a member that is down loses a row, if what is promised covers that.

        Somebody verified leads a quorum without it, and it is the only one: so it returns to a
        cluster with an active.
        """
        active = self._chaos.cluster.active()
        disks = self._chaos.cluster.storages.values()
        if active is None or self._hurt or any(disk.damaged for disk in disks):
            return
        if (
            not active.status.fitness.may_serve
            or self._chaos.wiped
            or active.status.fitness.reasons
        ):
            return
        if not self._chaos.can_do_without(member, active):
            return
        if self._chaos.cluster.storages[self._chaos.cluster.names[member]].lose_row():
            self._chaos.cluster.tell(
                "fault", f"a row of {self._chaos.cluster.names[member]} is lost"
            )
            self._chaos.history.damaged += 1

    def start(self, member: MemberId) -> None:
        try:
            self._chaos.cluster.start(self._chaos.cluster.names[member])
        except DataDirError:
            self._note(member)

    def found_damage(self, node: SimNode) -> None:
        self._chaos.cluster.crash(node.me)
        self._note(node.me)

    def _note(self, member: MemberId) -> None:
        name = self._chaos.cluster.names[member]
        if self._chaos.cluster.storages[name].damaged is None:
            raise ViolationError(f"{name} takes its sound state for damaged")
        self._chaos.cluster.tell(name, "finds that its state is damaged")
        self._chaos.history.found += 1
        self._hurt.add(member)

    def _replace(self, member: MemberId) -> None:
        """As the log of its node says: emptied, it comes back as a new member."""
        active = self._chaos.cluster.active()
        if active is None or self._chaos.wiped or not self._chaos.can_do_without(member, active):
            return
        self._hurt.discard(member)
        name = self._chaos.cluster.names[member]
        if member in active.engine._raft.configuration.members:
            self._chaos.history.wiped += 1
            self._chaos.promises.forget(member)
            self._chaos.expect(name, lost_disk=True)

    def believed(self) -> bool:
        """Whether a state that was never verified is served, as after a restart of all, wrongly."""
        for node in self._chaos.cluster.nodes.values():
            if node.storage.damaged and node.status.active and node.status.fitness.may_serve:
                if not node.status.fitness.trusted:
                    raise ViolationError(f"{node.name} serves a damaged state as if it were sound")
                return True
        return False
