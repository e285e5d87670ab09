"""`kv watch` goes on over crashes of the active, its hanging too, without gap or duplicate."""

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

import pytest
from support.cluster import crash, wait_until, writing

from kvbench.cluster import Cluster
from kvbench.flavor import FLAVORS
from kvclient.errors import OutcomeUnknown

pytestmark = pytest.mark.cluster

FAULTS = 2


class Watching:
    """A `kv watch` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.revisions: list[int] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.revisions.append(json.loads(line)["kv"]["mod_revision"])

    async def end(self) -> int:
        """As Ctrl-C does; the exit code."""
        self._process.send_signal(signal.SIGINT)
        code = await self._process.wait()
        await self._task
        return code


async def watch(cluster: Cluster, *words: str) -> Watching:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kvclient.cli", "--endpoints", ",".join(cluster.endpoints), "watch",
        *words, "-o", "json", "--timeout", "20", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    return Watching(process)


@pytest.mark.parametrize("flavor", ["kvserver", "etcd"])
async def test_each_change_once_and_in_order(tmp_path: Path, flavor: str) -> None:
    async with Cluster(tmp_path, flavor=FLAVORS[flavor]) as cluster:
        watching = await watch(cluster, "", "--prefix", "--rev=1")
        async with writing(cluster, writers=4) as writers:
            for _ in range(FAULTS):
                seen = len(watching.revisions)
                await writers.flow()
                await wait_until(lambda: len(watching.revisions) > seen, "it goes on")  # noqa: B023
                active = await cluster.active()
                await crash(active)
                await writers.flow()
                active.start()
                await cluster.wait_in_step()
        newest = (await cluster.control.range("none", timeout_s=10)).revision
        await wait_until(
            lambda: bool(watching.revisions) and watching.revisions[-1] >= newest, "all is seen"
        )
        assert await watching.end() == 130
        # a write that nobody waited for any more may have come behind the newest one
        assert watching.revisions == list(range(2, watching.revisions[-1] + 1))


async def test_an_active_that_hangs_is_left(cluster: Cluster) -> None:
    active = await cluster.wait_in_step()
    await cluster.control.put("key", "before", timeout_s=10)
    watching = await watch(cluster, "key", "--rev=1")
    await wait_until(lambda: watching.revisions == [2], "it watches")
    active.stop()
    try:
        with contextlib.suppress(OutcomeUnknown):  # whoever hangs does not say what it has done
            await cluster.control.put("key", "meanwhile", timeout_s=20)
        newest = (await cluster.control.put("key", "after", timeout_s=20)).revision
        await wait_until(
            lambda: watching.revisions == list(range(2, newest + 1)), "it has left who hangs"
        )
    finally:
        active.cont()
        await watching.end()
