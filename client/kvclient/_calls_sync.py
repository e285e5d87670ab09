"""The client for threads: made from `_calls_aio.py` by `client/unasync.py`; edit there."""

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import grpc

from kvclient import _endpoints, _models, _outcomes
from kvclient._channels import CallSync, connecting_sync, open_sync
from kvclient._clock import now
from kvclient._endpoints import (
    Attempt,
    Attempts,
    Endpoints,
    parse_address,
    parse_addresses,
)
from kvclient._outcomes import Change, Failure, LeaderHint, Outcome, failure_of
from kvclient._sessions import PLAIN_S, PLAIN_S_MIN, TTL_S, Numbered, Session
from kvclient.errors import (
    AnswerLost,
    CorruptCluster,
    DeadlineExceeded,
    NotCapable,
    OutcomeUnknown,
    ServerError,
    SessionNotFound,
    TooManyRequests,
    Unavailable,
    server_error,
)
from kvpb import rpc_pb2, rpc_pb2_grpc, session_pb2, session_pb2_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_POLL_S_MIN = 0.001
_POLL_S_MAX = 0.02
_LOOK_S_MAX = 2.0
_CLOSE_S = 0.3


class _Link:
    """One endpoint's channel and the calls on it."""

    def __init__(self, address: str) -> None:
        self.channel = open_sync(address)
        self.kv = rpc_pb2_grpc.KVStub(self.channel)
        self.cluster = rpc_pb2_grpc.ClusterStub(self.channel)
        self.lease = rpc_pb2_grpc.LeaseStub(self.channel)
        self.sessions = session_pb2_grpc.SessionStub(self.channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(self.channel)


_Method = Callable[[_Link], "grpc.UnaryUnaryMultiCallable[_Request, _Response]"]


class Calls:
    """Connections to the nodes of a cluster, and the calls on them."""

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        timeout_s: float = 5.0,
        exactly_once: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        """Connect at the first call.

        Args:
            endpoints: addresses as host:port or http://host:port; one string may hold several,
                with commas between them. Name all members; others are learned on the way.
            timeout_s: how long a call may take, all attempts together.
            exactly_once: number the writes, so that they are repeated until they are answered and
                yet applied once. It takes one more call before the first write and one at the end,
                and keeps a session at the servers, which is a lease. Without it, or with servers
                that know none, a write whose answer is lost ends as `OutcomeUnknown`.
            rng: source of the jitter between rounds of attempts.
        """
        self._endpoints = Endpoints(parse_addresses(endpoints))
        self._timeout_s = timeout_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._links: dict[str, _Link] = {}
        self._looks: dict[str, tuple[float, CallSync[rpc_pb2.StatusResponse]]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._session: Session | None = None
        self._opening = False
        self._plain_until = -math.inf if exactly_once else math.inf
        """Until then writes get no numbers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls under way are cancelled, later ones refused."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
            session, self._session = self._session, None
            active = self._links.get(self._endpoints.order()[0])
            self._links.clear()
            self._looks.clear()
        try:
            if session is not None and active is not None and not session.inherited:
                self._end(session, active)
        finally:
            for link in links:
                link.channel.close()

    def _end(self, session: Session, active: _Link) -> None:
        """Close it at the servers, if that is done at once: it ends by itself, too."""
        request = rpc_pb2.LeaseRevokeRequest(ID=session.number)
        with contextlib.suppress(grpc.RpcError, ValueError):  # a channel that was closed
            active.lease.LeaseRevoke(request, timeout=_CLOSE_S)

    @property
    def timeout_s(self) -> float:
        """How long a call may take that does not say otherwise."""
        return self._timeout_s

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses known by now: the given ones, then those that nodes have named."""
        return self._endpoints.addresses

    # ------------------------------------------------------------------ writes

    def _write(
        self,
        method: "_Method[_Request, _Response]",
        request: _Request,
        write: Change,
        timeout_s: float | None,
    ) -> _Response:
        """Ask for a change of keys, with a number where the servers know what that is."""
        deadline = self._deadline(timeout_s)
        while True:
            numbered = self._number(deadline)
            left_s = deadline - now()
            if numbered is None:
                return self._call(method, request, write=write, timeout_s=left_s)
            answered = False
            try:
                response = self._call(
                    method, request, write=write, numbered=numbered, timeout_s=left_s
                )
            except SessionNotFound:  # nor was it sent before: it is not done
                self._drop(numbered.session)
            else:
                answered = True
                return response
            finally:
                numbered.end(answered=answered)

    def _drop(self, session: Session) -> None:
        with self._lock:
            if self._session is session:
                self._session = None

    def _number(self, deadline: float) -> Numbered | None:
        """A number for a write, None where the servers offer none; one caller opens the session."""
        pause_s = _POLL_S_MIN
        while now() >= self._plain_until:
            session = self._session
            if session is not None and (numbered := session.begin(now())) is not None:
                return numbered
            with self._lock:
                mine, self._opening = not self._opening, True
            if mine:
                try:
                    self._open_session(deadline)
                finally:
                    self._opening = False
            elif now() > deadline:
                raise DeadlineExceeded("no session could be opened in time: see kv status", ())
            else:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_S_MAX)
        return None

    def _open_session(self, deadline: float) -> None:
        asked_at = now()
        request = session_pb2.OpenSessionRequest(ttl_s=TTL_S)
        try:
            opened = self._call(
                lambda link: link.sessions.Open, request, timeout_s=deadline - asked_at
            )
        except (TooManyRequests, CorruptCluster):
            raise  # as the write would have been answered
        except NotCapable:  # some member is older, or the cluster has just begun
            self._plain_until = now() + PLAIN_S_MIN
        except ServerError:  # no such service, or no room for one, with which deletes are done yet
            self._plain_until = now() + PLAIN_S
        else:
            self._session = Session(opened, asked_at)

    # ------------------------------------------------------------------ calls

    def _call(
        self,
        method: "_Method[_Request, _Response]",
        request: _Request,
        *,
        write: Change | None = None,
        numbered: Numbered | None = None,
        timeout_s: float | None,
    ) -> _Response:
        """Ask one endpoint after another until one serves or the time is over.

        Args:
            method: the call, given the endpoint.
            request: what to ask.
            write: for a call that may change something, how to speak of it in an error.
            numbered: for a write that may be sent again whatever became of it.
            timeout_s: as the caller gave it.
        """
        attempts = Attempts(
            self._endpoints, self._deadline(timeout_s), write=write is not None, rng=self._rng
        )
        while True:
            if pause_s := attempts.pause_s(now()):
                time.sleep(pause_s)
            try:
                attempt = attempts.next(now())
            except (DeadlineExceeded, Unavailable) as error:
                if write is None or attempts.doubt is None:
                    raise
                raise OutcomeUnknown(write.what, *attempts.doubt, write.check) from error
            if self._closed and write is not None and attempts.doubt is not None:
                raise OutcomeUnknown(write.what, *attempts.doubt, write.check)
            link = self._link(attempt.address)
            if (left_s := self._connected(link, attempt)) is None:
                failure = _outcomes.not_connected()
            else:
                metadata = numbered.metadata if numbered is not None else None
                call = CallSync(method(link), request, left_s, metadata)
                try:
                    if (moved := self._moved(call, attempt)) is None:
                        response = call.answer()
                        self._endpoints.heard(_models.term(response))
                        return response
                    failure = _outcomes.given_up(moved)
                except grpc.RpcError as error:
                    failure = failure_of(error)
            self._judge(failure, attempt.address, attempts, write, numbered)

    def _connected(self, link: _Link, attempt: Attempt) -> float | None:
        """Wait a while for a connection; returns the time left with it, None without one.

        A call that is begun earlier would wait too, and nobody could tell whether it was sent.
        """
        if not connecting_sync(link.channel):
            return attempt.timeout_s
        begun, pause_s = now(), _POLL_S_MIN
        while (waited_s := now() - begun) < attempt.connect_s:
            time.sleep(min(pause_s, attempt.connect_s - waited_s))
            if not connecting_sync(link.channel):
                return attempt.timeout_s - (now() - begun)
            pause_s = min(2 * pause_s, _POLL_S_MAX)
        return None

    def _moved(self, call: CallSync[_Response], attempt: Attempt) -> LeaderHint | None:
        """Wait for the end of a call; who is active instead, if it is given up before."""
        patience_s, before = _endpoints.SLOW_S, None
        while not call.ended(patience_s):
            self._look_around()
            asked, _ = self._looks.get(attempt.address, (math.inf, None))
            silent = now() - asked >= _endpoints.SILENT_S
            moved = self._endpoints.moved(attempt, silent=silent)
            # Only at the second look: a node that is well answers as soon as it knows.
            if moved is not None and moved == before:
                call.give_up()
                return moved
            patience_s, before = _endpoints.LOOK_EVERY_S, moved
        return None

    def _look_around(self) -> None:
        """Ask all who is active, for all slow calls together; read what has come by now."""
        with self._lock:
            ended = {address: look for address, (_, look) in self._looks.items() if look.done()}
            for address in ended:
                del self._looks[address]
            if self._endpoints.look_due(moment := now()):
                for address in self._links.keys() - self._looks.keys():
                    method = self._links[address].maintenance.Status
                    look = CallSync(method, rpc_pb2.StatusRequest(), _LOOK_S_MAX)
                    self._looks[address] = (moment, look)
        for address, look in ended.items():
            try:
                status = _models.status(look.answer())
            except grpc.RpcError:
                continue
            self._endpoints.heard(status.term)
            if status.active:
                self._follow(LeaderHint(address, status.term))

    def _call_one(
        self,
        endpoint: str,
        method: "_Method[_Request, _Response]",
        request: _Request,
        *,
        timeout_s: float | None,
    ) -> _Response:
        """Ask one endpoint, once."""
        address = parse_address(endpoint)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return method(self._link(address))(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise failure_of(error).of_one(address) from error

    def _deadline(self, timeout_s: float | None) -> float:
        return now() + (self._timeout_s if timeout_s is None else timeout_s)

    def _judge(
        self,
        failure: Failure,
        address: str,
        attempts: Attempts,
        write: Change | None,
        numbered: Numbered | None,
    ) -> None:
        """Raise what the caller must hear; else prepare the next attempt."""
        outcome = failure.outcome(write=write is not None)
        if failure.details == AnswerLost.text:
            raise AnswerLost
        if attempts.doubt is not None and outcome is Outcome.DECLINED:
            assert write is not None
            assert numbered is not None
            if failure.details == SessionNotFound.text:
                self._drop(numbered.session)
                raise OutcomeUnknown(write.what, *attempts.doubt, write.check)
            if not failure.ends_doubt():
                outcome = Outcome.UNKNOWN
        if outcome is Outcome.DECLINED:
            raise server_error(failure.code.name, failure.details)
        self._endpoints.failed(address)
        if outcome is Outcome.UNKNOWN:
            assert write is not None
            if numbered is None:
                raise OutcomeUnknown(write.what, address, failure.said(), write.check)
            attempts.doubt = attempts.doubt or (address, failure.said())
        attempts.note(address, outcome, failure.said())
        if hint := failure.hint():
            self._follow(hint)
        with self._lock:
            # Whoever is next has no time for a connect.
            for link in self._links.values():
                connecting_sync(link.channel)

    def _follow(self, hint: LeaderHint) -> None:
        """Ask this one first from now on; close the link to an address that is forgotten for it."""
        forgotten = self._endpoints.follow(hint)
        with self._lock:
            link = self._links.pop(forgotten, None) if forgotten else None
        if link is not None:
            link.channel.close()

    def _link(self, address: str) -> _Link:
        with self._lock:
            link = self._links.get(address)
            if link is not None:
                return link
            if self._closed:
                raise RuntimeError("this client is closed")
            for missing in {*self._endpoints.addresses, address} - self._links.keys():
                self._links[missing] = _Link(missing)
                connecting_sync(self._links[missing].channel)
            return self._links[address]
