"""Every command of etcdctl, and every option of those for keys, says what it says of an etcd."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.etcd import Etcd
from support.etcdctl import printed, said

from kvbench.cluster import Cluster
from kvbench.flavor import FLAVORS

pytestmark = pytest.mark.cluster

TXN = """\
create("a") > "0"
mod("a") < "1000"
value("missing") != "x"

put t "one"
put u "two words" --prev-kv
del b
get a z

get a --rev=1

"""
NESTED_QUOTES = 'ver("t") = "1"\n\nput v "\\"quoted\\" \\n line"\nget v\n\n\n'

KEYS = [
    ("put a 1", ""),
    ("put a 2 --prev-kv", ""),
    ("put a --ignore-value", ""),
    ("put a kept --ignore-value", ""),
    ("put a 3 --ignore-lease", ""),
    ("put a 3 --ignore-lease --lease=1", ""),
    ("put b x --lease=1234", ""),
    ("put missing --ignore-value", ""),
    ("put b x --prev-kv -w json", ""),
    ("put c", "from standard\ninput"),
    ("put b y -w fields", ""),
    ("put", ""),
    ("put a b c", ""),
    ("get a --rev=2", ""),
    ("get a --rev=2 -w json", ""),
    ("get a --rev=2 -w fields", ""),
    ("get a --hex", ""),
    ("get a --print-value-only --hex", ""),
    ("get a d --limit=1", ""),
    ("get a --from-key --limit=2 --keys-only", ""),
    ("get a --from-key --count-only -w fields", ""),
    ("get a --from-key --order=DESCEND --sort-by=KEY", ""),
    ("get a --from-key --order=ASCEND --sort-by=CREATE --keys-only", ""),
    ("get a --from-key --order=ASCEND --sort-by=MODIFY --keys-only", ""),
    ("get a --from-key --order=DESCEND --sort-by=VALUE --keys-only", ""),
    ("get a --from-key --order=DESCEND --sort-by=VERSION --keys-only", ""),
    ("get a --from-key --sort-by=VALUE --keys-only", ""),
    ("get a --order=SIDEWAYS", ""),
    ("get a --sort-by=WEIGHT", ""),
    ("get a --prefix --from-key", ""),
    ("get a --consistency=l", ""),
    ("get a --consistency=s", ""),
    ("get a --consistency=x", ""),
    ("get", ""),
    ("txn", TXN),
    ("txn -i", TXN),
    ("txn -w json", TXN),
    ("txn -w fields", NESTED_QUOTES),
    ("txn", 'val("a") = 1\n\n\n\n'),
    ("txn", "\nput a 1\nput a 2\n\n\n"),
    ("txn", "\n\n\n"),
    ("del a --prev-kv -w json", ""),
    ("del a b", ""),
    ("del b --from-key --prev-kv -w fields", ""),
    ("del a --prefix --from-key", ""),
    ("del", ""),
    ("put a 1", ""),
    ("compact 4", ""),
    ("compact 4", ""),
    ("compact 99999", ""),
    ("compact 6 --physical", ""),
    ("compact x", ""),
    ("get a --rev=3", ""),
    ("put a 2", ""),
    ("get a --rev=6", ""),
]

CLUSTER = [
    ("endpoint status -w json", ""),
    ("endpoint status -w fields", ""),
    ("endpoint status --cluster -w table", ""),
    ("endpoint hashkv", ""),
    ("endpoint hashkv -w table", ""),
    ("endpoint hashkv -w json", ""),
    ("endpoint hashkv -w fields", ""),
    ("endpoint hashkv --rev=7", ""),
    ("endpoint hashkv --rev=99999", ""),
    ("auth status", ""),
    ("auth status -w json", ""),
    ("--user somebody:secret get a", ""),
    ("member list -w json", ""),
    ("member list -w fields", ""),
    ("member add x --peer-urls=nonsense", ""),
    ("member add x", ""),
    ("member remove 1", ""),
    ("member remove x", ""),
    ("member update 1 --peer-urls=http://127.0.0.1:1", ""),
    ("member promote 1", ""),
    ("move-leader 1", ""),
    ("alarm list", ""),
    ("alarm disarm", ""),
    ("snapshot save", ""),
    ("version", ""),
    ("check", ""),
]

LEASES = [
    ("lease grant 1000", ""),
    ("lease grant 0", ""),
    ("lease grant 9000000001", ""),
    ("lease grant", ""),
    ("lease grant x", ""),
    ("lease timetolive 1234abcd", ""),
    ("lease timetolive 1234abcd --keys", ""),
    ("lease revoke 1234abcd", ""),
    ("lease keep-alive --once 1234abcd", ""),
    ("put a 1 --lease=1234abcd", ""),
]
"""Without leases of one's own; with them see `test_the_life_of_a_lease`."""

