"""The client for asyncio: calls find the active by themselves and are repeated while that is safe.

`_sync.py` is generated from this file by `client/unasync.py`; edit here. No write is sent again
unless its first attempt provably did nothing.
"""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Self, TypeVar

import grpc

from kvclient import _endpoints, _models, _outcomes, _requests
from kvclient._channels import CallAio, connecting_aio, open_aio
from kvclient._endpoints import Attempt, Attempts, Endpoints, parse_address, parse_addresses
from kvclient._outcomes import Change, Failure, LeaderHint, Outcome, failure_of
from kvclient._requests import Compare, Op, Order, SortBy, Text
from kvclient.errors import DeadlineExceeded, NotLeader, OutcomeUnknown, Unavailable, server_error
from kvpb import rpc_pb2, rpc_pb2_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_now = time.monotonic  # noqa: TID251 - the client's one clock

_CONNECT_POLL_S_MIN = 0.001
_CONNECT_POLL_S_MAX = 0.02
_LOOK_S_MAX = 2.0
_ACTIVE_POLL_S = 0.05


class _Link:
    """One endpoint's channel and the calls on it."""

    def __init__(self, address: str) -> None:
        self.channel = open_aio(address)
        self.kv = rpc_pb2_grpc.KVStub(self.channel)
        self.cluster = rpc_pb2_grpc.ClusterStub(self.channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(self.channel)


_Method = Callable[[_Link], "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]"]


class AsyncClient:
    """A client of one cluster, for any number of concurrent calls.

    Every call may take `timeout_s`, the client's or its own; within it, calls move on to other
    endpoints by themselves. A write whose outcome can't be known raises `OutcomeUnknown` at once.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        timeout_s: float = 5.0,
        rng: random.Random | None = None,
    ) -> None:
        """Connect at the first call.

        Args:
            endpoints: addresses as host:port or http://host:port; one string may hold several,
                with commas between them. Name all members; others are learned on the way.
            timeout_s: how long a call may take, all attempts together.
            rng: source of the jitter between rounds of attempts.
        """
        self._endpoints = Endpoints(parse_addresses(endpoints))
        self._timeout_s = timeout_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._links: dict[str, _Link] = {}
        self._looks: dict[str, tuple[float, CallAio[rpc_pb2.StatusResponse]]] = {}
        self._lock = threading.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls under way are cancelled, later ones refused."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
            self._looks.clear()
        for link in links:
            await link.channel.close()

    @property
    def timeout_s(self) -> float:
        """How long a call may take that does not say otherwise."""
        return self._timeout_s

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses known by now: the given ones, then those that nodes have named."""
        return self._endpoints.addresses

    # ------------------------------------------------------------------ keys and values

    async def put(
        self,
        key: Text,
        value: Text,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        timeout_s: float | None = None,
    ) -> _models.PutResult:
        """Set a key; a lease makes it vanish with the lease, `prev_kv` returns what was there."""
        request = _requests.put_request(key, value, lease=lease, prev_kv=prev_kv)
        response = await self._call(
            lambda link: link.kv.Put, request, write=Change("the put"), timeout_s=timeout_s
        )
        return _models.put_result(response)

    async def get(
        self,
        key: Text,
        *,
        revision: int = 0,
        serializable: bool = False,
        timeout_s: float | None = None,
    ) -> _models.KeyValue | None:
        """One key, or None if it does not exist (or did not, at `revision`)."""
        result = await self.range(
            key, revision=revision, serializable=serializable, timeout_s=timeout_s
        )
        return result.kvs[0] if result.kvs else None

    async def range(  # noqa: PLR0913 - as many as the request has fields
        self,
        key: Text,
        *,
        range_end: Text | None = None,
        prefix: bool = False,
        limit: int = 0,
        order: Order | None = None,
        sort_by: SortBy = "key",
        keys_only: bool = False,
        count_only: bool = False,
        revision: int = 0,
        serializable: bool = False,
        timeout_s: float | None = None,
    ) -> _models.RangeResult:
        r"""Keys from `key` up to, not including, `range_end`.

        Args:
            key: first key, or the only one if there is neither end nor prefix.
            range_end: where the range ends; "\0" means after the last key.
            prefix: all keys that begin with `key`; with an empty key, all keys.
            limit: at most so many keys, 0 for all; `more` and `count` tell of the rest.
            order: ascending keys if not given.
            sort_by: what the order is about.
            keys_only: leave the values out.
            count_only: only `count`.
            revision: read the state as of this revision, 0 for now.
            serializable: accept an answer that may be old, where the server offers it.
            timeout_s: how long the call may take, if not the client's.
        """
        request = _requests.range_request(
            key,
            range_end,
            prefix=prefix,
            limit=limit,
            order=order,
            sort_by=sort_by,
            keys_only=keys_only,
            count_only=count_only,
            revision=revision,
            serializable=serializable,
        )
        response = await self._call(lambda link: link.kv.Range, request, timeout_s=timeout_s)
        return _models.range_result(response)

    async def delete(
        self,
        key: Text,
        *,
        range_end: Text | None = None,
        prefix: bool = False,
        prev_kv: bool = False,
        timeout_s: float | None = None,
    ) -> _models.DeleteResult:
        """Delete one key, or a range as `range` reads it; deleting nothing is no error."""
        request = _requests.delete_request(key, range_end, prefix=prefix, prev_kv=prev_kv)
        response = await self._call(
            lambda link: link.kv.DeleteRange,
            request,
            write=Change("the delete"),
            timeout_s=timeout_s,
        )
        return _models.delete_result(response)

    async def txn(
        self,
        compares: Iterable[Compare] = (),
        success: Iterable[Op] = (),
        failure: Iterable[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> _models.TxnResult:
        """Do `success` if all compares hold, else `failure`: all of it at one revision."""
        request = _requests.txn_request(compares, success, failure)
        write = Change("the transaction") if _requests.is_write(request) else None
        response = await self._call(
            lambda link: link.kv.Txn, request, write=write, timeout_s=timeout_s
        )
        return _models.txn_result(response)

    # ------------------------------------------------------------------ the cluster and its nodes

    async def members(
        self, *, linearizable: bool = True, timeout_s: float | None = None
    ) -> tuple[_models.Member, ...]:
        """All members; not `linearizable`: as the node asked knows them, without a quorum."""
        request = rpc_pb2.MemberListRequest(linearizable=linearizable)
        response = await self._call(
            lambda link: link.cluster.MemberList, request, timeout_s=timeout_s
        )
        return _models.members(response.members)

    async def add_member(
        self, peer_url: str, *, learner: bool = False, timeout_s: float | None = None
    ) -> _models.MemberAdded:
        """Let the cluster expect a member that the others will reach at `peer_url`.

        Start it then, told to join an existing cluster. A learner gets the data but has no vote
        before it is promoted, so that the quorum does not depend on it while it is empty.
        """
        request = _requests.member_add_request(peer_url, learner=learner)
        response = await self._call(
            lambda link: link.cluster.MemberAdd,
            request,
            write=_outcomes.ADD_MEMBER,
            timeout_s=timeout_s,
        )
        return _models.member_added(response)

    async def remove_member(
        self, member_id: int, *, timeout_s: float | None = None
    ) -> tuple[_models.Member, ...]:
        """Remove a member for ever; returns those that remain. The active hands over first."""
        request = rpc_pb2.MemberRemoveRequest(ID=member_id)
        response = await self._call(
            lambda link: link.cluster.MemberRemove,
            request,
            write=_outcomes.REMOVE_MEMBER,
            timeout_s=timeout_s,
        )
        return _models.members(response.members)

    async def update_member(
        self, member_id: int, peer_url: str, *, timeout_s: float | None = None
    ) -> tuple[_models.Member, ...]:
        """Change where the others reach a member; returns all members."""
        request = _requests.member_update_request(member_id, peer_url)
        response = await self._call(
            lambda link: link.cluster.MemberUpdate,
            request,
            write=_outcomes.UPDATE_MEMBER,
            timeout_s=timeout_s,
        )
        return _models.members(response.members)

    async def promote_member(
        self, member_id: int, *, timeout_s: float | None = None
    ) -> tuple[_models.Member, ...]:
        """Give a learner its vote, if it is in step; returns all members."""
        request = rpc_pb2.MemberPromoteRequest(ID=member_id)
        response = await self._call(
            lambda link: link.cluster.MemberPromote,
            request,
            write=_outcomes.PROMOTE_MEMBER,
            timeout_s=timeout_s,
        )
        return _models.members(response.members)

    async def alarms(self, *, timeout_s: float | None = None) -> tuple[_models.Alarm, ...]:
        """The alarms that are raised, as the node asked knows them."""
        request = rpc_pb2.AlarmRequest()
        response = await self._call(
            lambda link: link.maintenance.Alarm, request, timeout_s=timeout_s
        )  # fmt: skip
        return _models.alarms(response)

    async def disarm(self, alarm: _models.Alarm, *, timeout_s: float | None = None) -> None:
        """Disarm an alarm; it comes back if its reason is still there, or is found again."""
        request = _requests.disarm_request(alarm)
        await self._call(lambda link: link.maintenance.Alarm, request, timeout_s=timeout_s)

    async def move_leader(self, target_id: int, *, timeout_s: float | None = None) -> None:
        """Make another member the active; finds the one that is by itself, and asks that."""
        deadline = self._deadline(timeout_s)
        said: tuple[tuple[str, str], ...] = ()
        while (left_s := deadline - _now()) > 0:
            try:
                address = await self._active_address(left_s)
            except DeadlineExceeded as error:  # the time ended while somebody was asked
                address, said = None, said or error.said
            if address is not None:
                try:
                    await self._call_one(
                        address,
                        lambda link: link.maintenance.MoveLeader,
                        rpc_pb2.MoveLeaderRequest(targetID=target_id),
                        timeout_s=left_s,
                    )
                except NotLeader as error:  # it was, or it will be soon
                    said = ((address, error.details),)
                except Unavailable as error:
                    said = error.said
                except DeadlineExceeded as error:  # what was heard before tells more
                    said = said or error.said
                else:
                    return
            await asyncio.sleep(_ACTIVE_POLL_S)
        raise DeadlineExceeded("no active could be asked in time: see kv status", said)

    async def _active_address(self, timeout_s: float) -> str | None:
        """Where the node is that leads as far as any of them knows; None if nobody does."""
        status = await self._call(
            lambda link: link.maintenance.Status, rpc_pb2.StatusRequest(), timeout_s=timeout_s
        )
        for member in await self.members(linearizable=False, timeout_s=timeout_s):
            if member.id == status.leader and member.client_urls:
                return parse_address(member.client_urls[0])
        return None

    async def status(self, endpoint: str, *, timeout_s: float | None = None) -> _models.Status:
        """Where the node at `endpoint` stands; one attempt, nobody else is asked."""
        response = await self._call_one(
            endpoint, lambda link: link.maintenance.Status, rpc_pb2.StatusRequest(),
            timeout_s=timeout_s,
        )  # fmt: skip
        return _models.status(response)

    async def hash_kv(
        self, endpoint: str, *, revision: int = 0, timeout_s: float | None = None
    ) -> _models.HashResult:
        """Hash of the state of the node at `endpoint`; one attempt, nobody else is asked."""
        response = await self._call_one(
            endpoint, lambda link: link.maintenance.HashKV,
            rpc_pb2.HashKVRequest(revision=revision), timeout_s=timeout_s,
        )  # fmt: skip
        return _models.hash_result(response)

    # ------------------------------------------------------------------ calls

    async def _call(
        self,
        method: "_Method[_Request, _Response]",
        request: _Request,
        *,
        write: Change | None = None,
        timeout_s: float | None,
    ) -> _Response:
        """Ask one endpoint after another until one serves or the time is over.

        Args:
            method: the call, given the endpoint.
            request: what to ask.
            write: for a call that may change something, how to speak of it in an error.
            timeout_s: as the caller gave it.
        """
        attempts = Attempts(
            self._endpoints, self._deadline(timeout_s), write=write is not None, rng=self._rng
        )
        while True:
            if pause_s := attempts.pause_s(_now()):
                await asyncio.sleep(pause_s)
            attempt = attempts.next(_now())
            link = self._link(attempt.address)
            if (left_s := await self._connected(link, attempt)) is None:
                failure = _outcomes.not_connected()
            else:
                call = CallAio(method(link), request, left_s)
                try:
                    if (moved := await self._moved(call, attempt)) is None:
                        response = await call.answer()
                        self._endpoints.heard(_models.term(response))
                        return response
                    failure = _outcomes.given_up(moved)
                except grpc.aio.AioRpcError as error:
                    failure = failure_of(error)
            await self._judge(failure, attempt.address, attempts, write)

    async def _connected(self, link: _Link, attempt: Attempt) -> float | None:
        """Wait a while for a connection; returns the time left with it, None without one.

        A call that is begun earlier would wait too, and nobody could tell whether it was sent.
        """
        if not connecting_aio(link.channel):
            return attempt.timeout_s
        begun, pause_s = _now(), _CONNECT_POLL_S_MIN
        while (waited_s := _now() - begun) < attempt.connect_s:
            await asyncio.sleep(min(pause_s, attempt.connect_s - waited_s))
            if not connecting_aio(link.channel):
                return attempt.timeout_s - (_now() - begun)
            pause_s = min(2 * pause_s, _CONNECT_POLL_S_MAX)
        return None

    async def _moved(self, call: CallAio[_Response], attempt: Attempt) -> LeaderHint | None:
        """Wait for the end of a call; who is active instead, if it is given up before."""
        patience_s, before = _endpoints.SLOW_S, None
        while not await call.ended(patience_s):
            await self._look_around()
            asked, _ = self._looks.get(attempt.address, (math.inf, None))
            silent = _now() - asked >= _endpoints.SILENT_S
            moved = self._endpoints.moved(attempt, silent=silent)
            # Only at the second look: a node that is well answers as soon as it knows.
            if moved is not None and moved == before:
                call.give_up()
                return moved
            patience_s, before = _endpoints.LOOK_EVERY_S, moved
        return None

    async def _look_around(self) -> None:
        """Ask all who is active, for all slow calls together; read what has come by now."""
        with self._lock:
            ended = {address: look for address, (_, look) in self._looks.items() if look.done()}
            for address in ended:
                del self._looks[address]
            if self._endpoints.look_due(now := _now()):
                for address in self._links.keys() - self._looks.keys():
                    method = self._links[address].maintenance.Status
                    look = CallAio(method, rpc_pb2.StatusRequest(), _LOOK_S_MAX)
                    self._looks[address] = (now, look)
        for address, look in ended.items():
            try:
                status = _models.status(await look.answer())
            except grpc.aio.AioRpcError:
                continue
            self._endpoints.heard(status.term)
            if status.active:
                await self._follow(LeaderHint(address, status.term))

    async def _call_one(
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
            return await method(self._link(address))(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error).of_one(address) from error

    def _deadline(self, timeout_s: float | None) -> float:
        return _now() + (self._timeout_s if timeout_s is None else timeout_s)

    async def _judge(
        self, failure: Failure, address: str, attempts: Attempts, write: Change | None
    ) -> None:
        """Raise what the caller must hear; else prepare the next attempt."""
        outcome = failure.outcome(write=write is not None)
        if outcome is Outcome.DECLINED:
            raise server_error(failure.code.name, failure.details)
        self._endpoints.failed(address)
        if outcome is Outcome.UNKNOWN:
            assert write is not None
            raise OutcomeUnknown(write.what, address, failure.said(), write.check)
        attempts.note(address, outcome, failure.said())
        if hint := failure.hint():
            await self._follow(hint)
        with self._lock:
            # Whoever is next has no time for a connect.
            for link in self._links.values():
                connecting_aio(link.channel)

    async def _follow(self, hint: LeaderHint) -> None:
        """Ask this one first from now on; close the link to an address that is forgotten for it."""
        forgotten = self._endpoints.follow(hint)
        with self._lock:
            link = self._links.pop(forgotten, None) if forgotten else None
        if link is not None:
            await link.channel.close()

    def _link(self, address: str) -> _Link:
        with self._lock:
            link = self._links.get(address)
            if link is not None:
                return link
            if self._closed:
                raise RuntimeError("this client is closed")
            for missing in {*self._endpoints.addresses, address} - self._links.keys():
                self._links[missing] = _Link(missing)
                connecting_aio(self._links[missing].channel)
            return self._links[address]
