"""Nodes in network namespaces of their own, a router between them, and packets that it drops.

Here the kernel does what `kvbench.wires` only imitates: connects that nobody answers, packets sent
again ever more rarely, resets that get lost. Run as a program, inside a namespace made for it, this
tells one story; it needs root.
"""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.cluster import WAIT_S_MAX, Writers, writing
from support.real_clients import RealClients, recording

from kvbench.cluster import Cluster, Node
from kvbench.flavor import KVSERVER, Flavor, NodePlan

APART_S = 4.0
"""Longer than any timeout, and long enough that the kernel has become slow to try again."""

NAMES = ("n1", "n2", "n3")
CUT = ("rule", "add", "pref", "100")


def program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert found is not None, f"{name} is not installed"
    return found


def ip(*words: str) -> None:
    subprocess.run([program("ip"), *words], check=True)


def network(name: str) -> str:
    return f"10.9.{NAMES.index(name) + 1}"


def build() -> None:
    """A namespace for each node, this one the router between them; clients live here."""
    ip("link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for name in NAMES:
        ip("netns", "add", name)
        ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{network(name)}.1/24", "dev", f"to-{name}")
        ip("link", "set", f"to-{name}", "up")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        ip("-n", name, "addr", "add", f"{network(name)}.2/24", "dev", "eth0")
        ip("-n", name, "route", "add", "default", "via", f"{network(name)}.1")


def isolate(name: str) -> None:
    """From now on the router drops, both ways, what goes between this node and the others."""
    for other in NAMES:
        if other != name:
            for source, target in ((name, other), (other, name)):
                ip(*CUT, "iif", f"to-{source}", "to", f"{network(target)}.0/24", "blackhole")


def mend() -> None:
    for _ in range(2 * (len(NAMES) - 1)):
        ip("rule", "del", "pref", "100")


def command(plan: NodePlan) -> Sequence[str]:
    inside = (program("ip"), "netns", "exec", plan.name)
    return [*inside, *KVSERVER.command(plan), "--allow-insecure"]


class ApartCluster(Cluster):
    """Each node in its namespace."""

    def _plan(self, nodes: int, options: Sequence[str]) -> tuple[Node, ...]:
        flavor = Flavor("in a namespace", command, KVSERVER.parser, True, KVSERVER.settings)
        peers = {name: f"{network(name)}.2:2380" for name in NAMES}
        plans = [
            NodePlan(name, self.folder / name, f"{network(name)}.2:2379", peers[name], peers)
            for name in NAMES
        ]
        return tuple(
            Node(plan, flavor, options, self.folder / f"{plan.name}.log") for plan in plans
        )


async def story(folder: Path) -> None:
    """A standby is cut off, then the active; each comes back without disturbing."""
    async with ApartCluster(folder) as cluster:
        async with recording(cluster) as clients, writing(cluster, writers=4) as writers:
            await come_and_go(cluster, clients, writers)
        await writers.verify(cluster)


async def come_and_go(cluster: Cluster, clients: RealClients, writers: Writers) -> None:
    await writers.flow()
    active = await cluster.wait_in_step()
    before = await cluster.control.status(active.client)
    for victim in (cluster.others(active)[0], active):
        clients.stay_with(victim.client)
        isolate(victim.name)
        if victim is active:
            async with asyncio.timeout(WAIT_S_MAX):
                while await cluster.active() is victim:
                    await asyncio.sleep(0.02)
        await writers.flow()
        await asyncio.sleep(APART_S)
        mend()
        serves = await cluster.wait_in_step()
        if victim is active:
            assert serves is not active
        else:
            after = await cluster.control.status(active.client)
            assert (serves, after.term) == (active, before.term), "a guest disturbs nobody"


if __name__ == "__main__":
    build()
    asyncio.run(story(Path(sys.argv[1])))
    sys.stdout.write("judged\n")
