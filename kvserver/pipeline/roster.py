"""Who the members are and where clients reach them, as the log has published it."""

from collections.abc import Mapping

from kvpb import raft_pb2
from kvserver.raft.entry import MemberId
from kvserver.raft.membership import Configuration
from kvserver.storage.contract import ReadTxn, WriteTxn
from kvserver.storage.schema import MEMBER


class Roster:
    """Written by the raft thread as it applies; read by any (whole objects are replaced)."""

    def __init__(self) -> None:
        self.members: Mapping[MemberId, raft_pb2.Member] = {}
        """As applied: a newer configuration in the log may yet be cut off."""
        self._published: dict[MemberId, raft_pb2.PublishMember] = {}

    def set_members(self, configuration: Configuration) -> None:
        """Another configuration is applied."""
        self.members = configuration.members

    def load(self, txn: ReadTxn) -> None:
        """Take over what a state tells."""
        self._published = {
            MemberId(int.from_bytes(key, "big")): raft_pb2.PublishMember.FromString(row)
            for key, row in txn.scan(MEMBER)
        }

    def publish(self, txn: WriteTxn, attributes: raft_pb2.PublishMember) -> None:
        """A committed entry tells about a member."""
        member_id = MemberId(attributes.id)
        row = attributes.SerializeToString(deterministic=True)
        txn.put(MEMBER, attributes.id.to_bytes(8, "big"), row)
        self._published = {**self._published, member_id: attributes}

    def published(self, member: MemberId) -> raft_pb2.PublishMember | None:
        """What a member told about itself, None if nothing yet."""
        return self._published.get(member)

    @property
    def all_published(self) -> Mapping[MemberId, raft_pb2.PublishMember]:
        """What each member told; never changed in place."""
        return self._published

    def client_address(self, member: MemberId) -> str | None:
        """Where clients reach a member, host:port."""
        told = self._published.get(member)
        if told is None or not told.client_urls:
            return None
        return told.client_urls[0].removeprefix("http://").removeprefix("https://")

    def name(self, member: MemberId) -> str:
        """Its name, for people."""
        return self.members[member].name if member in self.members else f"{member:x}"
