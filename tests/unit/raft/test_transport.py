"""Framing, and connections over real sockets: strangers, garbage, floods, silence."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from kvpb.raft_pb2 import Hello, Member, PeerMessage, ReadRound, Refusal
from kvserver.clock import SystemClock
from kvserver.errors import AddressError
from kvserver.raft import transport as transports
from kvserver.raft.entry import MemberId
from kvserver.raft.frames import HELLO_BYTES_MAX, FrameDecoder, FrameError, encode_frame
from kvserver.raft.identity import NotMember
from kvserver.raft.status import Connected, Disconnected, Event, Received
from kvserver.raft.transport import Links, PeerTransport

ONE, TWO = MemberId(1), MemberId(2)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class End:
    """One transport and what it reported."""

    def __init__(self, me: MemberId, port: int, peer: MemberId, peer_port: int) -> None:
        self.events: list[Event] = []
        self.log: list[tuple[str, dict[str, object]]] = []
        self.changed = asyncio.Event()
        self.refuse: str | None = None
        self.removed: list[bool] = []
        self.port = port
        self.transport = PeerTransport(
            Links(
                me=me, listen=("127.0.0.1", port), dead_peer_s=0.6, clock=SystemClock(),
                hello=lambda: Hello(protocol=1, member_id=me), refuse_reason=lambda _: self.refuse,
                answer_joining=lambda _: PeerMessage(refusal=Refusal(reason="not expected")),
                on_lost_disk=lambda reason: self.log.append(("lost disk", {"reason": reason})),
                on_removed=self.removed.append, post=self.events.append, wake=self.changed.set,
                on_event=lambda name, **fields: self.log.append((name, fields)),
            )
        )  # fmt: skip
        member = Member(id=peer, name=f"n{peer}", peer_address=f"127.0.0.1:{peer_port}")
        self.transport.set_peers({peer: member})

    async def until(self, kind: type, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while sum(isinstance(event, kind) for event in self.events) < count:
                self.changed.clear()
                await self.changed.wait()

    async def until_logged(self, text: str) -> None:
        async with asyncio.timeout(10):
            while not any(text in str(entry) for entry in self.log):
                await asyncio.sleep(0.01)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    ports = free_port(), free_port()
    one, two = End(ONE, ports[0], TWO, ports[1]), End(TWO, ports[1], ONE, ports[0])
    await one.transport.start()
    await two.transport.start()
    await one.until(Connected)
    await two.until(Connected)
    yield one, two
    await one.transport.close()
    await two.transport.close()
    await asyncio.sleep(0.05)


def read_round(number: int) -> PeerMessage:
    return PeerMessage(read_round=ReadRound(term=1, round=number))


@pytest.mark.parametrize("seed", range(20))
def test_frames_survive_any_split(seed: int) -> None:
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.choice([0, 1, 7, 300])) for _ in range(20)]
    stream = b"".join(map(encode_frame, bodies))
    decoder = FrameDecoder()
    found: list[bytes] = []
    while stream:
        cut = rng.randint(1, 40)
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert found == bodies


def test_damage_and_oversize_are_noticed() -> None:
    frame = bytearray(encode_frame(b"hello"))
    frame[-1] ^= 1
    with pytest.raises(FrameError, match="checksum"):
        list(FrameDecoder().feed(bytes(frame)))
    with pytest.raises(FrameError, match="at most"):
        list(FrameDecoder().feed(encode_frame(b"x" * (HELLO_BYTES_MAX + 1))[:8]))


def test_the_limit_can_be_raised_between_two_frames_of_one_chunk() -> None:
    """The first message after a hello may be large, and arrive together with it."""
    decoder = FrameDecoder()
    large = b"x" * (HELLO_BYTES_MAX + 1)
    bodies = decoder.feed(encode_frame(b"hello") + encode_frame(large))
    assert next(bodies) == b"hello"
    decoder.body_bytes_max = len(large)
    assert list(bodies) == [large]
    assert list(decoder.feed(encode_frame(b"more"))) == [b"more"]


async def test_messages_arrive_in_order(ends: tuple[End, End]) -> None:
    one, two = ends
    for number in range(100):
        one.transport.send(TWO, read_round(number))
    await two.until(Received, 100)
    rounds = [e.message.read_round.round for e in two.events if isinstance(e, Received)]
    assert rounds == list(range(100))


async def test_a_broken_connection_is_told_and_redialled(ends: tuple[End, End]) -> None:
    one, two = ends
    two.transport._connections[ONE].drop("test")
    await one.until(Disconnected)
    await one.until(Connected, 2)
    await two.until(Connected, 2)
    kinds = [type(event) for event in one.events]
    assert kinds == [Connected, Disconnected, Connected]
    assert one.events[1] == Disconnected(TWO, replaced=False)


async def test_a_stranger_that_talks_garbage_is_dropped(ends: tuple[End, End]) -> None:
    one, _ = ends
    for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 10, encode_frame(b"\xff\xff\xff"), b"\xff" * 64):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(garbage)
        async with asyncio.timeout(5):
            await reader.read()  # our hello, then the end
        writer.close()
    await one.until_logged("garbage")
    assert len(one.transport._connections) == 1, "the true peer stays"


async def test_a_stranger_that_only_gives_signs_of_life_is_cut_off_at_once(
    ends: tuple[End, End],
) -> None:
    """They are valid, and reading millions of them would keep the turn waiting."""
    one, _ = ends
    _, writer = await asyncio.open_connection("127.0.0.1", one.port)
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(1):  # before the time for a hello is over
            while True:
                writer.write(encode_frame(b"") * 1000)
                await writer.drain()
                await asyncio.sleep(0)
    await one.until_logged("too much before its hello")
    writer.transport.abort()


async def test_a_message_before_the_hello_is_not_passed_on(ends: tuple[End, End]) -> None:
    one, _ = ends
    count = len(one.events)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(encode_frame(read_round(1).SerializeToString()))
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    await one.until_logged("before the hello")
    assert len(one.events) == count


async def test_a_refused_peer_is_told_why(ends: tuple[End, End]) -> None:
    one, two = ends
    one.refuse = "because of the test"
    two.transport._connections[ONE].drop("test")
    await two.until_logged("because of the test")


async def test_who_was_removed_is_told_once_until_a_peer_lets_it_stay(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer says its own hello first, so for a moment it is believed each time."""
    monkeypatch.setattr(transports, "REDIAL_REFUSED_S", 0.05)
    one, two = ends
    two.refuse = "of another cluster"
    two.transport._connections[ONE].drop("test")
    await one.until_logged("of another cluster")
    assert one.removed == []
    two.refuse = NotMember("no member")
    await one.until_logged("no member")
    seen = sum(isinstance(event, Connected) for event in one.events)
    await one.until(Connected, seen + 3)
    assert one.removed == [True]
    two.refuse = None
    async with asyncio.timeout(10):
        while one.removed != [True, False]:
            await asyncio.sleep(0.01)
    assert two.removed == []


