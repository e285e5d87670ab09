"""Loopback ports that stay ours for as long as a `Ports` is open, whether or not a node listens."""

import errno
import socket
import sys
from collections.abc import Sequence

LOOPBACK = "127.0.0.1"


class Ports:
    """Distinct free ports.

    On Linux each is held by a socket that is bound but never listens: a server may still listen
    there (both sides allow reuse), but the kernel gives the port to nobody else while a killed node
    is down, not even as the near end of a peer's redial, which would then connect to itself.
    """

    def __init__(self, count: int, wanted: Sequence[int] = ()) -> None:
        """Take `count` ports, the wanted ones first as far as they are free."""
        self._held: list[socket.socket] = []
        self.numbers: list[int] = []
        try:
            for port in [*wanted, *[0] * count]:
                if len(self.numbers) < count:
                    self._take(port)
        except OSError:
            self.close()
            raise
        if sys.platform != "linux":
            self.close()

    def _take(self, port: int) -> None:
        if port and not _free(port):
            return
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((LOOPBACK, port))
        except OSError:
            held.close()
            raise
        self._held.append(held)
        self.numbers.append(int(held.getsockname()[1]))

    def close(self) -> None:
        """Let go of all ports."""
        while self._held:
            self._held.pop().close()


def _free(port: int) -> bool:
    """Whether nobody listens there or holds the port."""
    with socket.socket() as probe:
        # Connections of an earlier server may linger; its listening socket may not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
        return True
