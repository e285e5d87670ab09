"""Clients of a simulated cluster whose writes have numbers, and are sent until they are answered.

Each write tells the version that its key had before: so a write that is lost, or applied twice,
shows at once. The numbers are given by the client SDK's own code.
"""

import asyncio
from typing import Any

from support.calls import AbortedError, BrokenHistoryError, ConnectionLostError, Finder
from support.calls import NotDoneError as NobodyServesError
from support.clients import Clients
from support.promises import History
from support.whole_node import Sent

from kvclient._sessions import Numbered, Session
from kvpb.rpc_pb2 import PutRequest, PutResponse, RequestOp, TxnRequest
from kvpb.session_pb2 import OpenSessionRequest
from kvserver import errors
from kvserver.api.status import status_of

TTLS_S = (1, 60, 60, 60)
WRITERS = 4
KEYS_OF_SESSIONS = b"count/"

NOT_FOUND = status_of(errors.SessionNotFoundError()).text
EXPECTED_OF_OLD = (
    NOT_FOUND,
    status_of(errors.WriteForgottenError()).text,
    status_of(errors.OutcomeUnknownError()).text,
)


class _SessionLostError(Exception):
    """It has ended."""


class Counters:
    """Writers that share a client: its session and its numbers."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.answered = self.repeated = self.lost_sessions = 0
        self._session: Session | None = None
        self._finder = Finder(clients.pick, clients.send, clients.rng)
        for number in range(WRITERS):
            clients.add(_Writer(self, KEYS_OF_SESSIONS + b"%d" % number))

    def now(self) -> float:
        return self.clients.loop.time()

    async def number(self) -> Numbered:
        """The place of a new write."""
        while True:
            numbered = self._session.begin(self.now()) if self._session is not None else None
            if numbered is not None:
                return numbered
            asked_at, ttl_s = self.now(), self.clients.rng.choice(TTLS_S)
            opened = await self.ask("Open", OpenSessionRequest(ttl_s=ttl_s))
            self._session = Session(opened, asked_at)

    def lost(self, session: Session) -> None:
        self.lost_sessions += 1
        if self._session is session:
            self._session = None

    def add_to(self, history: History) -> None:
        """What was seen, for the report."""
        history.writes += self.answered
        history.repeated += self.repeated
        history.lost_sessions += self.lost_sessions

    async def ask(self, method: str, request: Any) -> Any:
        return await self._finder.ask(method, request)


class _Writer:
    """Counts on one key."""

    def __init__(self, counters: Counters, key: bytes) -> None:
        self._counters = counters
        self._rng = counters.clients.rng
        self._key = key
        self._least = self._most = 0
        """Bounds of the key's version. They differ once a session ended over a write in doubt."""
        self._old: list[tuple[Sent, PutResponse]] = []
        """Writes that have ended, and their answers."""
        self.stopping = False

    async def run(self) -> None:
        while not self.stopping:
            await asyncio.sleep(self._rng.uniform(0, 0.1))
            try:
                await self._count()
                if self._old and self._rng.random() < 0.2:
                    await self._send_an_old_one()
            except (ConnectionLostError, NobodyServesError):
                continue  # no session could be opened

    async def _count(self) -> None:
        numbered = await self._counters.number()
        value = b"%d" % self._rng.randrange(100)
        put = PutRequest(key=self._key, value=value, prev_kv=True)
        if self._rng.random() < 0.5:
            sent = Sent("Put", put, numbered.metadata)
        else:
            txn = TxnRequest(success=[RequestOp(request_put=put)])
            sent = Sent("Txn", txn, numbered.metadata)
        self._most += 1
        try:
            answer = await self._until_answered(sent)
        except _SessionLostError as lost:
            if not lost.args[0]:
                self._most -= 1
            self._counters.lost(numbered.session)
        else:
            before = answer.prev_kv.version
            if not self._least <= before < self._most:
                raise BrokenHistoryError(
                    f"{self._key!r} had version {before} before a write, "
                    f"expected {self._least} to {self._most - 1}"
                )
            self._least = self._most = before + 1
            self._counters.answered += 1
            self._old = [*self._old[-5:], (sent, answer)]
        finally:
            numbered.end(answered=self._least == self._most)

    async def _until_answered(self, sent: Sent) -> PutResponse:
        """However often it takes; _SessionLostError tells whether it may have been applied."""
        doubt = False
        while True:
            try:
                return _put_of(await self._counters.ask(sent.method, sent))
            except ConnectionLostError as error:
                if _text(error) == NOT_FOUND:
                    raise _SessionLostError(doubt) from error
                doubt = True
                self._counters.repeated += 1
            except NobodyServesError:
                pass  # this time nothing was done
            await asyncio.sleep(self._rng.uniform(0, 0.05))

    async def _send_an_old_one(self) -> None:
        """What the network may do: it comes again after its end."""
        sent, answer = self._rng.choice(self._old)
        try:
            again = _put_of(await self._counters.ask(sent.method, sent))
        except ConnectionLostError as error:
            text = _text(error)
            if text not in (*EXPECTED_OF_OLD, ""):
                raise BrokenHistoryError(f"an old write was answered {text!r}") from error
        else:
            if again != answer:
                raise BrokenHistoryError(f"an old write was answered {again}, before {answer}")


def _put_of(answer: Any) -> PutResponse:
    """The put's part of an answer; without what depends on who answers."""
    put = PutResponse()
    put.CopyFrom(answer if isinstance(answer, PutResponse) else answer.responses[0].response_put)
    put.header.Clear()
    put.header.revision = answer.header.revision
    return put


def _text(error: ConnectionLostError) -> str:
    cause = error.__cause__
    return cause.text if isinstance(cause, AbortedError) else ""
