"""Frames between peers: a message of every kind with all its fields, and the sign of life."""

from typing import Final

from golden.form import Form, Parts
from golden.rows import MEMBERS, PUBLISHED, PUBLISHED_3

from kvpb.raft_pb2 import (
    AppendEntries,
    AppendReply,
    Entry,
    HashAsk,
    HashWord,
    Hello,
    Joining,
    Membership,
    PeerMessage,
    PreVote,
    PreVoteReply,
    ReadEcho,
    ReadRound,
    Refusal,
    RequestVote,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    Welcome,
)
from kvserver.raft.frames import FrameDecoder, encode_frame

_COPY: Final = 0x0123456789ABCDEF

MESSAGES: Final = {
    "hello": PeerMessage(
        hello=Hello(
            protocol=1, cluster_id=0xC1, member_id=0xA1, incarnation=0x1111111111111111,
            established=True, pins={0xA1: 0x1111111111111111}, attributes=PUBLISHED,
            membership_index=7,
        )
    ),
    "hello of a node that asks to be taken in": PeerMessage(
        hello=Hello(
            protocol=1, incarnation=2,
            joining=Joining(name="n3", peer_address="127.0.0.1:2382", lost_disk=True),
        )
    ),
    "hello, level 3": PeerMessage(
        hello=Hello(
            protocol=1, cluster_id=0xC1, member_id=0xA1, attributes=PUBLISHED_3,
            unverified=True, met_verified=True,
        )
    ),
    "append_entries with chains": PeerMessage(
        append_entries=AppendEntries(
            term=7, prev_log_index=301, prev_log_term=6,
            entries=[Entry(index=302, term=7, payload=b"\1", chain=0xCAFEF00D)],
        )
    ),
    "hash_ask by index": PeerMessage(hash_ask=HashAsk(round=9, index=1001)),
    "hash_word by index": PeerMessage(
        hash_word=HashWord(
            round=9, known=True, index=1001, digests=[1, 0xFFFFFFFFFFFFFFFF, 0], tidy=True
        )
    ),
    "hash_word before the hash": PeerMessage(
        hash_word=HashWord(round=9, index=1001, digests=[1, 2], tidy=True, partial=True)
    ),
    "refusal": PeerMessage(refusal=Refusal(reason="because", lost_disk=True, not_member=True)),
    "welcome": PeerMessage(
        welcome=Welcome(member_id=0xA1, membership=Membership(cluster_id=0xC1, members=MEMBERS))
    ),
    "append_entries": PeerMessage(
        append_entries=AppendEntries(
            term=7, commit_index=300, prev_log_index=301, prev_log_term=6, epoch=2,
            entries=[
                Entry(index=302, term=7, payload=b"\0\x01"), Entry(index=303, term=7, payload=b"\1")
            ],
        )
    ),
    "append_reply": PeerMessage(
        append_reply=AppendReply(term=7, next_index=304, reset=True, success=True, epoch=2)
    ),
    "request_vote": PeerMessage(
        request_vote=RequestVote(term=8, last_log_index=303, last_log_term=7)
    ),
    "vote_reply": PeerMessage(vote_reply=VoteReply(term=8)),
    "pre_vote": PeerMessage(
        pre_vote=PreVote(term=8, round=4, last_log_index=303, last_log_term=7)
    ),
    "pre_vote_reply": PeerMessage(pre_vote_reply=PreVoteReply(term=8, round=4, granted=True)),
    "read_round": PeerMessage(read_round=ReadRound(term=7, round=1 << 33)),
    "read_echo": PeerMessage(read_echo=ReadEcho(term=7, round=1 << 33)),
    "timeout_now": PeerMessage(timeout_now=TimeoutNow(term=7)),
    "snapshot_chunk": PeerMessage(
        snapshot_chunk=SnapshotChunk(
            term=7, copy=_COPY, offset=1 << 20, total=1 << 30, data=b"part\0",
            digest=bytes(range(32)),
        )
    ),
    "snapshot_reply": PeerMessage(snapshot_reply=SnapshotReply(term=7, copy=_COPY, offset=1 << 21)),
    "hash_ask": PeerMessage(hash_ask=HashAsk(round=9, revision=1000)),
    "hash_word": PeerMessage(hash_word=HashWord(round=9, known=True, hash=0xDEADBEEF)),
}  # fmt: skip


def _bodies(parts: Parts) -> list[bytes]:
    return list(FrameDecoder().feed(parts["bytes"]))


def _form(name: str, message: PeerMessage) -> Form:
    return Form(
        f"message: {name}",
        lambda parts: [PeerMessage.FromString(body) for body in _bodies(parts)],
        [message],
        lambda: {"bytes": encode_frame(message.SerializeToString(deterministic=True))},
    )


FORMS: Final = (
    *(_form(name, message) for name, message in MESSAGES.items()),
    Form("frame: a sign of life", _bodies, [b""], lambda: {"bytes": encode_frame(b"")}),
)
