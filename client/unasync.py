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
TARGETS = {ROOT / "_aio.py": ROOT / "_sync.py", ROOT / "_calls_aio.py": ROOT / "_calls_sync.py"}

SUBSTITUTIONS = (
    (r"^import asyncio$", "import time"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basync def\b", "def"),
    (r"\bawait ", ""),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\bAsyncClient\b", "Client"),
    (r"\bAsyncCalls\b", "Calls"),
    (r"\b_calls_aio\b", "_calls_sync"),
    (r"any number of concurrent calls", "any number of threads"),
    (r"\bopen_aio\b", "open_sync"),
    (r"\bconnecting_aio\b", "connecting_sync"),
    (r"\bCallAio\b", "CallSync"),
    (r"\bgrpc\.aio\.AioRpcError\b", "grpc.RpcError"),
    (r"\bgrpc\.aio\.UnaryUnaryMultiCallable\b", "grpc.UnaryUnaryMultiCallable"),
)
HEAD = re.compile(r'\A""".*?"""\n', re.DOTALL)
LEFTOVERS = re.compile(r"a?sync(?:io|hronous)|\baio\b|\basync\b|\bawait\b|Async")


def unasync(texts: dict[str, str]) -> dict[str, str]:
    """The same code without asyncio, file by file.

    Raises:
        ValueError: a substitution has nothing to do, or asyncio is left.
    """
    unused = {pattern for pattern, _ in SUBSTITUTIONS}
    results = {}
    for name, text in texts.items():
        body = HEAD.sub("", text)
        for pattern, replacement in SUBSTITUTIONS:
            body, count = re.subn(pattern, replacement, body, flags=re.MULTILINE)
            if count:
                unused.discard(pattern)
        if leftover := LEFTOVERS.search(body):
            raise ValueError(f"{name}: still asyncio after all substitutions: {leftover.group()!r}")
        head = f"The client for threads: made from `{name}` by `client/unasync.py`; edit there."
        results[name] = f'"""{head}"""\n{body}'
    if unused:
        raise ValueError(f"unused substitution: {unused.pop()}")
    return results


def formatted(text: str) -> str:
    """Text in the formatter's order: shorter words change where lines break."""
    for what in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        text = _ruff(what, text)
    return text


def _ruff(what: list[str], text: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(  # noqa: S603 - our own tool
        [ruff, *what, "--stdin-filename", ROOT / "_sync.py", "-"],
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
    texts = {source.name: source.read_text() for source in TARGETS}
    try:
        results = unasync(texts)
    except ValueError as error:
        sys.exit(str(error))
    for source, target in TARGETS.items():
        fresh = formatted(results[source.name])
        if not check:
            target.write_text(fresh)
        elif not target.exists() or target.read_text() != fresh:
            sys.exit(f"out of date: {target.name}; run python client/unasync.py")


if __name__ == "__main__":
    main()
