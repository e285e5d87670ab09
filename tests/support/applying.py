"""An applier on a storage in memory, fed entry by entry."""

from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import Command, CommandBatch, Member
from kvpb.rpc_pb2 import DeleteRangeRequest, PutRequest, RequestOp, TxnRequest
from kvserver.mvcc.history import Change
from kvserver.mvcc.leases import LeaseChange
from kvserver.mvcc.store import current_revision
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.outcome import Result
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.journal import store_configuration
from kvserver.raft.membership import Configuration
from kvserver.storage.schema import DATABASES

ME = MemberId(1)

FOUNDED_AT = 1
"""Index of the entry that names the first members; a new node has applied it."""


def founded() -> MemoryStorage:
    """A disk with the first members of a cluster on it."""
    storage = MemoryStorage()
    members = {ME: Member(id=ME, name="n1")}
    store_configuration(storage.writer(), Configuration(FOUNDED_AT, 7, members))
    storage.commit()
    return storage


class Replica:
    """An applier on a storage, and what it told."""

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self.storage = storage or founded()
        self.told: list[tuple[int, int, list[Result]]] = []
        self.leases: list[LeaseChange] = []
        self.roster = Roster()
        self.applier = Applier(self.storage, self.roster, self._tell)

    def _tell(
        self, index: int, term: int, results: list[Result], changes: list[Change],
        leases: list[LeaseChange],
    ) -> None:  # fmt: skip
        self.told.append((index, term, results))
        self.leases += leases

    def apply(self, *commands: Command, at_ms: int = 0, term: int = 1) -> list[Result]:
        """The next entry, with these commands."""
        batch = CommandBatch(format=1, log_time_ms=at_ms, commands=commands)
        self.applier.apply(self.applier.applied_index + 1, term, batch.SerializeToString())
        return self.told[-1][2]

    def turn(self) -> bool:
        """End the turn; whether anything was to be written."""
        staged = self.applier.stage()
        assert self.storage.commit() is staged
        return staged

    def restarted(self) -> "Replica":
        """As it comes back after a crash at this moment."""
        self.storage.crash()
        return Replica(self.storage)

    def rows(self) -> list[tuple[bytes, bytes, bytes]]:
        with self.storage.read() as txn:
            return [(db.name, *row) for db in DATABASES for row in txn.scan(db)]

    @property
    def revision(self) -> int:
        with self.storage.read() as txn:
            return current_revision(txn)


def put(key: str, value: str = "v", **more: bool) -> Command:
    return Command(put=PutRequest(key=key.encode(), value=value.encode(), **more))


def delete(key: str, end: str = "") -> Command:
    return Command(delete_range=DeleteRangeRequest(key=key.encode(), range_end=end.encode()))


def txn(*puts: str) -> Command:
    ops = [RequestOp(request_put=PutRequest(key=key.encode(), value=b"t")) for key in puts]
    return Command(txn=TxnRequest(success=ops))
