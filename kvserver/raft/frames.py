"""Framing of peer messages: length, checksum, body. Sans-I/O.

A frame is `length u32 LE | crc32(body) u32 LE | body`; an empty body is a sign of life.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

_HEADER: Final = struct.Struct("<II")

FRAME_BYTES_MAX: Final = 16 << 20
"""Largest body an accepted peer may send: one append message."""

HELLO_BYTES_MAX: Final = 64 << 10
"""Largest body before the hello is accepted: a stranger makes us hold no more than this."""


class FrameError(Exception):
    """The bytes are not a frame of ours; the connection must end."""


def encode_frame(body: bytes) -> bytes:
    """One frame ready to be written."""
    return _HEADER.pack(len(body), zlib.crc32(body)) + body


class FrameDecoder:
    """Cuts a stream of bytes into bodies, however it was split on the way."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.body_bytes_max = HELLO_BYTES_MAX
        """Raised by the owner once the peer is accepted."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Bodies completed by `chunk`, in order; each is held to the limit of its own moment.

        What follows a hello in the same chunk may be larger than a hello: the owner raises the
        limit when it has got that one.

        Raises:
            FrameError: a length above `body_bytes_max`, or a wrong checksum.
        """
        buffer = self._buffer
        buffer += chunk
        start, end = 0, len(buffer)
        try:
            while end - start >= _HEADER.size:
                length, checksum = _HEADER.unpack_from(buffer, start)
                if length > self.body_bytes_max:
                    raise FrameError(
                        f"a frame of {length} bytes, at most {self.body_bytes_max} allowed"
                    )
                if end - start - _HEADER.size < length:
                    break
                start += _HEADER.size
                body = bytes(buffer[start : start + length])
                if zlib.crc32(body) != checksum:
                    raise FrameError("a frame with a wrong checksum")
                start += length
                yield body
        finally:
            del buffer[:start]
