"""Cluster: the members, and changes of them, which only the active takes."""

import secrets
from collections.abc import Iterable, Mapping

import grpc

from kvpb import rpc_pb2, rpc_pb2_grpc
from kvpb.raft_pb2 import Member
from kvserver.api.door import Door
from kvserver.config import parse_address
from kvserver.errors import (
    LearnerNotReadyError,
    MemberNotFoundError,
    PeerUrlInvalidError,
    UsageError,
)
from kvserver.raft.entry import MemberId

Context = grpc.aio.ServicerContext


class ClusterServicer(rpc_pb2_grpc.ClusterServicer):
    """etcdserverpb.Cluster."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def MemberList(
        self,
        request: rpc_pb2.MemberListRequest,
        context: "Context[rpc_pb2.MemberListRequest, rpc_pb2.MemberListResponse]",
    ) -> rpc_pb2.MemberListResponse:
        """The members and where to reach them, as this node knows them.

        With `linearizable`, and unless there is no active, only the active answers, and sees every
        change that was answered before.
        """
        return await self._door.answer(context, self._member_list(request))

    async def _member_list(self, request: rpc_pb2.MemberListRequest) -> rpc_pb2.MemberListResponse:
        if request.linearizable and self._door.role.leader is not None:
            await self._door.role.require_active()
            await self._door.reader.linearizable()
        response = rpc_pb2.MemberListResponse(members=self._list(self._door.roster.members))
        self._door.fill(response.header)
        return response

    async def MemberAdd(
        self,
        request: rpc_pb2.MemberAddRequest,
        context: "Context[rpc_pb2.MemberAddRequest, rpc_pb2.MemberAddResponse]",
    ) -> rpc_pb2.MemberAddResponse:
        """Expect a new member at an address; it is then started with state `existing`."""
        return await self._door.answer(context, self._add(request))

    async def _add(self, request: rpc_pb2.MemberAddRequest) -> rpc_pb2.MemberAddResponse:
        await self._door.role.require_active()
        member = Member(
            id=secrets.randbits(63) + 1, peer_address=_address(request.peerURLs),
            learner=request.isLearner,
        )  # fmt: skip
        now = await self._door.operator.add(member)
        response = rpc_pb2.MemberAddResponse(members=self._list(now.members))
        response.member.CopyFrom(next(each for each in response.members if member.id == each.ID))
        self._door.fill(response.header)
        return response

    async def MemberRemove(
        self,
        request: rpc_pb2.MemberRemoveRequest,
        context: "Context[rpc_pb2.MemberRemoveRequest, rpc_pb2.MemberRemoveResponse]",
    ) -> rpc_pb2.MemberRemoveResponse:
        """Remove a member for ever: its id does not come back."""
        return await self._door.answer(context, self._remove(request))

    async def _remove(self, request: rpc_pb2.MemberRemoveRequest) -> rpc_pb2.MemberRemoveResponse:
        await self._door.role.require_active()
        now = await self._door.operator.remove(MemberId(request.ID))
        response = rpc_pb2.MemberRemoveResponse(members=self._list(now.members))
        self._door.fill(response.header)
        return response

    async def MemberUpdate(
        self,
        request: rpc_pb2.MemberUpdateRequest,
        context: "Context[rpc_pb2.MemberUpdateRequest, rpc_pb2.MemberUpdateResponse]",
    ) -> rpc_pb2.MemberUpdateResponse:
        """Change where a member is reached by the others."""
        return await self._door.answer(context, self._update(request))

    async def _update(self, request: rpc_pb2.MemberUpdateRequest) -> rpc_pb2.MemberUpdateResponse:
        await self._door.role.require_active()
        if MemberId(request.ID) not in self._door.roster.members:  # etcd looks at this first
            raise MemberNotFoundError
        address = _address(request.peerURLs)
        now = await self._door.operator.readdress(MemberId(request.ID), address)
        response = rpc_pb2.MemberUpdateResponse(members=self._list(now.members))
        self._door.fill(response.header)
        return response

    async def MemberPromote(
        self,
        request: rpc_pb2.MemberPromoteRequest,
        context: "Context[rpc_pb2.MemberPromoteRequest, rpc_pb2.MemberPromoteResponse]",
    ) -> rpc_pb2.MemberPromoteResponse:
        """Make a learner that is in step a voter."""
        return await self._door.answer(context, self._promote(request))

    async def _promote(
        self, request: rpc_pb2.MemberPromoteRequest
    ) -> rpc_pb2.MemberPromoteResponse:
        await self._door.role.require_active()
        if request.ID in self._door.alarms.corrupt:
            raise LearnerNotReadyError
        now = await self._door.operator.promote(MemberId(request.ID))
        response = rpc_pb2.MemberPromoteResponse(members=self._list(now.members))
        self._door.fill(response.header)
        return response

    def _list(self, members: Mapping[MemberId, Member]) -> list[rpc_pb2.Member]:
        roster, found = self._door.roster, []
        for member_id, member in sorted(members.items()):
            told = roster.published(member_id)
            found.append(
                rpc_pb2.Member(
                    ID=member_id, name=member.name, peerURLs=[f"http://{member.peer_address}"],
                    clientURLs=told.client_urls if told else [], isLearner=member.learner,
                )
            )  # fmt: skip
        return found


def _address(urls: Iterable[str]) -> str:
    """host:port of the one peer URL; members do not speak TLS."""
    given = list(urls)
    if len(given) != 1 or not given[0].startswith("http://"):
        raise PeerUrlInvalidError
    address = given[0].removeprefix("http://").rstrip("/")
    try:
        parse_address("peerURLs", address)
    except UsageError:
        raise PeerUrlInvalidError from None
    return address
