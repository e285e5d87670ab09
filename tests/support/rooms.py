"""What there is room for, as a test has it."""

from kvpb.raft_pb2 import Command
from kvserver.errors import NoSpaceError


class Rooms:
    """Room for all, or for nothing that is not settled."""

    def __init__(self) -> None:
        self.full = False
        self.settled: set[tuple[int, int]] = set()
        """Session and number of writes that were answered."""

    def admit(self, command: Command) -> None:
        if self.full and not command.HasField("pass_time"):
            raise NoSpaceError

    async def is_settled(self, command: Command) -> bool:
        return (command.session, command.sequence) in self.settled