@pytest.mark.parametrize("words", ["a refusal", "nothing more"])
async def test_a_peer_that_ends_connections_is_not_dialled_in_a_storm(words: str) -> None:
    """What it says of itself is fine; it is only that it wants nothing of this member."""
    connections = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        hello = PeerMessage(hello=Hello(protocol=1, member_id=TWO))
        writer.write(encode_frame(hello.SerializeToString()))
        if words == "a refusal":
            refusal = PeerMessage(refusal=Refusal(reason="not a member"))
            writer.write(encode_frame(refusal.SerializeToString()))
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    one = End(ONE, free_port(), TWO, server.sockets[0].getsockname()[1])
    await one.transport.start()
    await asyncio.sleep(1.0)
    await one.transport.close()
    server.close()
    assert 1 <= connections <= 8


async def test_a_host_that_does_not_answer_is_dialled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the kernel does by itself takes minutes: the dial would outlast the partition."""
    dialled = 0

    async def unanswered(*_: object) -> None:
        nonlocal dialled
        dialled += 1
        await asyncio.sleep(3600)

    monkeypatch.setattr(transports, "DIAL_WITHIN_S", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", unanswered)
    one = End(ONE, free_port(), TWO, free_port())
    await one.transport.start()
    async with asyncio.timeout(10):
        while dialled < 3:
            await asyncio.sleep(0.01)
    await one.transport.close()
    (told,) = [fields for name, fields in one.log if name == "peer.unreachable"]
    assert told["peer"] == "n2"
    assert "no answer" in str(told["reason"])


async def test_a_name_that_is_none_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transports, "REDIAL_FIRST_S", 0.001)
    one = End(ONE, free_port(), TWO, free_port())
    one.transport.set_peers({TWO: Member(id=TWO, name="n2", peer_address="a..b:2380")})
    await one.transport.start()
    await one.until_logged("is not known")
    await asyncio.sleep(0.1)
    assert not one.transport._dials[TWO].done()
    await one.transport.close()


@pytest.mark.parametrize("first_at_one", [ONE, TWO])
@pytest.mark.parametrize("first_at_two", [ONE, TWO])
async def test_of_two_connections_made_at_once_one_stays(
    ends: tuple[End, End], first_at_one: MemberId, first_at_two: MemberId
) -> None:
    """Whichever each end believes first; else each drops what the other one keeps."""
    dialled = {
        (me, by): transports.PeerConnection(end.transport, dialled=other if by == me else None)
        for me, end, other in ((ONE, ends[0], TWO), (TWO, ends[1], ONE))
        for by in (ONE, TWO)
    }
    for me, end, first in ((ONE, ends[0], first_at_one), (TWO, ends[1], first_at_two)):
        other = TWO if me == ONE else ONE
        end.transport._connections.pop(other).abort()
        for by in (first, TWO if first == ONE else ONE):
            connection = dialled[me, by]
            connection.member = other
            end.transport.believe(connection, other, Hello(protocol=1, member_id=other))
        assert end.transport._connections[other] is dialled[me, ONE], "who is lower dials"
        del end.transport._connections[other]


async def test_a_connection_that_a_newer_one_replaces_is_no_loss_of_the_peer(
    ends: tuple[End, End],
) -> None:
    one, _ = ends
    one.transport._connections[TWO].believed_at -= transports.STABLE_S
    newer = transports.PeerConnection(one.transport, dialled=TWO)
    newer.member = TWO
    one.transport.believe(newer, TWO, Hello(protocol=1, member_id=TWO))
    _, gone, again = one.events
    assert gone == Disconnected(TWO, replaced=True)
    assert isinstance(again, Connected)
    del one.transport._connections[TWO]


async def test_strangers_are_few_and_keep_no_member_out(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ends
    monkeypatch.setattr(transports, "STRANGERS_MAX", 3)
    crowd = [await asyncio.open_connection("127.0.0.1", one.port) for _ in range(6)]
    await asyncio.sleep(0.1)
    assert len(one.transport._strangers) <= 3
    for reader, _ in crowd[:3]:
        async with asyncio.timeout(5):
            while await reader.read(1 << 16):  # its hello, then the end
                pass
    # a member whose connection breaks now still gets in
    for each in (one, two):
        for connection in list(each.transport._connections.values()):
            connection.abort()
    await one.until(Connected, 2)
    for _, writer in crowd:
        writer.close()


async def test_a_silent_peer_is_dropped(ends: tuple[End, End]) -> None:
    one, two = ends
    assert two.transport._pulse is not None
    two.transport._pulse.cancel()
    await one.until(Disconnected)
    assert ("peer.down", {"peer": "n2", "reason": "silent for too long"}) in one.log


async def test_a_peer_that_does_not_read_costs_no_memory(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ends
    monkeypatch.setattr(transports, "BUFFER_BYTES_MAX", 1 << 20)
    incoming = two.transport._connections[ONE]._transport
    assert incoming is not None
    incoming.pause_reading()
    big = PeerMessage(refusal=Refusal(reason="x" * 500_000))
    for _ in range(60):
        one.transport.send(TWO, big)
    await one.until_logged("does not read")


async def test_an_address_in_use_is_reported(ends: tuple[End, End]) -> None:
    one, _ = ends
    other = End(MemberId(3), one.port, TWO, free_port())
    with pytest.raises(AddressError, match="--listen-peer"):
        await other.transport.start()
