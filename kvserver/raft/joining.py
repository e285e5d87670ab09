"""Asking to be taken in by a running cluster: before a node has an identity, or a vote."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from google.protobuf.message import DecodeError

from kvpb.raft_pb2 import Hello, Joining, PeerMessage, Welcome
from kvserver.raft.dialling import dial
from kvserver.raft.frames import FRAME_BYTES_MAX, FrameDecoder, FrameError, encode_frame
from kvserver.raft.identity import PROTOCOL_VERSION
from kvserver.telemetry import Repeats

ASK_EVERY_S: Final = 0.5
ANSWER_WITHIN_S: Final = 2.0
_READ_BYTES: Final = 1 << 16


async def ask_to_join(
    addresses: Iterable[str],
    incarnation: int,
    asking: Joining,
    on_event: Callable[..., None],
) -> Welcome:
    """Ask the members in turn until one says who this node is. Never gives up.

    Args:
        addresses: of members, host:port.
        incarnation: of this node's data directory.
        asking: name and address of this node.
        on_event: log; told each new reason for a refusal.
    """
    hello = Hello(protocol=PROTOCOL_VERSION, incarnation=incarnation, joining=asking)
    frame = encode_frame(PeerMessage(hello=hello).SerializeToString())
    targets, told = list(addresses), Repeats()
    loop = asyncio.get_running_loop()
    while True:
        for address in targets:
            try:
                answer = await asyncio.wait_for(_ask(address, frame), ANSWER_WITHIN_S)
            except (OSError, TimeoutError, FrameError, DecodeError) as error:
                reason = str(error) or f"no answer from {address} in time"
            else:
                if answer.HasField("welcome"):
                    return answer.welcome
                reason = answer.refusal.reason or "no answer"
            if told.is_news((address, reason), loop.time()):
                on_event("cluster.waiting", member=address, reason=reason)
        await asyncio.sleep(ASK_EVERY_S)


async def _ask(address: str, frame: bytes) -> PeerMessage:
    """One question on a connection of its own; an empty message if it ends without an answer."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    transport, protocol = await dial(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), address, ANSWER_WITHIN_S
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        writer.write(frame)
        decoder = FrameDecoder()
        decoder.body_bytes_max = FRAME_BYTES_MAX
        while data := await reader.read(_READ_BYTES):
            for body in decoder.feed(data):
                message = PeerMessage.FromString(body)
                if message.WhichOneof("message") in {"welcome", "refusal"}:
                    return message
        return PeerMessage()
    finally:
        writer.close()
