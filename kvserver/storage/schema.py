"""The table of databases in the one environment: what each holds, and who owns it.

Every value ends with a crc32 u32 over key and content (rows.py); `layout` names the content.
A snapshot or a backup carries replicated databases only; node-local ones never leave their node.
The log and the hard state are not in databases: log_files.py.
"""

from dataclasses import dataclass

FORMAT_VERSION = 2
"""Layout of all below, and of the log (log_batch.py). A directory with another one is refused."""

GENERATION = 3
"""Newest `since` below. In an environment of an older one the databases that are younger are made
when it is opened. An older version does not see them; it refuses data that uses them by the feature
level (`pipeline/features.py`)."""


@dataclass(frozen=True, eq=False)
class Database:
    """One named database: keys binary and ordered."""

    name: bytes
    owner: str
    """The room that reads and writes it."""
    replicated: bool
    since: int
    """Generation it appeared in."""
    layout: str
    """Key -> value."""
    many: bool = False
    """A key may have many values, ordered bytewise, of one length, each at most 507 bytes."""


IDENTITY = Database(
    b"identity",
    "raft, storage",
    replicated=False,
    since=1,
    layout="b'identity' -> kv.v1.Identity; b'format', b'generation' -> u32; "
    "b'log' -> lineage, synced batch u64",
)
CLUSTER = Database(
    b"cluster", "raft", replicated=True, since=1,
    layout="b'membership' -> kv.v1.Membership as of the applied index",
)  # fmt: skip
META = Database(
    b"meta", "pipeline, mvcc", replicated=True, since=1,
    layout="applied_index, applied_term, revision, compacted_revision, ... -> u64 big-endian",
)  # fmt: skip
KV = Database(
    b"kv", "mvcc", replicated=True, since=1,
    layout="key -> create, mod, version u64, lease i64 big-endian, value",
)  # fmt: skip
HISTORY = Database(
    b"history", "mvcc", replicated=True, since=1,
    layout="revision u64, sub u32 big-endian -> kind u8, key length u16, key, row as in kv",
)  # fmt: skip
KEY_HISTORY = Database(
    b"key_history", "mvcc", replicated=True, since=1, many=True,
    layout="key -> revision u64, sub u32 big-endian, kind u8: one for each change",
)  # fmt: skip
MEMBER = Database(
    b"member", "pipeline", replicated=True, since=1,
    layout="member id u64 big-endian -> kv.v1.PublishMember",
)  # fmt: skip
ALARM = Database(
    b"alarm", "pipeline", replicated=True, since=2,
    layout="member id u64, kind u8 big-endian -> 1 if the cluster has raised it by itself, else 0",
)  # fmt: skip

LEASE = Database(
    b"lease", "mvcc", replicated=True, since=2,
    layout="id i64 -> ttl_s, deadline_ms in log time: u64 big-endian",
)  # fmt: skip
LEASE_KEY = Database(
    b"lease_key", "mvcc", replicated=True, since=2, layout="id i64 big-endian, key -> nothing"
)
SESSION = Database(
    b"session", "mvcc", replicated=True, since=3,
    layout="id of its lease i64 big-endian -> kv.v1.SessionRow",
)  # fmt: skip

DATABASES = (
    IDENTITY, CLUSTER, META, KV, HISTORY, KEY_HISTORY, MEMBER, ALARM,
    LEASE, LEASE_KEY, SESSION,
)  # fmt: skip