UNIMPLEMENTED = [
    "auth enable", "auth disable", "user list", "user get root", "user delete root",
    "user grant-role root root", "role list", "role add reader", "role get root",
    "role grant-permission reader read a",
]  # fmt: skip
"""What this server has not; etcd has."""


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Cluster]]:
    """An etcd and a kvserver of three nodes each, at their first revision."""
    async with (
        Cluster(tmp_path / "etcd", flavor=FLAVORS["etcd"]) as etcd,
        Cluster(tmp_path / "kvserver") as ours,
    ):
        await ours.wait_in_step()
        yield etcd, ours


async def compare(
    both: tuple[Cluster, Cluster], ask: Callable[[tuple[str, ...]], object], what: str
) -> None:
    theirs, ours = [await asyncio.to_thread(ask, cluster.endpoints) for cluster in both]
    assert ours == theirs, what


async def test_every_option_for_keys_and_every_question_about_the_cluster(
    both: tuple[Cluster, Cluster],
) -> None:
    different = []
    for line, stdin in [*KEYS, *CLUSTER, *LEASES]:
        theirs, ours = [said(cluster.endpoints, line, stdin) for cluster in both]
        if ours != theirs:
            different.append(f"\n{line}\n--- etcd\n{theirs}\n--- kvserver\n{ours}")
    assert not different, "".join(different)


async def test_the_active_alone_is_healthy_in_every_format(both: tuple[Cluster, Cluster]) -> None:
    actives = [(await cluster.active()).client for cluster in both]
    for line in ("endpoint health", *(f"endpoint health -w {w}" for w in ("table", "json"))):
        theirs, ours = [said((active,), line, "") for active in actives]
        assert ours == theirs, line


async def test_leadership_moves(both: tuple[Cluster, Cluster]) -> None:
    answers = []
    for cluster in both:
        active = await cluster.active()
        other = cluster.others(active)[0]
        members = await cluster.control.members(timeout_s=10)
        target = next(each.id for each in members if each.name == other.name)
        answers.append(said(cluster.endpoints, f"move-leader {target:x}", ""))
        assert (await cluster.active()).name == other.name
    assert answers[0] == answers[1]


async def test_the_life_of_a_lease(both: tuple[Cluster, Cluster]) -> None:
    told = []
    for cluster in both:
        ends = cluster.endpoints
        _, (granted,), _ = await asyncio.to_thread(said, ends, "lease grant 1000 -w simple", "")
        done = Etcd(ends, ()).etcdctl("lease", "grant", "1000")
        lease = done.stdout.split()[1]
        lines = [
            f"put leased/a 1 --lease={lease}", f"put leased/b 2 --lease={lease}",
            "get leased/a -w fields", "put leased/a 3 --ignore-lease",
            f"lease timetolive {lease} --keys", f"lease timetolive {lease} --keys -w json",
            f"lease keep-alive --once {lease}", f"lease revoke {lease}", "get leased/ --prefix",
            f"lease timetolive {lease}", f"lease revoke {lease}",
        ]  # fmt: skip
        words = [await asyncio.to_thread(said, ends, line, "") for line in lines]
        told.append((granted, [_without_time(each) for each in words]))
    assert told[0] == told[1]


