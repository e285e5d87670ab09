"""After the writes: everything read back, all copies compared, the history judged."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from kvbench import clock
from kvbench.cluster import Cluster, ClusterError
from kvbench.history import Read, Stored, Verdict, Write, judge
from kvclient import AsyncClient

CALL_S_MAX: Final = 30.0
HASH_S_MAX: Final = 120.0
"""A hash reads all keys."""

EQUAL_REVISION_S_MAX: Final = 10.0
PAGE_KEYS: Final = 1_000


async def verify(
    cluster: Cluster, writes: Sequence[Write], prefix: str, reads: Sequence[Read] = ()
) -> Verdict:
    """Judge what a client was told, once nobody writes any more and all nodes are in step."""
    (verdict,) = await verify_all(cluster, {prefix: (writes, reads)})
    return verdict


async def verify_all(
    cluster: Cluster, told: Mapping[str, tuple[Sequence[Write], Sequence[Read]]]
) -> list[Verdict]:
    """The same for many clients, by their prefixes; the copies are compared once for all."""
    await cluster.wait_in_step()
    async with cluster.connect(CALL_S_MAX) as client:
        hashes = await _hashes(cluster, client)
        return [
            judge(writes, await read_back(client, prefix), reads, hashes)
            for prefix, (writes, reads) in told.items()
        ]


async def _hashes(cluster: Cluster, client: AsyncClient) -> dict[str, int]:
    """Hash of each node's copy, all at one revision."""
    deadline = clock.monotonic() + EQUAL_REVISION_S_MAX
    while True:
        found = await asyncio.gather(
            *(client.hash_kv(node.client, timeout_s=HASH_S_MAX) for node in cluster.nodes)
        )
        if len({(each.revision, each.compact_revision) for each in found}) == 1:
            names = (node.name for node in cluster.nodes)
            return {name: each.hash for name, each in zip(names, found, strict=True)}
        if clock.monotonic() > deadline:
            raise ClusterError("the nodes did not come to the same revision without any writes")
        await asyncio.sleep(0.05)


async def read_back(client: AsyncClient, prefix: str) -> dict[str, Stored]:
    """Everything under a prefix that nobody writes to any more."""
    stored: dict[str, Stored] = {}
    first, end = prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)
    while True:
        page = await client.range(first, range_end=end, limit=PAGE_KEYS)
        for kv in page.kvs:
            stored[kv.key.decode()] = Stored(kv.value, kv.version, kv.mod_revision)
        if not page.more or not page.kvs:
            return stored
        first = page.kvs[-1].key.decode() + "\0"
