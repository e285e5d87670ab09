"""Child processes that can't outlive the bench, waited for without blocking the loop.

They are started by `subprocess`, which does not run gRPC's fork handlers; uvloop's own way does.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvbench import clock, leash

POLL_S = 0.01
REAP_S_MAX = 15.0


def spawn(
    command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a program, given by its absolute path; what it says is appended to a file."""
    leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
    with output.open("ab") as stream:
        return subprocess.Popen(
            leashed, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment,
            process_group=0,  # a Ctrl-C in the terminal is for the bench alone
        )  # fmt: skip


async def wait_exit(process: "subprocess.Popen[bytes]", timeout_s: float) -> int:
    """Exit code, negative for the signal that ended it.

    Raises:
        TimeoutError: it still runs.
    """
    deadline = clock.monotonic() + timeout_s
    while process.poll() is None:
        if clock.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(POLL_S)
    return process.returncode


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill it unless it has ended, and reap it."""
    if process.poll() is None:
        process.kill()
    process.wait(REAP_S_MAX)