def _without_time(words: tuple[int, list[str], list[str]]) -> tuple[int, list[str], list[str]]:
    """Nor the order of its keys, which etcd leaves to chance."""
    code, lines, complaints = words
    keys = re.compile(r'(?<=attached keys\(\[)[^]]+|(?<="keys":\[)[^]]+')
    lines = [
        keys.sub(lambda found: " ".join(sorted(re.split("[, ]", found[0]))), line) for line in lines
    ]
    left = re.compile(r'(remaining\(|"ttl":|"Lease" : |"lease":|"id":)\d+')
    return code, [left.sub(r"\1LEFT", line) for line in lines], complaints


async def test_what_there_is_not_says_so(cluster: Cluster) -> None:
    for line in UNIMPLEMENTED:
        code, _, words = said(cluster.endpoints, line, "")
        assert code == 1, line
        assert any("Unimplemented" in word for word in words), (line, words)


HISTORY = ["put a 1", "put a 2", "put ab 3", "del a", "put c 4", "put a 5"]
EVENT = 'echo "$ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"'
WATCHES = {
    "from the past": (["watch", "a", "--rev=2"], 11, ""),
    "with what was before": (["watch", "a", "--rev=2", "--prev-kv"], 16, ""),
    "a prefix": (["watch", "a", "--rev=2", "--prefix"], 14, ""),
    "a range": (["watch", "a", "b", "--rev=2"], 14, ""),
    "in json": (["watch", "a", "--rev=2", "-w", "json"], 1, ""),
    "in fields": (["watch", "a", "--rev=2", "-w", "fields"], 30, ""),
    "in hexadecimal": (["watch", "a", "--rev=2", "--hex"], 11, ""),
    "with a command": (["watch", "a", "--rev=2", "--", "sh", "-c", EVENT], 11, ""),
    "asked interactively": (["watch", "-i"], 14, "watch --rev=2 --prefix a\n"),
}


async def test_watches(both: tuple[Cluster, Cluster]) -> None:
    for line in HISTORY:
        await compare(both, lambda each: said(each, line, ""), line)  # noqa: B023
    for name, (words, lines, stdin) in WATCHES.items():
        theirs, ours = [
            await asyncio.to_thread(printed, cluster.endpoints, words, lines, stdin=stdin)
            for cluster in both
        ]
        assert masked_events(ours) == masked_events(theirs), name
        assert "" not in ours[-1:], f"{name}: it ended before it said all"


def masked_events(lines: list[str]) -> list[str]:
    """Without the header of json and fields, which names the server."""
    return [
        line.partition('"Events"')[2] if line.startswith('{"Header"') else line
        for line in lines
        if not line.startswith(('"ClusterID"', '"MemberID"', '"RaftTerm"'))
    ]


async def test_a_watch_of_the_future(both: tuple[Cluster, Cluster]) -> None:
    for cluster in both:
        put = cluster.endpoints
        lines = await asyncio.to_thread(
            printed, put, ["watch", "a", "--rev=3"], 3,
            meanwhile=lambda: [said(put, f"put a {n}", "") for n in range(3)],  # noqa: B023
        )  # fmt: skip
        assert lines == ["PUT", "a", "1"]


async def test_a_watch_of_what_is_compacted(both: tuple[Cluster, Cluster]) -> None:
    for line in [*HISTORY, "compact 5", "watch a --rev=2"]:
        await compare(both, lambda each: said(each, line, ""), line)  # noqa: B023


async def test_a_mirror_in_both_directions(both: tuple[Cluster, Cluster]) -> None:
    """Each as the source of the other: what is there, and what comes."""
    for source, target in (both, both[::-1]):
        for number in range(20):
            await source.control.put(f"m/{number}", "v", timeout_s=10)
        active = await target.active()
        words = ["make-mirror", "--prefix=m/", "--dest-prefix=mirrored/", active.client]

        def copied(source: Cluster = source, target: Cluster = target) -> None:
            said(source.endpoints, "put m/late later", "")
            for _ in range(100):
                code, lines, _ = said(target.endpoints, "get mirrored/ --prefix --keys-only", "")
                if code == 0 and len([line for line in lines if line]) == 21:
                    return
            raise AssertionError("not all keys were mirrored")

        await asyncio.to_thread(printed, source.endpoints, words, 0, meanwhile=copied)
