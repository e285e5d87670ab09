"""Random calls on a few keys, what each caller saw, when, and whether all of it fits together.

How a call reaches a node is handed in: clients.py has simulated nodes, real_clients.py real ones.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from support.linearizability import (
    NEVER,
    UNSEEN,
    Call,
    Kind,
    Rows,
    Stamp,
    State,
    linearizable,
    revisions_follow_time,
)

from kvpb.kv_pb2 import KeyValue
from kvpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.api.status import NOT_ACTIVE_TEXT

KEYS = (b"k1", b"k2", b"k3")
ALL_KEYS = (b"k", b"l")

CALLS = ("get", "all", "put", "delete", "swap", "past", "compact")
CALL_WEIGHTS = (40, 8, 50, 10, 30, 3, 1)

READS_ONLY = (40, 8, 0, 0, 0, 0, 0)

PAUSE_S = 0.05
"""Between two calls of one caller, about."""


CALL_WITHIN_S = 7.0
"""Longer than a server waits."""

RETRY_FOR_S = 4.0


class BrokenHistoryError(AssertionError):
    """What the callers saw can't be."""


class ConnectionLostError(Exception):
    """A call got no answer: it may have been carried out."""


class NotDoneError(Exception):
    """A call was certainly not carried out."""


Ask = Callable[[str, Any], Awaitable[Any]]
"""Method of the KV service and request -> answer; ConnectionLostError or NotDoneError without."""


class AbortedError(Exception):
    """A call was answered with a status."""

    def __init__(self, text: str, leader: str | None) -> None:
        super().__init__(text)
        self.text = text
        self.leader = leader
        """Name of the active, if the answer tells it."""


class Named(Protocol):
    """A node to call."""

    @property
    def name(self) -> str: ...


Station = TypeVar("Station", bound=Named)


class Finder(Generic[Station]):
    """Asks whoever is active, again only where an answer says that nothing was done."""

    def __init__(
        self,
        pick: Callable[[str | None], Station | None],
        send: Callable[[Station, str, Any], Awaitable[Any]],
        rng: random.Random,
        within_s: float = CALL_WITHIN_S,
    ) -> None:
        """Ask from now on.

        Args:
            pick: a node that runs, the named one if it does.
            send: calls a node; raises AbortedError, or ConnectionLostError.
            rng: for the pauses.
            within_s: how long one node may take to answer.
        """
        self._pick = pick
        self._send = send
        self._rng = rng
        self._within_s = within_s
        self.active: str | None = None

    async def ask(self, method: str, request: Any) -> Any:
        now = asyncio.get_running_loop().time
        give_up_at = now() + RETRY_FOR_S
        while now() < give_up_at:
            node = self._pick(self.active)
            if node is not None:
                try:
                    async with asyncio.timeout(self._within_s):
                        answer = await self._send(node, method, request)
                except AbortedError as error:
                    if error.text != NOT_ACTIVE_TEXT:
                        raise ConnectionLostError from error
                    self.active = error.leader
                except TimeoutError as error:
                    raise ConnectionLostError from error
                else:
                    self.active = node.name
                    return answer
            await asyncio.sleep(self._rng.uniform(0.002, 0.05))
        raise NotDoneError


class Record:
    """What all callers saw, in one order."""

    def __init__(self) -> None:
        self.calls: dict[bytes, list[Call]] = {key: [] for key in KEYS}
        self.stamps: list[Stamp] = []
        self.rows = Rows()
        self._past: dict[int, dict[bytes, int]] = {}
        self.reads = self.writes = self.unknown = self.refused = 0
        self._moment = 0
        self._written = 0

    def judge(self) -> None:
        """Whether all that was seen fits together."""
        broken = revisions_follow_time(self.stamps)
        if broken is not None:
            raise BrokenHistoryError(broken)
        for key, calls in self.calls.items():
            if not linearizable(calls):
                raise BrokenHistoryError(f"the calls on {key!r} are not linearizable")

    def moment(self) -> int:
        """A place in the one order of all that callers do and see."""
        self._moment += 1
        return self._moment

    def fresh_value(self) -> bytes:
        self._written += 1
        return b"%d" % self._written

    def saw_past(self, revision: int, rows: dict[bytes, int]) -> None:
        if self._past.setdefault(revision, rows) != rows:
            raise BrokenHistoryError(f"at revision {revision} stood {rows}, and something else")

    @property
    def newest_revision(self) -> int:
        return self.stamps[-1].revision if self.stamps else 0

    def saw(self, kv: KeyValue) -> None:
        broken = self.rows.saw(
            kv.key, kv.value, mod=kv.mod_revision, version=kv.version, create=kv.create_revision
        )
        if broken is not None:
            raise BrokenHistoryError(broken)


