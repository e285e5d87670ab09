"""A data directory as a node leaves it behind, and the truth about it. The same bytes each time.

Keys with history, some of them deleted or compacted, leases with keys, sessions with answers,
members and an alarm; beside the state a log of several segments whose newest entries the state does
not hold yet. Older copies of the state's file are kept for damage that brings back what was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final
from unittest import mock

from support.truth import Truth

from kvpb.raft_pb2 import (
    ChangeAlarm,
    Command,
    CommandBatch,
    HardState,
    Identity,
    PublishMember,
    SetFeatureLevel,
)
from kvpb.rpc_pb2 import NOSPACE, AlarmRequest
from kvserver.mvcc.history import Change
from kvserver.mvcc.leases import LeaseChange
from kvserver.pipeline.alarms import Alarm
from kvserver.pipeline.applier import Applier
from kvserver.pipeline.features import FEATURE_LEVEL, batch_format
from kvserver.pipeline.outcome import Result
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import REGULAR, MemberId
from kvserver.raft.identity import begin_member, plan_cluster, store_identity
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage

NAME: Final = "n1"
TERM: Final = 3
LEASES: Final = 12
SESSIONS: Final = 6
HOT_KEYS: Final = 4
HOT_CHANGES: Final = 500
"""So many that LMDB keeps the history of such a key in a tree of its own."""

FORGOTTEN: Final = b"a key whose history is compacted, and all of it"
FORGOTTEN_CHANGES: Final = 120

TAIL: Final = 6
"""Entries of the log that the state does not hold."""

SEGMENT_BYTES: Final = 192 << 10
GROWN_BYTES: Final = 32 << 10
"""Small, so that a small log has several segments."""


@dataclass
class Sound:
    """A closed data directory, and what it holds."""

    data_dir: Path
    truth: Truth
    """With the entries that only the log holds."""
    identity: bytes
    configuration: bytes
    """The members, as the log names them."""
    published: dict[MemberId, bytes]
    """What they have told."""
    alarm: Alarm
    """That is raised by hand."""
    entries: dict[int, bytes]
    """Payloads of the log that must not be lost."""
    hard_state: bytes
    older: list[Path] = field(default_factory=list)
    """Copies of the file of the state, the oldest first."""

    @property
    def environment(self) -> Path:
        """Folder of its state."""
        return self.data_dir / (self.data_dir / "CURRENT").read_text().strip()


class Machine:
    """An applier on a real storage; it keeps what it is told for whoever asked."""

    def __init__(self, storage: LmdbStorage) -> None:
        self.results: list[Result] = []
        self.roster = Roster()
        self.applier = Applier(storage, self.roster, self._tell)

    def _tell(
        self, index: int, term: int, results: list[Result], changes: list[Change],
        leases: list[LeaseChange],
    ) -> None:  # fmt: skip
        self.results = results

    def apply(self, batch: bytes) -> list[Result]:
        """Apply one entry; what its commands were answered."""
        self.results = []
        self.applier.apply(self.applier.applied_index + 1, TERM, batch)
        return self.results


def batch_of(commands: list[Command], log_time_ms: int) -> bytes:
    batch = CommandBatch(
        format=batch_format(FEATURE_LEVEL), log_time_ms=log_time_ms, commands=commands
    )
    return batch.SerializeToString(deterministic=True)


class _Builder:
    """Writes the directory: what the truth is told goes to the log, then to the state."""

    def __init__(self, folder: Path, keys: int, seed: int) -> None:
        self._folder = folder
        self._data = DataDir(folder / "data")
        self._storage = LmdbStorage(self._data.environment())
        self.truth = Truth(Random(seed))
        self._keys = keys
        members = {f"n{i}": f"127.0.0.1:{7000 + i}" for i in (1, 2, 3)}
        self._plan = plan_cluster(members, "damage")
        self._alarm = Alarm(max(self._plan.members), NOSPACE)
        self._begin()
        self._machine = Machine(self._storage)
        self._state = b""
        self._entries: dict[int, bytes] = {}
        self._waiting: list[Command] = []
        self._older: list[Path] = []

    def _begin(self) -> None:
        identity = begin_member(self._storage, NAME, self._plan, 101)
        for number, member in enumerate(sorted(self._plan.members), 1):
            identity.pins[member] = 100 + number
        identity.pins[identity.member_id] = identity.incarnation
        identity.established = True
        store_identity(self._storage, identity)
        self._storage.commit(durable=True)
        self._identity: Identity = identity

    def _do(self, *commands: Command) -> None:
        self._waiting += commands
        if len(self._waiting) >= 20:
            self._entry()

    def _entry(self, *, apply: bool = True) -> None:
        """Put what waits into the log, synced, and into the state."""
        commands, self._waiting = self._waiting, []
        batch = batch_of(commands, self.truth.log_time_ms)
        log = self._storage.log
        index = log.last_index + 1
        state = HardState(term=TERM, voted_for=self._identity.member_id, commit_index=index - 1)
        self._state = state.SerializeToString(deterministic=True)
        log.append((REGULAR + batch, index, TERM))
        log.sync(self._state)
        self._entries[index] = REGULAR + batch
        if apply:
            assert not [each for each in self._machine.apply(batch) if isinstance(each, Exception)]

    def _commit(self) -> None:
        if self._waiting:
            self._entry()
        self._machine.applier.stage()
        self._storage.commit()
        self.truth.log_time_ms += 7  # nothing waits that was promised at the time before

    def _keep_older(self) -> None:
        older = self._folder / f"older-{len(self._older)}.mdb"
        older.write_bytes((self._storage.folder / "data.mdb").read_bytes())
        self._older.append(older)

    def key(self, number: int) -> bytes:
        """One in forty is long: other keys between two of its kind then need long separators."""
        tail = b"/" + b"x" * 300 if number % 40 == 0 else b""
        return b"key/%06d" % number + tail

    def build(self) -> Sound:
        self._fill()
        self._overwrite(self._keys // 2)
        self._keep_older()
        self._compact_partly()
        self.truth.remember()
        self._overwrite(self._keys // 8)
        self._commit()
        self._keep_older()
        with self._storage.read():  # what was is kept from here on, until all is written
            self._overwrite(self._keys // 10)
            self.truth.remember()
            self._commit()
            self._keep_older()
            self._overwrite(30)
            self._commit()
        self._trim_log()
        self._grow_tail()
        self._storage.close()
        self._data.close()
        published = {member: self._about(member) for member in self._plan.members}
        return Sound(
            data_dir=self._folder / "data",
            truth=self.truth,
            identity=self._identity.SerializeToString(deterministic=True),
            configuration=self._plan.configuration().payload(),
            published=published,
            alarm=self._alarm,
            entries=self._entries,
            hard_state=self._state,
            older=self._older,
        )

    def _about(self, member: MemberId) -> bytes:
        urls = [f"http://127.0.0.1:{member % 1000 + 2000}"]
        about = PublishMember(id=member, client_urls=urls, version="1", feature_level=FEATURE_LEVEL)
        return about.SerializeToString(deterministic=True)

    def _fill(self) -> None:
        truth = self.truth
        for member in self._plan.members:
            self._do(Command(publish_member=PublishMember.FromString(self._about(member))))
        self._do(Command(set_feature_level=SetFeatureLevel(level=FEATURE_LEVEL)))
        alarm = AlarmRequest(
            action=AlarmRequest.ACTIVATE, memberID=self._alarm.member, alarm=self._alarm.kind
        )
        self._do(Command(change_alarm=ChangeAlarm(request=alarm)))
        self._entry()
        self._do(*(truth.grant(1000 + i, 60 + i) for i in range(LEASES)))
        self._do(*(truth.grant(2000 + i, 90, session=True) for i in range(SESSIONS)))
        self._commit()
        numbers = list(range(self._keys))
        truth.rng.shuffle(numbers)
        for count, number in enumerate(numbers, 1):
            lease = 1000 + number % LEASES if number % 10 == 0 else 0
            self._do(truth.put(self.key(number), lease))
            if count % 500 == 0:
                self._commit()
        for count in range(HOT_KEYS * HOT_CHANGES):
            self._do(truth.put(b"hot/%d" % (count % HOT_KEYS)))
        self._commit()
        self._do(*(truth.put(FORGOTTEN) for _ in range(FORGOTTEN_CHANGES)))
        self._do(truth.delete(FORGOTTEN))
        self._commit()

    def _overwrite(self, count: int) -> None:
        """Every kind of change, in a mix."""
        truth, rng = self.truth, self.truth.rng
        for done in range(count):
            what = rng.random()
            if what < 0.6:
                self._do(truth.put(truth.any_key(), rng.choice([0, 0, 0, 1000 + done % LEASES])))
            elif what < 0.7:
                self._do(truth.delete(truth.any_key()))
            elif what < 0.72:
                self._do(truth.delete(*truth.neighbours(5)))
            elif what < 0.8:
                self._do(truth.txn(*rng.sample(sorted(truth.rows), 3)))
            elif what < 0.9:
                self._do(truth.put(self.key(rng.randrange(self._keys))))
            else:
                session = 2000 + rng.randrange(SESSIONS)
                if len(truth.answered[session]) < 200:
                    self._do(truth.numbered(session, truth.any_key()))
            if done % 100 == 99:
                self._commit()

    def _compact_partly(self) -> None:
        """As if the node was stopped while it removed what is compacted."""
        self._do(self.truth.compact(self.truth.revision - self._keys // 4))
        self._commit()
        self._machine.applier.work()
        self._commit()

    def _trim_log(self) -> None:
        log = self._storage.log
        log.trim(log.last_index - (log.last_index - log.first_index) * 2 // 3)
        self._entries = {i: each for i, each in self._entries.items() if i >= log.first_index}

    def _grow_tail(self) -> None:
        """The log goes on, and the state names how far; it holds nothing of it."""
        for _ in range(TAIL):
            self._waiting += [self.truth.put(self.truth.any_key()) for _ in range(3)]
            self._entry(apply=False)
        self._storage.commit()


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    rng = Random(seed)
    with (
        mock.patch("kvserver.storage.env.secrets.randbits", rng.getrandbits),
        mock.patch("kvserver.storage.log_files.SEGMENT_BYTES", SEGMENT_BYTES),
        mock.patch("kvserver.storage.log_files.GROWN_BYTES", GROWN_BYTES),
    ):
        yield


def build(folder: Path, keys: int, seed: int = 1) -> Sound:
    """Make a data directory in an empty folder."""
    with _repeatable(seed):
        return _Builder(folder, keys, seed).build()
