"""Connections between members: one per pair, dialled by the one with the lower id. asyncio.

Invariants: nothing of a peer is passed on before its hello is believed; what is buffered for a
peer, and what a stranger can make us hold, is bounded; a peer that stays silent is taken for dead.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from google.protobuf.message import DecodeError

from kvpb.raft_pb2 import Hello, Member, PeerMessage, Refusal
from kvserver.clock import Clock
from kvserver.errors import AddressError
from kvserver.raft.dialling import dial
from kvserver.raft.entry import MemberId
from kvserver.raft.frames import (
    FRAME_BYTES_MAX,
    HELLO_BYTES_MAX,
    FrameDecoder,
    FrameError,
    encode_frame,
)
from kvserver.raft.identity import NotMember, OwnDiskNew, PeerLostDisk
from kvserver.raft.status import Connected, Disconnected, Event, Received
from kvserver.telemetry import Repeats

HELLO_WITHIN_S: Final = 2.0
DIAL_WITHIN_S: Final = 2.0
"""Left to itself a connect to a host that does not answer waits for minutes, and asks ever more
rarely: a partition that is over would last on."""

LINGER_S: Final = 1.0
STRANGERS_MAX: Final = 64
"""Connections that have not said a believed hello."""

STRANGE_BYTES_MAX: Final = HELLO_BYTES_MAX + 1024
"""Of a connection before its hello is believed: one hello, and some signs of life."""

BUFFER_BYTES_MAX: Final = 64 << 20
"""Unsent bytes for one peer; above it the connection is dropped and starts over."""

REDIAL_FIRST_S: Final = 0.02
REDIAL_MAX_S: Final = 0.5
REDIAL_REFUSED_S: Final = 2.0
STABLE_S: Final = 1.0
"""A connection that stood for so long is redialled at once, and another one takes its place."""

BACKUP_DIAL_S: Final = 2.0
SIGNS_OF_LIFE_PER_TIMEOUT: Final = 4

_SIGN_OF_LIFE: Final = encode_frame(b"")


@dataclass(frozen=True)
class Links:
    """What the transport needs to know and whom it tells."""

    me: MemberId
    listen: tuple[str, int]
    dead_peer_s: float
    clock: Clock
    hello: Callable[[], Hello]
    refuse_reason: Callable[[Hello], str | None]
    answer_joining: Callable[[Hello], PeerMessage]
    """To a node that asks to be taken in."""
    on_lost_disk: Callable[[str], None]
    """The others know an older data directory of this member."""
    on_removed: Callable[[bool], None]
    """A member says that this node is none, and no other takes it for one; or one does again."""
    post: Callable[[Event], None]
    """Takes events in the order in which they happened."""
    wake: Callable[[], None]
    on_event: Callable[..., None]


class PeerTransport:
    """All peer connections of a node. Lives on the loop of the raft thread."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self._server: asyncio.Server | None = None
        self._peers: dict[MemberId, Member] = {}
        self._dials: dict[MemberId, asyncio.Task[None]] = {}
        self._pulse: asyncio.Task[None] | None = None
        self._connections: dict[MemberId, PeerConnection] = {}
        self._strangers: dict[PeerConnection, None] = {}
        """In order of arrival."""
        self._lost: dict[MemberId, asyncio.Event] = {}
        self._removed = False
        self.complaints = Repeats()

    async def start(self) -> None:
        """Listen and dial.

        Raises:
            AddressError: the listen address can't be bound.
        """
        loop = asyncio.get_running_loop()
        host, port = self.links.listen
        try:
            self._server = await loop.create_server(
                lambda: PeerConnection(self, dialled=None), host, port
            )
        except OSError as error:
            raise AddressError(
                f"--listen-peer {host}:{port} can't be bound: {error.strerror or error}"
            ) from error
        self._dial_missing()
        self._pulse = loop.create_task(self._keep_alive())

    async def close(self) -> None:
        """End all connections."""
        for task in [*self._dials.values(), *([self._pulse] if self._pulse else [])]:
            task.cancel()
        if self._server is not None:
            self._server.close()
        for connection in [*self._connections.values(), *self._strangers]:
            connection.abort()

    # ------------------------------------------------------------------ for the engine

    def send(self, member: MemberId, message: PeerMessage) -> None:
        """Send on the open connection; dropped if there is none."""
        connection = self._connections.get(member)
        if connection is not None:
            connection.write(message)

    def say_hello(self) -> None:
        """Say hello again on every believed connection."""
        if self._connections:
            hello = PeerMessage(hello=self.links.hello())
            for connection in list(self._connections.values()):
                connection.write(hello)

    def set_peers(self, peers: Mapping[MemberId, Member]) -> None:
        """Talk to these and nobody else; an address that changed is dialled anew."""
        old, self._peers = self._peers, dict(peers)
        for member in old.keys() - peers.keys():
            self._forget(member, "not a member any more")
        for member in old.keys() & peers.keys():
            if old[member].peer_address != peers[member].peer_address:
                self._forget(member, "its address has changed")
        self._dial_missing()

    def _forget(self, member: MemberId, reason: str) -> None:
        dial = self._dials.pop(member, None)
        if dial is not None:
            dial.cancel()
        connection = self._connections.get(member)
        if connection is not None:
            connection.drop(reason)

    def _dial_missing(self) -> None:
        if self._server is None:
            return
        loop = asyncio.get_running_loop()
        for member in self._peers:
            if member not in self._dials:
                self._lost[member] = asyncio.Event()
                self._dials[member] = loop.create_task(self._dial(member))

    def name(self, member: MemberId) -> str:
        """Name of a peer, for people."""
        peer = self._peers.get(member)
        return peer.name if peer is not None and peer.name else f"{member:x}"

    # ------------------------------------------------------------------ dialling

    async def _dial(self, member: MemberId) -> None:
        """Keep a connection to one peer: redial at once when it breaks, then ever more slowly.

        A pair is connected by the one with the lower id. Only when there is no connection for a
        while does the other one try: its peer may not know it yet.
        """
        address = self._peers[member].peer_address
        delay = REDIAL_FIRST_S
        while True:
            if self.links.me > member:
                await asyncio.sleep(BACKUP_DIAL_S)
                if member in self._connections:
                    continue
            lost = self._lost[member]
            lost.clear()
            begun = self.links.clock.monotonic()
            try:
                _, connection = await dial(
                    lambda: PeerConnection(self, dialled=member), address, DIAL_WITHIN_S
                )
                await lost.wait()
                believed, refused = connection.believed, connection.refused
            except OSError as error:
                believed, refused = False, False
                self._tell_unreachable(member, str(error))
            stood = believed and self.links.clock.monotonic() - begun >= STABLE_S
            if refused:  # perhaps by a peer that is itself believed
                await asyncio.sleep(REDIAL_REFUSED_S)
            elif stood:
                delay = REDIAL_FIRST_S
            else:
                await asyncio.sleep(delay)
                delay = min(delay * 2, REDIAL_MAX_S)

    def _tell_unreachable(self, member: MemberId, reason: str) -> None:
        if member in self._connections:
            return  # it has dialled this node
        if self.complaints.is_news((member, reason), self.links.clock.monotonic()):
            self.links.on_event("peer.unreachable", peer=self.name(member), reason=reason)

    async def _keep_alive(self) -> None:
        """Give signs of life, and drop whom none came from."""
        period = self.links.dead_peer_s / SIGNS_OF_LIFE_PER_TIMEOUT
        while True:
            await asyncio.sleep(period)
            now = self.links.clock.monotonic()
            for connection in list(self._connections.values()):
                if now - connection.heard > self.links.dead_peer_s:
                    connection.drop("silent for too long")
                else:
                    connection.write_frame(_SIGN_OF_LIFE)
            if self._taken_for_member():
                self._set_removed(False)

    # ------------------------------------------------------------------ from the connections

    def admit(self, connection: "PeerConnection") -> None:
        """A new connection, not believed yet. If there are too many, the oldest has to go.

        A member says its hello at once; so a crowd that says nothing keeps no member out.
        """
        if len(self._strangers) >= STRANGERS_MAX:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.drop("too many connections that say no hello")
        self._strangers[connection] = None

    def believe(self, connection: "PeerConnection", member: MemberId, hello: Hello) -> None:
        """The hello is fine: from now on this is the connection to `member`."""
        self._strangers.pop(connection, None)
        old = self._connections.get(member)
        if old is not None and self._crosses(connection, old, member):
            connection.drop("the two dialled each other")
            return
        if old is not None:
            old.drop("replaced by a newer connection")
            self._gone(old, member, replaced=True)
        self._connections[member] = connection
        self.links.on_event("peer.up", peer=self.name(member))
        self.links.post(Connected(member, hello))
        self.links.wake()

    def _crosses(self, new: "PeerConnection", old: "PeerConnection", member: MemberId) -> bool:
        """Whether both were made at once, and the older one is dialled by who should.

        Otherwise the newest counts, as the older may be dead without our knowing it; but of two
        made at once each side would keep another one, and lose both.
        """
        if self.links.clock.monotonic() - old.believed_at >= STABLE_S:
            return False
        by_lower = self.links.me < member
        return (old.dialled is not None) is by_lower and (new.dialled is not None) is not by_lower

    def called_no_member(self) -> None:
        """A peer has refused this node as one that was removed."""
        if not self._taken_for_member():
            self._set_removed(True)

    def _taken_for_member(self) -> bool:
        """Whether a peer lets this node stay: it would have refused it within moments."""
        stable_since = self.links.clock.monotonic() - STABLE_S
        return any(each.believed_at <= stable_since for each in self._connections.values())

    def _set_removed(self, removed: bool) -> None:
        if removed is not self._removed:
            self._removed = removed
            self.links.on_removed(removed)

    def lost(self, connection: "PeerConnection") -> None:
        """A connection has ended."""
        self._strangers.pop(connection, None)
        member = connection.member
        if member is not None and self._connections.get(member) is connection:
            self._gone(connection, member)
        if connection.dialled is not None and connection.dialled in self._lost:
            self._lost[connection.dialled].set()

    def _gone(
        self, connection: "PeerConnection", member: MemberId, *, replaced: bool = False
    ) -> None:
        del self._connections[member]
        self.links.on_event(
            "peer.down", peer=self.name(member), reason=connection.reason or "closed by peer"
        )
        self.links.post(Disconnected(member, replaced))
        self.links.wake()


