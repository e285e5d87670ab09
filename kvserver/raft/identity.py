"""Who a node is, how a cluster is born, and which peer is believed. Decisions are pure.

A data directory has an incarnation, drawn when it is made. A cluster is born once: every initial
member first *pins* the incarnations of all, and is *established*, hence may vote, only when it
knows that all have pinned the same. From then on a member with another incarnation is one that lost
its disk, and with it the memory of its votes: it is refused under its old id.

Invariant: if any member is established, all members have durably pinned the same incarnations.
"""

import hashlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from kvpb import raft_pb2
from kvserver.errors import DataDirError, UsageError
from kvserver.raft.entry import Entry, MemberId
from kvserver.raft.journal import begin_log, load_configuration, store_configuration
from kvserver.raft.membership import Configuration
from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.rows import damaged
from kvserver.storage.schema import CLUSTER, DATABASES, IDENTITY, META

PROTOCOL_VERSION: Final = 1
"""Of the peer messages; both ends must have the same."""

_IDENTITY_KEY: Final = b"identity"
_FIRST_INDEX: Final = 1


@dataclass(frozen=True)
class ClusterPlan:
    """The members a cluster starts with. The same on all of them, so it is entry 1 of every log."""

    cluster_id: int
    members: Mapping[MemberId, raft_pb2.Member]

    def member_named(self, name: str) -> MemberId | None:
        """Id of the member of that name."""
        for member_id, member in self.members.items():
            if member.name == name:
                return member_id
        return None

    def configuration(self, index: int = _FIRST_INDEX) -> Configuration:
        """As the first entry of the log names it."""
        return Configuration(index, self.cluster_id, self.members)


def plan_cluster(members: Mapping[str, str], token: str) -> ClusterPlan:
    """Plan of a cluster of `members`, name -> peer address; ids follow from names and token."""
    planned = {}
    for name, address in members.items():
        member_id = MemberId(digest(token, name, address))
        planned[member_id] = raft_pb2.Member(id=member_id, name=name, peer_address=address)
    cluster_id = digest(token, *(f"{member_id:x}" for member_id in sorted(planned)))
    return ClusterPlan(cluster_id, planned)


def digest(*parts: str) -> int:
    """64 bits that depend on every part, never 0."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


# ---------------------------------------------------------------------------- the disk


def load_identity(txn: ReadTxn) -> raft_pb2.Identity | None:
    """The identity stored in a data directory, None in a new one."""
    row = txn.get(IDENTITY, _IDENTITY_KEY)
    return None if row is None else raft_pb2.Identity.FromString(row)


def load_plan(txn: ReadTxn) -> ClusterPlan:
    """The members as of the applied index."""
    configuration = load_configuration(txn)
    return ClusterPlan(configuration.cluster_id, configuration.members)


def store_identity(storage: Storage, identity: raft_pb2.Identity) -> None:
    """Put the identity into the turn's transaction."""
    storage.writer().put(IDENTITY, _IDENTITY_KEY, identity.SerializeToString())


def refuse_lost_identity(storage: Storage) -> None:
    """A state that belongs to nobody has lost its owner: it must not become somebody else's.

    Raises:
        DataDirError: it has rows, and no identity.
    """
    with storage.read() as txn:
        if load_identity(txn) is None and (txn.entries(CLUSTER) or txn.entries(META)):
            raise damaged("the data directory does not say whose it is")


def open_identity(
    storage: Storage, name: str, plan: ClusterPlan | None, incarnation: int
) -> tuple[raft_pb2.Identity, ClusterPlan]:
    """Identity and members of this node: those on disk, or new ones, durably written.

    Args:
        storage: of the node.
        name: what the operator calls the node.
        plan: what --initial-cluster says; needed only by a new directory.
        incarnation: 64 random bits for a new directory.

    Raises:
        DataDirError: the directory belongs to another member.
        UsageError: a new directory and no plan that names this node.
    """
    with storage.read() as txn:
        identity = load_identity(txn)
        if identity is not None:
            check_name(identity, name)
            return identity, load_plan(txn)
    if plan is None:
        raise UsageError(f"--initial-cluster does not name this node, '{name}' (--name)")
    return begin_member(storage, name, plan, incarnation), plan


