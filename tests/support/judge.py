"""Judges one damaged data directory: found, harmless, or a wrong answer.

The directory is opened as a node opens it, then verified. One that is not found damaged serves:
every answer is compared with the truth, after some thousand writes again, and after a restart.
A process of its own does it, since damage may end one by a signal, or never end.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from support.answers import (
    WrongError,
    check_compares,
    check_creates,
    check_gets,
    check_history,
    check_leases,
    check_lists,
    check_node,
    check_sessions,
    check_state,
    expect,
    sample,
)
from support.served import NAME, TERM, Machine, Sound, batch_of
from support.verifying import VerifyingProcess

from kvpb.raft_pb2 import HardState
from kvserver.errors import DataDirError
from kvserver.raft.entry import REGULAR
from kvserver.raft.identity import check_name, load_identity, refuse_lost_identity
from kvserver.raft.journal import DurableJournal
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage

SAMPLE: Final = 500
COMMANDS_IN_ENTRY: Final = 20
ENTRIES_IN_COMMIT: Final = 2


class Judge:
    """Of one directory, which is worthless afterwards."""

    def __init__(
        self,
        sound: Sound,
        data_dir: Path,
        on_step: Callable[[str], None],
        *,
        late: bool = False,
        limit_s: int = 60,
    ) -> None:
        """Prepare.

        Args:
            sound: the truth; it is changed with what is written.
            data_dir: a damaged copy.
            on_step: told what is done next.
            late: the verification begins when the log is applied and committed already.
            limit_s: of a verification.
        """
        self._sound = sound
        self._truth = sound.truth
        self._step = on_step
        self._entries = dict(sound.entries)
        self._state = sound.hard_state
        self._late = late
        environment = sound.environment.relative_to(sound.data_dir)
        self._verifying, self._verifying_later = (
            VerifyingProcess(data_dir / environment, limit_s) for _ in range(2)
        )
        self._data = DataDir(data_dir)

    def run(self, writes: int) -> None:
        """Open, verify, serve, write, serve, restart, serve.

        Raises:
            WrongError: a client would have been told what is not true.
            Exception: the node would have ended.
        """
        self._begin()
        if not self._late:
            self._step("replay")
            self._replay()
        self._step("serve")
        self._serve(sorted(self._truth.rows))
        self._step("write")
        self._write(writes)
        self._step("serve later")
        self._serve(sample(self._truth, SAMPLE), moments_max=1)
        self._storage.close()
        self._step("restart")
        self._open()
        self._replay()
        self._serve(sample(self._truth, SAMPLE), moments_max=1)
        self._step("verify later")
        self._verifying_later.verify()
        self._storage.close()

    def _begin(self) -> None:
        """Open and verify."""
        try:
            self._open()
            with self._storage.read():  # as long as it is verified, what is there stays there
                if self._late:
                    self._step("replay")
                    self._replay()
                self._step("verify")
                self._verifying.verify()
        except (DataDirError, WrongError):
            raise
        except Exception:  # a node looks whether there is damage behind it, or starts over: in the
            # end it begins with the verification
            self._step("verify")
            self._verifying.verify()
            raise

    def _open(self) -> None:
        """As a node does, up to where it would take part."""
        self._storage = LmdbStorage(self._data.environment())
        refuse_lost_identity(self._storage)
        with self._storage.read() as txn:
            identity = load_identity(txn)
        if identity is None:
            raise WrongError("damage is taken for a new directory")
        check_name(identity, NAME)
        self._machine = Machine(self._storage)
        journal = DurableJournal(self._storage, self._machine.applier.applied_index)
        state = HardState.FromString(self._state)
        expect(journal.term, state.term, "the term")
        expect(journal.voted_for, state.voted_for, "the vote")

    def _replay(self) -> None:
        """Apply what only the log holds; nothing that was acknowledged may be missing in it."""
        log, applier = self._storage.log, self._machine.applier
        expect(log.last_index, max(self._entries), "the newest entry of the log")
        for index in range(log.first_index, log.last_index + 1):
            if index in self._entries:
                payload, _, _ = log.read(index)
                expect(payload, self._entries[index], f"entry {index} of the log")
        for index in range(applier.applied_index + 1, log.last_index + 1):
            payload, _, term = log.read(index)
            applier.apply(index, term, payload[1:])
        self._commit()

    def _commit(self) -> None:
        self._machine.applier.stage()
        self._storage.commit()

    def _serve(self, keys: list[bytes], moments_max: int | None = None) -> None:
        """Ask for everything; for single keys only these, for the past all or some moments."""
        truth = self._truth
        with self._storage.read() as txn:
            check_state(txn, truth)
            check_node(txn, self._machine, self._sound)
            check_gets(txn, truth, keys)
            for revision in (0, *sorted(truth.moments)[:moments_max]):
                check_lists(txn, truth, revision)
            check_history(txn, truth)
            check_compares(txn, truth, keys)
            check_leases(txn, truth)
        check_creates(self._storage, truth, keys)
        check_sessions(self._storage, truth)

    def _write(self, count: int) -> None:
        truth, rng, log = self._truth, self._truth.rng, self._storage.log
        keys = sorted(truth.rows)
        for entry in range(count // COMMANDS_IN_ENTRY):
            commands = []
            for number in range(COMMANDS_IN_ENTRY):
                key = rng.choice(keys)
                if number == 0 and key in truth.rows:
                    commands.append(truth.delete(key))
                elif number == 1:
                    commands.append(truth.txn(*rng.sample(keys, 3)))
                elif number == 2:
                    commands.append(truth.put(key + b"/new"))
                else:
                    commands.append(truth.put(key, rng.choice([0, 0, 1000])))
            truth.log_time_ms += 7
            batch = batch_of(commands, truth.log_time_ms)
            index = log.last_index + 1
            log.append((REGULAR + batch, index, TERM))
            log.sync(self._state)
            self._entries[index] = REGULAR + batch
            for result in self._machine.apply(batch):
                if isinstance(result, Exception):
                    raise WrongError(f"a write was refused: {result!r}")
            self._machine.applier.work()
            if entry % ENTRIES_IN_COMMIT == 0:
                self._commit()
        self._commit()
