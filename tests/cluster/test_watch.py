"""A client that resumes its watch by revision misses nothing when the active is another."""

import asyncio

import grpc
from support.cluster import crash, hand_over, wait_until, writing

from kvbench.cluster import Cluster
from kvpb.kv_pb2 import Event
from kvpb.rpc_pb2 import WatchCreateRequest, WatchRequest
from kvpb.rpc_pb2_grpc import WatchStub

FAILOVERS = ("kill", "stop", "transfer", "kill")


class Follower:
    """Watches all keys on whoever serves, and goes on where it was."""

    def __init__(self, endpoints: tuple[str, ...]) -> None:
        self._endpoints = endpoints
        self.events: list[Event] = []
        self.streams = 0
        self.lost = 0
        """Streams that were there before the failover."""

    async def follow(self) -> None:
        number = 0
        while True:
            number += 1
            endpoint = self._endpoints[number % len(self._endpoints)]
            async with grpc.aio.insecure_channel(
                endpoint, (("grpc.enable_http_proxy", 0),)
            ) as channel:
                try:
                    await self._listen(channel)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
            await asyncio.sleep(0.01)

    async def _listen(self, channel: grpc.aio.Channel) -> None:
        start = self.events[-1].kv.mod_revision + 1 if self.events else 1
        create = WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=start)
        call = WatchStub(channel).Watch()
        await call.write(WatchRequest(create_request=create))
        async for response in call:
            assert not response.canceled, response
            self.streams += response.created
            self.events += response.events


async def test_no_gap_and_no_duplicate_over_failovers_of_every_kind(cluster: Cluster) -> None:
    follower = Follower(cluster.endpoints)
    following = asyncio.create_task(follower.follow())
    async with writing(cluster, writers=4) as writers:
        for kind in FAILOVERS:
            await wait_until(lambda: follower.streams > follower.lost, "the watch goes on")
            await writers.flow()
            active = await cluster.active()
            follower.lost = follower.streams
            match kind:
                case "kill":
                    await crash(active)
                    await writers.flow()
                    active.start()
                case "stop":
                    active.stop()
                    await writers.flow()
                    active.cont()
                case _:
                    await hand_over(cluster)
                    await writers.flow()
            await cluster.wait_in_step()
    await writers.verify(cluster)
    newest = (await cluster.control.range("none", timeout_s=10)).revision
    await wait_until(
        lambda: bool(follower.events) and follower.events[-1].kv.mod_revision >= newest,
        "the follower has seen everything",
    )
    assert not following.done(), following
    following.cancel()
    revisions = [event.kv.mod_revision for event in follower.events]
    assert revisions == list(range(2, newest + 1)), "each revision once, in order"