def begin_member(
    storage: Storage,
    name: str,
    plan: ClusterPlan,
    incarnation: int,
    *,
    index: int = _FIRST_INDEX,
    term: int = 0,
) -> raft_pb2.Identity:
    """Make a member that was never started, with a log of one entry, durably.

    Args:
        storage: without a log; what else is in its open transaction becomes durable too.
        name: of the member.
        plan: of the cluster.
        incarnation: 64 random bits.
        index: of the entry, which names the members and is applied: behind all of a given state.
        term: of the entry.

    Raises:
        UsageError: the plan does not name this member.
    """
    member_id = plan.member_named(name)
    if member_id is None:
        raise UsageError(f"--initial-cluster does not name this node, '{name}' (--name)")
    identity = raft_pb2.Identity(
        cluster_id=plan.cluster_id, member_id=member_id, name=name, incarnation=incarnation
    )
    if len(plan.members) == 1:
        identity.pins[member_id] = incarnation
        identity.established = True
    writer = storage.writer()
    store_identity(storage, identity)
    configuration = plan.configuration(index)
    store_configuration(writer, configuration)
    first = Entry(configuration.payload(), index, term)
    begin_log(storage, raft_pb2.HardState(term=term, commit_index=index), first)
    storage.commit(durable=True)
    return identity


def open_joining(storage: Storage, name: str, incarnation: int) -> raft_pb2.Identity:
    """Identity of a node that waits to be taken in: the one on disk, or a new one, written.

    Raises:
        DataDirError: the directory belongs to another member.
    """
    with storage.read() as txn:
        identity = load_identity(txn)
    if identity is None:
        identity = raft_pb2.Identity(name=name, incarnation=incarnation, joining=True)
        store_identity(storage, identity)
        storage.commit(durable=True)
    check_name(identity, name)
    return identity


def forget_birth(storage: Storage) -> None:
    """A member that never voted found that its cluster knows an older directory: join anew."""
    with storage.read() as txn:
        identity = load_identity(txn)
    assert identity is not None
    assert not identity.established, "it may have voted"
    # its log has no meaning any more: `settle_in` begins another
    writer = storage.writer()
    for database in DATABASES:  # a restored member has a state already
        if database is not IDENTITY:
            writer.clear(database)
    fresh = raft_pb2.Identity(
        name=identity.name, incarnation=identity.incarnation, joining=True, lost_disk=True
    )
    store_identity(storage, fresh)
    storage.commit(durable=True)


def settle_in(storage: Storage, identity: raft_pb2.Identity, welcome: raft_pb2.Welcome) -> None:
    """Become the member that the cluster says; the log begins empty, before its first entry."""
    membership = welcome.membership
    configuration = Configuration(
        0, membership.cluster_id, {MemberId(member.id): member for member in membership.members}
    )
    mine = raft_pb2.Identity(
        cluster_id=membership.cluster_id, member_id=welcome.member_id, name=identity.name,
        incarnation=identity.incarnation, established=True,
    )  # fmt: skip
    writer = storage.writer()
    store_identity(storage, mine)
    store_configuration(writer, configuration)
    begin_log(storage, raft_pb2.HardState(), Entry(configuration.payload(), 0, 0))
    storage.commit(durable=True)


def check_name(identity: raft_pb2.Identity, name: str) -> None:
    """Raise DataDirError if a directory belongs to a member of another name."""
    if identity.name != name:
        raise DataDirError(
            f"--data-dir belongs to member '{identity.name}', not to '{name}'; "
            "name the right directory or the right --name"
        )


# ---------------------------------------------------------------------------- decisions


class PeerLostDisk(str):
    """A reason to refuse a member that lost its directory: it may come back as a new one."""

    __slots__ = ()


class OwnDiskNew(str):
    """A reason to refuse a member that knows an older directory of this node."""

    __slots__ = ()


class NotMember(str):
    """A reason to refuse a node that was removed: it is no member and will be none."""

    __slots__ = ()


def refuse_reason(
    mine: raft_pb2.Identity, configuration: Configuration, hello: raft_pb2.Hello
) -> str | None:
    """Why this peer is not believed, None if it is."""
    if (reason := _strange(mine, hello)) is not None:
        return reason
    new = not mine.established and not mine.pins
    if new and hello.established and hello.pins.get(mine.member_id) != mine.incarnation:
        return OwnDiskNew("this node's data directory is new, but the cluster knows an older one")
    member = configuration.members.get(MemberId(hello.member_id))
    if member is None and hello.established and hello.membership_index > configuration.index:
        return None  # it knows newer members than this node, which may have to learn them from it
    if member is None:
        return NotMember(f"{hello.member_id:x} is not a member of this cluster (any more)")
    pinned = member.incarnation or mine.pins.get(hello.member_id)
    if pinned is not None and pinned != hello.incarnation:
        return PeerLostDisk(
            f"member '{member.name}' lost its data directory and with it the memory of its votes; "
            "it can't take part under its old id"
        )
    return None


