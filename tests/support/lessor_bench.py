"""A lessor on a bench: its log is a list, its clock and its loop are simulated."""

import asyncio
import random
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from support.memory_storage import MemoryStorage
from support.sim_disk import SimClock
from support.virtual_loop import VirtualLoop

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import LeaseGrantRequest, LeaseRevokeRequest
from kvserver.errors import LeaseNotFoundError, NotActiveError, RequestError
from kvserver.mvcc.leases import leases_after
from kvserver.mvcc.store import Writer
from kvserver.pipeline import lessor as module
from kvserver.pipeline.lessor import Lessor
from kvserver.pipeline.outcome import Response

T = TypeVar("T")

LOOK = module.LOOK_S + 0.01


class Log:
    """What survives an active: the rows, and the time they know."""

    def __init__(self, clock: SimClock) -> None:
        self.clock = clock
        self.storage = MemoryStorage()
        self.stamped_ms = 0
        self.commands: list[Command] = []
        self.ttl_s_min = 1


class Bench:
    """An active with its lessor; what it proposes is applied at once unless told otherwise."""

    def __init__(self, log: Log, term: int = 1) -> None:
        self.log = log
        self.term = term
        self.clock = log.clock
        self.loop = VirtualLoop(log.clock)  # type: ignore[abstract] # nobody asks for the rest
        self._base_ms, self._began = log.stamped_ms, log.clock.now
        self.confirmed = True
        """Whether read rounds succeed; None: they do not end."""
        self.outcomes: list[RequestError | None] = []
        """Of the next proposals; those not named here are applied."""
        self.in_flight: list[tuple[Command, asyncio.Future[Response]]] | None = None
        """Appended in this order and not committed yet; None: what is proposed is applied at once.
        Whoever gives up waiting takes nothing back."""
        self.read_rounds = 0
        self.lessor = Lessor(
            log.storage, log.clock, random.Random(1), ttl_s_min=lambda: log.ttl_s_min,
            propose=self.propose, linearizable=self.linearizable,
            log_time_ms=self.log_time_ms,
            stamped_ms=lambda: log.stamped_ms, on_failure=self._fail,
        )  # fmt: skip

    def _fail(self, error: BaseException) -> None:
        self.loop.failure = error

    def log_time_ms(self) -> int:
        return self._base_ms + int((self.clock.now - self._began) * 1000)

    async def linearizable(self) -> None:
        self.read_rounds += 1
        await asyncio.sleep(0.001)
        if not self.confirmed:
            raise NotActiveError

    async def propose(self, command: Command) -> Response:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        if self.in_flight is None:
            return self._apply(command)
        future: asyncio.Future[Response] = self.loop.create_future()
        self.in_flight.append((command, future))
        return await future

    def hold_commits(self) -> None:
        """From now on what is proposed is appended, but not committed."""
        self.in_flight = []

    def commit(self) -> None:
        """Commit and apply all that was held, and from now on everything at once."""
        assert self.in_flight is not None
        held, self.in_flight = self.in_flight, None
        for command, future in held:
            response = self._apply(command)
            if not future.done():
                future.set_result(response)

    def _apply(self, command: Command) -> Response:
        self.log.stamped_ms = self.log_time_ms()
        self.log.commands.append(command)
        writer = Writer(self.log.storage.writer(), 1, self.log.stamped_ms)
        response: Response = None
        match command.WhichOneof("request"):
            case "lease_grant":
                response = writer.grant(command.lease_grant)
            case "renew_leases":
                writer.leases.renew(command.renew_leases.ids)
            case "expire_leases" if command.expire_leases.term == self.term:
                for lease in command.expire_leases.ids:
                    try:
                        writer.revoke(LeaseRevokeRequest(ID=lease))
                    except LeaseNotFoundError:
                        continue
        writer.flush()
        self.log.storage.commit()
        self.lessor.publish(writer.leases.changes)
        return response

    def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        self.loop.run()
        while (due := self.loop.due()) <= end:
            self.clock.now = max(self.clock.now, due)
            self.loop.run()
        self.clock.now = end
        self.loop.run()

    def stand_still(self, seconds: float) -> None:
        """The process is paused; then what was due is done."""
        self.clock.now += seconds
        self.loop.run()

    def begin(self, work: Awaitable[T]) -> "asyncio.Task[T]":
        async def wait() -> T:
            return await work

        return self.loop.create_task(wait())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        task = self.begin(work)
        self.pass_time(0.05)
        return task.result()

    def activate(self) -> "Bench":
        self.become_active()
        self.pass_time(0.02)
        return self

    def become_active(self) -> None:
        self.loop.call_soon(self.lessor.activate, self.term)
        self.loop.run()

    def become_standby(self) -> None:
        self.loop.call_soon(self.lessor.close)
        self.loop.run()

    def crash(self) -> "Bench":
        """Another node takes over at once."""
        self.loop.kill()
        return Bench(self.log, self.term + 1).activate()

    def grant(self, lease: int, ttl_s: int) -> None:
        self.do(self.lessor.grant(LeaseGrantRequest(ID=lease, TTL=ttl_s)))

    def keep(self, *leases: int) -> list[int]:
        return self.do(self.lessor.keep_alive(leases))

    @property
    def living(self) -> list[int]:
        with self.log.storage.read() as txn:
            return sorted(lease for lease, _ in leases_after(txn, None))

    def kinds(self) -> list[str]:
        return [str(command.WhichOneof("request")) for command in self.log.commands]

    def let_an_end_be_in_flight(self) -> None:
        """That of the lease 1 is appended, and not committed."""
        self.pass_time(10)  # so that the log need not hear how late it is
        self.grant(1, 2)
        self.pass_time(1.9)
        self.hold_commits()
        self.pass_time(0.1 + LOOK)
        assert self.in_flight is not None
        assert [command.expire_leases.ids for command, _ in self.in_flight] == [[1]]
        assert self.living == [1]
