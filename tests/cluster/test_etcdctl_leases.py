"""etcdctl's commands about leases, locks and elections say the same of this cluster as of etcd's.

It makes locks and elections by itself, of leases, transactions and watches.
"""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.etcd import Etcd, binary, running_etcd

from kvbench.cluster import Cluster

pytestmark = pytest.mark.cluster

LINES = (
    "lease timetolive {lease}",
    "put k1 v --lease={lease}",
    "put k2 v --lease={lease}",
    "put k2 w --ignore-lease",
    "put k3 v --lease=1234567890123456",
    "lease timetolive {lease} --keys",
    "lease timetolive {lease} --keys -w json",
    "lease list",
    "lease list -w json",
    "lease keep-alive --once {lease}",
    "lease keep-alive --once 1234567890123456",
    "lease timetolive 1234567890123456",
    "lease timetolive 1234567890123456 -w json",
    "del k1",
    "lease timetolive {lease} --keys",
    "lease revoke {lease}",
    "lease revoke {lease}",
    "get k --prefix",
    "lease list",
)
SHOW = "import os; print(os.environ['ETCD_LOCK_KEY'], os.environ['ETCD_LOCK_REV'])"

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("lock", "l", "--", sys.executable, "-c", SHOW),
    ("lock", "l", "--ttl=5", "--", sys.executable, "-c", "raise SystemExit(3)"),
    ("get", "l", "--prefix", "--keys-only"),
)
LASTING: tuple[tuple[int, tuple[str, ...]], ...] = (
    (1, ("lock", "l")),
    (2, ("elect", "e", "me")),
)
"""That go on until they are interrupted, and how many lines they say before."""

MASKS = (
    (re.compile(r"\b[0-9a-f]{13,16}\b"), "ID"),
    (re.compile(r'"(cluster_id|member_id|raft_term|id)":-?\d+'), r'"\1":NUMBER'),
    (re.compile(r'"(ts|caller|target)":"[^"]*"|127\.0\.0\.1:\d+'), ""),
    (re.compile(r'remaining\(\d+s\)|"ttl":4\d\d'), "REMAINING"),
)
MOVING_ON = "retrying of unary invoker failed"
KEYS = re.compile(r'(?<="keys":\[)[^]]+|(?<=attached keys\(\[)[^]]+')
"""Of a lease: in no order on etcd."""

SAID_S_MAX = 20.0

HOLDERS = 6
"""Each begins with an endpoint of its own choice."""

HELD_S = 4


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), members=3) as started:
        yield started


def masked(text: str) -> list[str]:
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    text = KEYS.sub(lambda keys: " ".join(sorted(re.split("[, ]", keys[0]))), text)
    return [line for line in text.splitlines() if MOVING_ON not in line]


class Told:
    """What etcdctl says of one cluster."""

    def __init__(self, endpoints: tuple[str, ...]) -> None:
        self._etcd = Etcd(endpoints, ())

    def grant(self) -> str:
        """A new lease, as etcdctl writes it."""
        return self._etcd.etcdctl("lease", "grant", "500").stdout.split()[1]

    def said(self, *arguments: str) -> tuple[int, list[str], list[str]]:
        done = self._etcd.etcdctl(*arguments)
        return done.returncode, masked(done.stdout), masked(done.stderr)

    def said_until_interrupted(self, lines: int, *arguments: str) -> list[str]:
        """Its first lines; then it is stopped as by Ctrl-C."""
        command = [str(binary("etcdctl")), f"--endpoints={','.join(self._etcd.endpoints)}"]
        with subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout is not None
                words = "".join(process.stdout.readline() for _ in range(lines))
                process.send_signal(signal.SIGINT)
                process.wait(SAID_S_MAX)
            finally:
                process.kill()
        return masked(words)


async def test_leases(cluster: Cluster, etcd: Etcd) -> None:
    ours, theirs = Told(cluster.endpoints), Told(etcd.endpoints)
    leases = (ours.grant(), theirs.grant())
    for line in LINES:
        words = [
            told.said(*line.format(lease=lease).split())
            for told, lease in zip((ours, theirs), leases, strict=True)
        ]
        assert words[0] == words[1], line


async def test_locks_and_elections(cluster: Cluster, etcd: Etcd) -> None:
    ours, theirs = Told(cluster.endpoints), Told(etcd.endpoints)
    for told in (ours, theirs):
        told.said("del", "", "--prefix")
    for _ in range(2):
        for command in COMMANDS:
            code, words, errors = ours.said(*command)
            theirs_code, theirs_words, theirs_errors = theirs.said(*command)
            assert (code, errors) == (theirs_code, theirs_errors), command
            assert numbers_gone(words) == numbers_gone(theirs_words), command
        for lines, command in LASTING:
            assert ours.said_until_interrupted(lines, *command) == (
                theirs.said_until_interrupted(lines, *command)
            )


async def test_a_lock_with_the_shortest_time_is_held_as_long_as_its_command(
    cluster: Cluster,
) -> None:
    """The client waits for half a second after each standby that does not keep its lease alive."""
    etcdctl = f"{binary('etcdctl')} --endpoints={','.join(cluster.endpoints)}"
    command = ("sh", "-c", f'sleep {HELD_S}; {etcdctl} get "$ETCD_LOCK_KEY" --keys-only')
    told = Told(cluster.endpoints)
    ended = await asyncio.gather(
        *(
            asyncio.to_thread(told.said, "lock", f"l{number}", "--ttl=1", "--", *command)
            for number in range(HOLDERS)
        )
    )
    for number, (code, words, _) in enumerate(ended):
        assert (code, words) == (0, [f"l{number}/ID", ""]), "the key is gone"


def numbers_gone(lines: list[str]) -> list[str]:
    """Without revisions, which count what others did too."""
    return [re.sub(r" \d+$", "", line) for line in lines]