def _strange(mine: raft_pb2.Identity, hello: raft_pb2.Hello) -> str | None:
    """Why no member of this cluster says such a hello."""
    if hello.protocol != PROTOCOL_VERSION:
        return f"peer protocol {hello.protocol}, this node speaks {PROTOCOL_VERSION}"
    if hello.cluster_id != mine.cluster_id:
        return (
            f"it belongs to cluster {hello.cluster_id:x}, this node to {mine.cluster_id:x}; "
            "--initial-cluster and --initial-cluster-token must be the same on all members"
        )
    return "it has the id of this node" if hello.member_id == mine.member_id else None


def known_pins(mine: raft_pb2.Identity, configuration: Configuration) -> dict[int, int]:
    """Incarnation of each member as far as known: from the log, else from the birth."""
    pins = dict(mine.pins)
    pins |= {m: each.incarnation for m, each in configuration.members.items() if each.incarnation}
    return pins


def with_pins(configuration: Configuration, pins: Mapping[int, int]) -> Configuration | None:
    """The configuration with the incarnations that it lacks; None if it lacks none that is known.

    From then on who joins later knows them too: a member that lost its disk is recognized by all.
    """
    fresh = dict(configuration.members)
    for member_id, member in configuration.members.items():
        if not member.incarnation and pins.get(member_id):
            fresh[member_id] = raft_pb2.Member()
            fresh[member_id].CopyFrom(member)
            fresh[member_id].incarnation = pins[member_id]
    return None if fresh == dict(configuration.members) else configuration.replaced(fresh)


def welcome(configuration: Configuration, hello: raft_pb2.Hello) -> raft_pb2.Welcome | None:
    """What a node that asks to be taken in is told; None if it is no member yet."""
    for member_id, member in configuration.members.items():
        if member.incarnation == hello.incarnation:
            membership = raft_pb2.Membership(
                cluster_id=configuration.cluster_id, members=configuration.members.values()
            )
            return raft_pb2.Welcome(member_id=member_id, membership=membership)
    return None


def take_in(
    configuration: Configuration, hello: raft_pb2.Hello, present: AbstractSet[MemberId]
) -> Configuration | None:
    """The configuration with the node that asks to be taken in; None if it is not expected.

    Args:
        configuration: in force.
        hello: of the node.
        present: members that are connected: nobody takes their place.
    """
    asking = hello.joining
    for member_id, member in configuration.members.items():
        if member.peer_address != asking.peer_address or member_id in present:
            continue
        fresh = raft_pb2.Member()
        fresh.CopyFrom(member)
        fresh.incarnation = hello.incarnation
        fresh.name = asking.name
        if not member.incarnation and not member.name:  # added, and not seen before
            return configuration.replaced({**configuration.members, member_id: fresh})
        if member.name == asking.name:  # its directory is another one now
            new_id = MemberId(
                digest(str(configuration.cluster_id), asking.name, f"{hello.incarnation:x}")
            )
            fresh.id, fresh.learner, fresh.promote_in_step = new_id, True, not member.learner
            others = {m: each for m, each in configuration.members.items() if m != member_id}
            return configuration.replaced({**others, new_id: fresh})
    return None


def next_identity(
    mine: raft_pb2.Identity, plan: ClusterPlan, hellos: Mapping[MemberId, raft_pb2.Hello]
) -> raft_pb2.Identity | None:
    """The next step of being born, None if there is none yet.

    Args:
        mine: as stored.
        plan: the initial members.
        hellos: latest believed hello of each peer whose connection is open.
    """
    if mine.established:
        return None
    for hello in hellos.values():
        # its pins may name newer members than those of the birth
        if hello.established and hello.pins.get(mine.member_id) == mine.incarnation:
            return _with_pins(mine, dict(hello.pins), established=True)
    if any(member_id not in hellos for member_id in plan.members if member_id != mine.member_id):
        return None
    seen = {int(member_id): hello.incarnation for member_id, hello in hellos.items()}
    seen[mine.member_id] = mine.incarnation
    if not mine.pins:
        return _with_pins(mine, seen, established=False)
    if all(dict(hello.pins) == dict(mine.pins) for hello in hellos.values()):
        return _with_pins(mine, dict(mine.pins), established=True)
    return None


def _with_pins(
    mine: raft_pb2.Identity, pins: dict[int, int], *, established: bool
) -> raft_pb2.Identity:
    fresh = raft_pb2.Identity()
    fresh.CopyFrom(mine)
    fresh.pins.clear()
    fresh.pins.update(pins)
    fresh.established = established
    return fresh
