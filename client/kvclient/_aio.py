"""The client for asyncio: what can be asked of a cluster and its nodes.

How it is asked, and asked again, is in `_calls_aio.py`. `_sync.py` and `_calls_sync.py` are
generated from these two by `client/unasync.py`; edit here.
"""

import asyncio
from collections.abc import Iterable

from kvclient import _models, _outcomes, _requests
from kvclient._calls_aio import AsyncCalls
from kvclient._clock import now
from kvclient._endpoints import parse_address
from kvclient._outcomes import Change
from kvclient._requests import Compare, Op, Order, SortBy, Text
from kvclient.errors import DeadlineExceeded, NotLeader, Unavailable
from kvpb import rpc_pb2

_ACTIVE_POLL_S = 0.05


class AsyncClient(AsyncCalls):
    """A client of one cluster, for any number of concurrent calls.

    Every call may take `timeout_s`, the client's or its own; within it, calls move on to other
    endpoints by themselves, writes too: they are numbered, and a number is applied once. Where the
    servers know no numbers (etcd), a write whose outcome can't be known raises `OutcomeUnknown` at
    once; here only when the time is over.
    """

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
        response = await self._write(
            lambda link: link.kv.Put, request, Change("the put"), timeout_s
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
        response = await self._write(
            lambda link: link.kv.DeleteRange, request, Change("the delete"), timeout_s
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
        if _requests.is_write(request):
            response = await self._write(
                lambda link: link.kv.Txn, request, Change("the transaction"), timeout_s
            )
        else:
            response = await self._call(lambda link: link.kv.Txn, request, timeout_s=timeout_s)
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
        while (left_s := deadline - now()) > 0:
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
