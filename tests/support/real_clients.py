"""Clients of real nodes: everything they see is recorded and judged as in the simulation.

Some ask one node after the other by themselves, some through the SDK, which repeats what is safe to
repeat; some stay with one node whatever it says.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from support.calls import (
    CALL_WEIGHTS,
    READS_ONLY,
    AbortedError,
    Ask,
    Caller,
    ConnectionLostError,
    Finder,
    NotDoneError,
    Record,
)

from kvbench.cluster import Cluster
from kvclient import AsyncClient, KvError, OutcomeUnknown
from kvclient._channels import open_aio
from kvclient._outcomes import NOT_ACTIVE_TEXT, Change, Outcome, failure_of
from kvpb.rpc_pb2_grpc import KVStub

CALL_S_MAX = 1.5
"""How long a node may take: one that is cut off takes longer, and then nobody knows."""

LAST_READ_S_MAX = 30.0
PAUSE_S = 0.01


@dataclass(frozen=True)
class _Station:
    """A node, by the address that clients call."""

    name: str


class RealClients:
    """All clients of a run, and what they saw."""

    def __init__(self, addresses: Sequence[str], seed: int) -> None:
        self.record = Record()
        self._addresses = addresses
        self._rng = random.Random(seed)
        self._channels = {address: open_aio(address) for address in addresses}
        self._stubs = {address: KVStub(channel) for address, channel in self._channels.items()}
        self._sdk = AsyncClient(addresses, timeout_s=CALL_S_MAX)
        self._callers: list[Caller] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *, free: int = 3, sdk: int = 3) -> None:
        """Begin to call.

        Args:
            free: callers that follow the active from node to node.
            sdk: callers through the SDK.
        """
        asks: list[Ask] = [self._finder().ask for _ in range(free)]
        asks += [self._ask_sdk] * sdk
        for ask in asks:
            self._begin(ask)

    def stay_with(self, address: str, readers: int = 4) -> None:
        """Some more, who ask this node only: one as others do, the rest to read."""
        for number in range(1 + readers):
            finder = Finder(lambda _: _Station(address), self._send, self._rng, CALL_S_MAX)
            self._begin(finder.ask, READS_ONLY if number else CALL_WEIGHTS)

    async def stop(self) -> None:
        """No new calls; those under way end. Raises what any of them failed with."""
        for caller in self._callers:
            caller.stopping = True
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sdk.close()
        for channel in self._channels.values():
            await channel.close()

    async def judge(self) -> None:
        """See what is there in the end, and whether all that was seen fits together."""
        async with asyncio.timeout(LAST_READ_S_MAX):
            await Caller(self.record, self._rng, "last", self._finder().ask).read_until_answered()
        self.record.judge()

    # ------------------------------------------------------------------ ways to a node

    def _begin(self, ask: Ask, weights: Sequence[int] = CALL_WEIGHTS) -> None:
        name = f"c{len(self._callers)}"
        caller = Caller(self.record, self._rng, name, ask, pause_s=PAUSE_S, weights=weights)
        self._callers.append(caller)
        self._tasks.append(asyncio.create_task(caller.run()))

    def _finder(self) -> Finder[_Station]:
        return Finder(self._pick, self._send, self._rng, CALL_S_MAX)

    def _pick(self, wanted: str | None) -> _Station:
        return _Station(wanted if wanted in self._stubs else self._rng.choice(self._addresses))

    async def _send(self, node: _Station, method: str, request: Any) -> Any:
        call: Callable[..., Awaitable[Any]] = getattr(self._stubs[node.name], method)
        try:
            return await call(request, timeout=CALL_S_MAX)
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error)
            not_done = failure.outcome(write=True) in {Outcome.NOT_ACTIVE, Outcome.NEVER_SENT}
            hint = failure.hint()
            raise AbortedError(
                NOT_ACTIVE_TEXT if not_done else failure.details, hint.address if hint else None
            ) from error

    async def _ask_sdk(self, method: str, request: Any) -> Any:
        changes = None if method == "Range" else Change("the call")
        try:
            return await self._sdk._call(
                lambda link: getattr(link.kv, method), request, write=changes, timeout_s=None
            )
        except OutcomeUnknown as error:
            raise ConnectionLostError from error
        except KvError as error:
            raise NotDoneError from error


@contextlib.asynccontextmanager
async def recording(cluster: Cluster, seed: int = 1) -> AsyncIterator[RealClients]:
    """Call until the end of the block, then judge: nothing seen contradicts anything else seen."""
    clients = RealClients(cluster.endpoints, seed)
    try:
        clients.start()
        yield clients
        await clients.stop()
        await clients.judge()
    finally:
        await clients.close()