class Caller:
    """One client: a call after the other."""

    def __init__(
        self, record: Record, rng: random.Random, name: str, ask: Ask, *,
        pause_s: float = PAUSE_S, weights: Sequence[int] = CALL_WEIGHTS,
    ) -> None:  # fmt: skip
        self._all = record
        self._rng = rng
        self._name = name
        self._ask = ask
        self._pause_s = pause_s
        self._weights = weights
        self.stopping = False
        self._known: dict[bytes, State] = {}
        """What it saw last."""

    async def run(self) -> None:
        while not self.stopping:
            await asyncio.sleep(self._rng.expovariate(1 / self._pause_s))
            await self._call()

    async def _call(self) -> None:
        rng, key = self._rng, self._rng.choice(KEYS)
        match rng.choices(CALLS, self._weights)[0]:
            case "get":
                await self._get(key)
            case "all":
                await self.read_every_key()
            case "put":
                await self._put(key)
            case "delete":
                await self._delete(key)
            case "past":
                await self._past()
            case "compact":
                await self._compact()
            case _:
                await self._swap(key)

    async def _do(self, method: str, request: Any) -> Any:
        try:
            return await self._ask(method, request)
        except NotDoneError:
            self._all.refused += 1
            raise

    async def _get(self, key: bytes) -> None:
        began = self._all.moment()
        try:
            answer = await self._do("Range", RangeRequest(key=key))
        except (ConnectionLostError, NotDoneError):
            return
        self._read(began, {key: None}, answer.kvs, answer.header.revision)

    async def read_until_answered(self) -> None:
        before = self._all.reads
        while self._all.reads == before:
            await self.read_every_key()

    async def read_every_key(self) -> None:
        began = self._all.moment()
        request = RangeRequest(key=ALL_KEYS[0], range_end=ALL_KEYS[1])
        try:
            answer = await self._do("Range", request)
        except (ConnectionLostError, NotDoneError):
            return
        self._read(began, dict.fromkeys(KEYS), answer.kvs, answer.header.revision)

    def _read(self, began: int, seen: dict[bytes, State], kvs: Any, revision: int) -> None:
        ended = self._all.moment()
        for kv in kvs:
            self._all.saw(kv)
            seen[kv.key] = kv.value
            assert kv.mod_revision <= revision
        for key, value in seen.items():
            self._known[key] = value
            self._all.calls[key].append(Call(self._name, Kind.GET, began, ended, seen=value))
        self._all.stamps.append(Stamp(began, ended, revision, wrote=False))
        self._all.reads += 1

    async def _past(self) -> None:
        """Read how it was a little ago: the same for everybody, if it is still there."""
        revision = self._all.newest_revision - self._rng.randrange(10)
        if revision < 1:
            return
        request = RangeRequest(key=ALL_KEYS[0], range_end=ALL_KEYS[1], revision=revision)
        with contextlib.suppress(ConnectionLostError, NotDoneError):
            answer = await self._do("Range", request)
            self._all.saw_past(revision, {kv.key: kv.mod_revision for kv in answer.kvs})
            for kv in answer.kvs:
                self._all.saw(kv)

    async def _compact(self) -> None:
        """Give up what is older than a little ago."""
        revision = self._all.newest_revision - self._rng.randrange(20)
        if revision > 0:
            with contextlib.suppress(ConnectionLostError, NotDoneError):
                await self._do("Compact", CompactionRequest(revision=revision))

    async def _put(self, key: bytes) -> None:
        value, look = self._all.fresh_value(), self._rng.random() < 0.6
        request = PutRequest(key=key, value=value, prev_kv=look)

        def seen(answer: Any) -> State:
            return self._before(answer.prev_kv if answer.HasField("prev_kv") else None)

        await self._write(
            key, Kind.PUT, "Put", request, value=value, seen=seen if look else lambda _: UNSEEN,
            wrote=lambda _: True,
        )  # fmt: skip

    async def _delete(self, key: bytes) -> None:
        request = DeleteRangeRequest(key=key, prev_kv=True)
        await self._write(
            key, Kind.DELETE, "DeleteRange", request,
            seen=lambda answer: self._before(answer.prev_kvs[0] if answer.prev_kvs else None),
            wrote=lambda answer: answer.deleted > 0,
        )  # fmt: skip

    async def _swap(self, key: bytes) -> None:
        value, expected = self._all.fresh_value(), self._known.get(key)
        compare = (
            Compare(key=key, target=Compare.VERSION, result=Compare.EQUAL, version=0)
            if expected is None
            else Compare(key=key, target=Compare.VALUE, result=Compare.EQUAL, value=expected)
        )
        request = TxnRequest(
            compare=[compare],
            success=[RequestOp(request_put=PutRequest(key=key, value=value))],
            failure=[RequestOp(request_range=RangeRequest(key=key))],
        )

        def seen(answer: Any) -> State:
            if answer.succeeded:
                return expected
            kvs = answer.responses[0].response_range.kvs
            found = self._before(kvs[0] if kvs else None)
            if found == expected:
                raise BrokenHistoryError(f"a compare of {key!r} with {found!r} failed")
            return found

        await self._write(
            key, Kind.SWAP, "Txn", request, value=value, expected=expected, seen=seen,
            wrote=lambda answer: answer.succeeded,
        )  # fmt: skip

    def _before(self, kv: KeyValue | None) -> State:
        if kv is None:
            return None
        self._all.saw(kv)
        return kv.value

    async def _write(
        self, key: bytes, kind: Kind, method: str, request: Any, *,
        seen: Callable[[Any], Any], wrote: Callable[[Any], bool],
        value: State = None, expected: State = None,
    ) -> None:  # fmt: skip
        began = self._all.moment()
        try:
            answer = await self._do(method, request)
        except NotDoneError:
            return
        except ConnectionLostError:
            self._all.unknown += 1
            call = Call(self._name, kind, began, NEVER, value, expected)
            self._all.calls[key].append(call)
            return
        ended, before = self._all.moment(), seen(answer)
        self._all.calls[key].append(
            Call(self._name, kind, began, ended, value, expected, before)
        )  # fmt: skip
        self._all.stamps.append(Stamp(began, ended, answer.header.revision, wrote=wrote(answer)))
        self._all.writes += 1
        if kind is not Kind.SWAP or before == expected:
            self._known[key] = value
