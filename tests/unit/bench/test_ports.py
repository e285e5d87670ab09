"""Ports stay ours while nobody listens there, and a server can still listen."""

import socket
import sys

import pytest

from kvbench.ports import LOOPBACK, Ports

linux = pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux only")


def listen(port: int) -> socket.socket:
    """As servers do it."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((LOOPBACK, port))
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def test_a_server_listens_on_a_held_port_again_and_again() -> None:
    ports = Ports(2)
    try:
        assert len(set(ports.numbers)) == 2
        for _ in range(2):
            with listen(ports.numbers[0]), socket.create_connection((LOOPBACK, ports.numbers[0])):
                pass
    finally:
        ports.close()


@linux
def test_nobody_is_given_a_held_port() -> None:
    ports = Ports(1)
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((LOOPBACK, ports.numbers[0]))
    finally:
        ports.close()


def test_wanted_ports_come_first_and_taken_ones_are_replaced() -> None:
    free = Ports(1)
    wanted = free.numbers[0]
    free.close()
    with listen(0) as server:
        taken = int(server.getsockname()[1])
        ports = Ports(3, [taken, wanted])
        try:
            assert ports.numbers[0] == wanted
            assert taken not in ports.numbers
            assert len(set(ports.numbers)) == 3
        finally:
            ports.close()
