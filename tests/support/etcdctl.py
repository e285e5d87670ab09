"""What etcdctl says, without what differs from cluster to cluster."""

import contextlib
import re
import subprocess
import threading
from collections.abc import Callable, Sequence

from support.etcd import Etcd, binary

WATCH_S_MAX = 20.0

MOVING_ON = "retrying of unary invoker failed"
MASKS = [
    (re.compile(r"127\.0\.0\.1:\d+"), "ADDRESS"),
    (re.compile(r"\b[en][0-3]\b"), "NAME"),
    (re.compile(r"took = \S+"), "took"),
    (re.compile(r'("took":|"Took" : )"[^"]*"'), r"\1TIME"),
    (re.compile(r"\b[0-9.]+[mµ]?s\b"), "TIME"),
    (re.compile(r"\b3\.5\.[0-9a-z.+]+"), "VERSION"),
    (re.compile(r"\b\d+ kB"), "SIZE"),
    (re.compile(r"(\d+(, | \| +)){3}(?=$|\|)", re.MULTILINE), "TERM AND INDEX"),
    (re.compile(r'("?(cluster_id|member_id|raft_term|leader|ID)"?:)\d+'), r"\1NUMBER"),
    (re.compile(r'("(dbSize|dbSizeInUse|raftTerm|raftIndex|raftAppliedIndex)":)\d+'), r"\1NUMBER"),
    (re.compile(r'("(ClusterID|MemberID|Leader|RaftTerm|ID)" : )\d+'), r"\1NUMBER"),
    (re.compile(r'("(DBSize|RaftIndex|RaftAppliedIndex)" : )\d+'), r"\1NUMBER"),
    (re.compile(r'(ADDRESS(?:, | \| +)|"hash":|"Hash" : )\d{5,}\b'), r"\1HASH"),
    (re.compile(r"\b[0-9a-f]{14,16}\b"), "ID"),
    (re.compile(r'"(ts|caller|target|endpoint)":"[^"]*"'), ""),
    (re.compile(r" {2,}|-{2,}"), " "),
]


def said(endpoints: tuple[str, ...], line: str, stdin: str) -> tuple[int, list[str], list[str]]:
    """Exit code and what was printed."""
    done = Etcd(endpoints, ()).etcdctl(*line.split(), stdin=stdin)
    return done.returncode, masked(done.stdout), masked(done.stderr)


def masked(text: str) -> list[str]:
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    # a standby declines, and the client logs that it asks another; etcd's would have served
    lines = [line for line in text.splitlines() if MOVING_ON not in line]
    return sorted(lines)  # members are in the order of their ids


def printed(
    endpoints: Sequence[str],
    words: Sequence[str],
    lines: int,
    *,
    stdin: str = "",
    meanwhile: Callable[[], object] = lambda: None,
) -> list[str]:
    """The first lines of a command that goes on for ever; it is ended after them."""
    command = [str(binary("etcdctl")), f"--endpoints={','.join(endpoints)}", *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        alarm = threading.Timer(WATCH_S_MAX, process.kill)
        alarm.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(stdin)
            process.stdin.flush()
            meanwhile()
            found = [process.stdout.readline().rstrip("\n") for _ in range(lines)]
        finally:
            alarm.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return found