class PeerConnection(asyncio.Protocol):
    """One TCP connection: a stranger until its hello is believed."""

    def __init__(self, owner: PeerTransport, *, dialled: MemberId | None) -> None:
        self._owner = owner
        self._links = owner.links
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._strange_bytes = 0
        """What came before a believed hello: reading it keeps the turn waiting."""
        self.dialled = dialled
        self.member: MemberId | None = None
        self.refused = False
        self.reason: str | None = None
        """Why this side ended it."""
        self.heard = self._links.clock.monotonic()
        self.believed_at = self.heard

    @property
    def believed(self) -> bool:
        """True once the hello was accepted."""
        return self.member is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, and expect one soon."""
        self._transport = cast("asyncio.Transport", transport)
        self._owner.admit(self)
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deadline = asyncio.get_running_loop().call_later(
            HELLO_WITHIN_S, self.drop, "no hello in time"
        )
        self.write(PeerMessage(hello=self._links.hello()))

    def data_received(self, data: bytes) -> None:
        """Cut into messages; garbage ends the connection."""
        self.heard = self._links.clock.monotonic()
        try:
            for body in self._decoder.feed(data):
                if body and not self._closing():
                    self._receive(PeerMessage.FromString(body))
        except (FrameError, DecodeError) as error:
            self._complain(f"garbage: {error}")
            return
        if not self.believed and not self._closing():
            self._strange_bytes += len(data)
            if self._strange_bytes > STRANGE_BYTES_MAX:
                self._complain("it says too much before its hello")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, once."""
        if self._deadline is not None:
            self._deadline.cancel()
        if self.reason is None and exc is not None:
            self.reason = str(exc)
        self._owner.lost(self)

    def _receive(self, message: PeerMessage) -> None:
        match message.WhichOneof("message"):
            case "hello":
                self._meet(message.hello)
            case "refusal":
                self.refused = True
                reason = message.refusal.reason[:500]
                if message.refusal.lost_disk:
                    self._links.on_lost_disk(reason)
                if message.refusal.not_member and self.dialled is not None:
                    self._owner.called_no_member()
                self._complain(f"refused by peer: {reason}")
            case None:
                return
            case _ if self.member is not None:
                self._links.post(Received(self.member, message))
                self._links.wake()
            case _:
                self._complain("a message before the hello")

    def _meet(self, hello: Hello) -> None:
        if hello.HasField("joining") and self.member is None:
            self.write(self._links.answer_joining(hello))
            self._close_soon()
            return
        reason = self._links.refuse_reason(hello)
        if reason is None and self.member is not None and hello.member_id != self.member:
            reason = "it changed its member id"
        if reason is None and self.dialled not in (None, hello.member_id):
            reason = "another member answers at this address"
        if isinstance(reason, OwnDiskNew):
            self._links.on_lost_disk(reason)
        if reason is not None:
            self.refused = True
            refusal = Refusal(
                reason=reason, lost_disk=isinstance(reason, PeerLostDisk),
                not_member=isinstance(reason, NotMember),
            )  # fmt: skip
            self.write(PeerMessage(refusal=refusal))
            self._complain(f"refused: {reason}")
            return
        if self.member is not None:
            self._links.post(Connected(self.member, hello))
            self._links.wake()
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self.member = MemberId(hello.member_id)
        self.believed_at = self._links.clock.monotonic()
        self._decoder.body_bytes_max = FRAME_BYTES_MAX
        self._owner.believe(self, self.member, hello)

    def write(self, message: PeerMessage) -> None:
        """Send a message."""
        self.write_frame(encode_frame(message.SerializeToString()))

    def write_frame(self, frame: bytes) -> None:
        """Send an encoded frame, unless too much waits already."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            self.drop("it does not read what it is sent")
            return
        transport.write(frame)

    def drop(self, reason: str) -> None:
        """End the connection at once."""
        self.reason = self.reason or reason
        self.abort()

    def abort(self) -> None:
        """End it without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _complain(self, reason: str) -> None:
        """End it after what is being sent, and say why in the log."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        host, port = peer[:2] if peer else ("unknown", 0)
        self.reason = self.reason or reason
        if self._owner.complaints.is_news((host, reason), self._links.clock.monotonic()):
            self._links.on_event("peer.rejected", address=f"{host}:{port}", reason=reason)
        self._close_soon()

    def _close_soon(self) -> None:
        """End it after what is being sent."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            # what it does not read in time it need not know
            asyncio.get_running_loop().call_later(LINGER_S, self.abort)
