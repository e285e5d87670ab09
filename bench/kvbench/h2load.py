"""The native load generator h2load: one call, sent over and over as a gRPC frame.

It knows HTTP/2 but not gRPC, and counts every answer with HTTP status 200, which gRPC gives errors
too. Whoever uses this must check by other means that the calls succeeded.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from kvbench.process import end, spawn, wait_exit

FRAME_HEAD_BYTES: Final = 5
"""Of a gRPC message: whether it is compressed, and its length."""

GRACE_S: Final = 60.0
"""How much longer than told it may take."""

_FINISHED = re.compile(r"finished in (?P<number>[\d.]+)(?P<unit>us|ms|s|m|h)\b")
_REQUESTS = re.compile(
    r"requests: \d+ total, (?P<started>\d+) started, \d+ done, "
    r"(?P<succeeded>\d+) succeeded, (?P<failed>\d+) failed, (?P<errored>\d+) errored"
)
_DATA = re.compile(r"^traffic: .*\((?P<bytes>\d+)\) data$", re.MULTILINE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class H2LoadError(Exception):
    """h2load is missing or failed; the sentence says what to do."""


@dataclass(frozen=True)
class Call:
    """A unary call."""

    method: str
    """As its path has it: /package.Service/Method."""
    request: Message


@dataclass(frozen=True)
class Amount:
    """How much to send: a number of requests or, without one, for some seconds."""

    clients: int
    seconds: float
    requests: int | None = None


@dataclass(frozen=True)
class Answers:
    """What h2load saw."""

    started: int
    succeeded: int
    """Answered with HTTP status 200."""
    failed: int
    data_bytes: int
    """Of the bodies of all answers: of the messages in them, since errors have none."""
    seconds: float
    latencies_s: tuple[float, ...]


def program() -> str:
    """Path of h2load."""
    found = shutil.which("h2load")
    if found is None:
        raise H2LoadError(
            "h2load is not installed: apt install nghttp2-client (Debian, Ubuntu), "
            "dnf install nghttp2 (Fedora), brew install nghttp2 (macOS)"
        )
    return found


def frame(request: Message) -> bytes:
    """The body of a gRPC call: not compressed, its length, the message."""
    message = request.SerializeToString()
    return b"\0" + len(message).to_bytes(FRAME_HEAD_BYTES - 1, "big") + message


def arguments(amount: Amount, url: str, body: Path, log: Path) -> list[str]:
    """One connection for each client, and one request at a time on each."""
    clients = ["--clients", str(amount.clients), "--max-concurrent-streams", "1"]
    if amount.requests is not None:
        length = ["--requests", str(amount.requests)]
    else:
        length = ["--duration", f"{round(amount.seconds * 1000)}ms"]  # it takes no fractions
    return [
        *clients, *length, "--data", str(body), "--log-file", str(log),
        "--header", "content-type: application/grpc", "--header", "te: trailers",
        url,
    ]  # fmt: skip


def parse(output: str, log: str) -> Answers:
    """From h2load's report and its log of single requests."""
    finished, requests = _FINISHED.search(output), _REQUESTS.search(output)
    data = _DATA.search(output)
    if finished is None or requests is None or data is None:
        raise H2LoadError(f"h2load reported something else than expected:\n{output}")
    # start in us, HTTP status (-1 if there was no answer), duration in us
    lines = [line.split("\t") for line in log.splitlines()]
    return Answers(
        started=int(requests["started"]),
        succeeded=int(requests["succeeded"]),
        failed=int(requests["failed"]),
        data_bytes=int(data["bytes"]),
        seconds=float(finished["number"]) * _UNITS[finished["unit"]],
        latencies_s=tuple(int(line[2]) / 1e6 for line in lines if line[1] == "200"),
    )


async def send(call: Call, amount: Amount, address: str, folder: Path) -> Answers:
    """Run it against the node at `address`."""
    body, log, output = folder / "call.frame", folder / "h2load.log", folder / "h2load.out"
    body.write_bytes(frame(call.request))
    log.unlink(missing_ok=True)
    output.unlink(missing_ok=True)
    url = f"http://{address}{call.method}"
    process = spawn([program(), *arguments(amount, url, body, log)], output)
    try:
        code = await wait_exit(process, amount.seconds + GRACE_S)
    except TimeoutError as error:
        raise H2LoadError(f"h2load did not end within {amount.seconds + GRACE_S:g} s") from error
    finally:
        end(process)
    said = output.read_text(errors="replace")
    if code != 0:
        raise H2LoadError(f"h2load failed with {code}:\n{said}")
    return parse(said, log.read_text())
