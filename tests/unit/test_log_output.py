"""The log never stops a node and never ends it, whatever becomes of what it is written to."""

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from kvserver import log_output
from kvserver.log_output import WAITING_BYTES_MAX, LogOutput

WITHIN_S = 10.0


def told(lines: int) -> str:
    return f"dropped={lines}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError as error:
            assert error.errno == errno.EBADF  # noqa: PT017 - the test has closed it


def read_all(end: int, found: list[bytes]) -> threading.Thread:
    def read() -> None:
        while data := os.read(end, 1 << 16):
            found.append(data)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_lines_come_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output, found = LogOutput(writer, told), list[bytes]()
    reading = read_all(reader, found)
    for number in range(1000):
        print(f"line {number} \udcff", file=output)
    assert output.drain(WITHIN_S)
    os.close(writer)
    reading.join(WITHIN_S)
    lines = b"".join(found).decode().splitlines()
    assert lines == [f"line {number} \\udcff" for number in range(1000)]


def test_nobody_waits_for_a_reader_that_stands_still(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = LogOutput(writer, told)
    line = "x" * 999
    count = 4 * WAITING_BYTES_MAX // 1000
    for _ in range(count):
        print(line, file=output)
    assert not output.drain(0.01)
    assert output._waiting_bytes <= WAITING_BYTES_MAX
    found = list[bytes]()
    reading = read_all(reader, found)
    assert output.drain(WITHIN_S)
    print("after", file=output)
    assert output.drain(WITHIN_S)
    os.close(writer)
    reading.join(WITHIN_S)
    lines = b"".join(found).decode().splitlines()
    reports = [each.partition("=")[2] for each in lines if each.startswith("dropped=")]
    assert sum(map(int, reports)) == count - lines.count(line)
    assert reports
    assert lines[-1] == "after"


@pytest.mark.parametrize("how", ["full", "closed", "reader gone"])
def test_what_is_lost_is_counted_and_reported(pipe: tuple[int, int], how: str) -> None:
    reader, writer = pipe
    sick = os.open("/dev/full", os.O_WRONLY) if how == "full" else writer
    output = LogOutput(sick, told)
    if how == "closed":
        os.close(writer)
    if how == "reader gone":
        os.close(reader)
    for _ in range(3):
        print("lost", file=output)
        assert output.drain(WITHIN_S)
    assert output._dropped == 3
    well_reader, well_writer = os.pipe()
    output._descriptor = well_writer
    print("well again", file=output)
    assert output.drain(WITHIN_S)
    assert os.read(well_reader, 1 << 16) == b"well again\ndropped=3\n"
    assert output._dropped == 0
    for end in (well_reader, well_writer, *([sick] if how == "full" else [])):
        os.close(end)


def test_a_descriptor_that_somebody_made_nonblocking_is_tried_again(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_output, "RETRY_S", 0.001)
    reader, writer = pipe
    os.set_blocking(writer, False)
    output, found = LogOutput(writer, told), list[bytes]()
    for _ in range(200):
        print("x" * 999, file=output)
    reading = read_all(reader, found)
    assert output.drain(WITHIN_S)
    os.close(writer)
    reading.join(WITHIN_S)
    assert len(b"".join(found)) == 200_000
