"""Generate the client for threads from the one for asyncio, or check that the result is fresh.

Usage: python client/unasync.py [--check]

A substitution that matches nothing is an error: either it is dead, or what it was for is written
differently now and would slip through.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent / "kvclient"
SOURCE = ROOT / "_aio.py"
TARGET = ROOT / "_sync.py"

SUBSTITUTIONS = (
    (
        r'\A"""The client for asyncio:.*?"""\n',
        '"""The client for threads: made from `_aio.py` by `client/unasync.py`; edit there."""\n',
    ),
    (r"^import asyncio\n", ""),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basync def\b", "def"),
    (r"\bawait ", ""),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\bAsyncClient\b", "Client"),
    (r"any number of concurrent calls", "any number of threads"),
    (r"\bopen_aio\b", "open_sync"),
    (r"\bconnecting_aio\b", "connecting_sync"),
    (r"\bCallAio\b", "CallSync"),
    (r"\bgrpc\.aio\.AioRpcError\b", "grpc.RpcError"),
    (r"\bgrpc\.aio\.UnaryUnaryMultiCallable\b", "grpc.UnaryUnaryMultiCallable"),
)
LEFTOVERS = re.compile(r"a?sync(?:io|hronous)|\baio\b|\basync\b|\bawait\b|Async")


def unasync(text: str) -> str:
    """The same code without asyncio; raises ValueError if a substitution has nothing to do."""
    for pattern, replacement in SUBSTITUTIONS:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE | re.DOTALL)
        if count == 0:
            raise ValueError(f"unused substitution: {pattern}")
    # The docstring that says where the code comes from is the one place that may name the source.
    body = text.partition('"""\n')[2]
    if leftover := LEFTOVERS.search(body):
        raise ValueError(f"still asyncio after all substitutions: {leftover.group()!r}")
    return text


def formatted(text: str) -> str:
    """Text in the formatter's order: shorter words change where lines break."""
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(  # noqa: S603 - our own tool
        [ruff, "format", "--stdin-filename", TARGET, "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def main() -> None:
    """Write the target, or with --check only compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    check = parser.parse_args().check
    try:
        fresh = formatted(unasync(SOURCE.read_text()))
    except ValueError as error:
        sys.exit(f"{SOURCE.name}: {error}")
    if not check:
        TARGET.write_text(fresh)
    elif not TARGET.exists() or TARGET.read_text() != fresh:
        sys.exit(f"out of date: {TARGET.name}; run python client/unasync.py")


if __name__ == "__main__":
    main()
