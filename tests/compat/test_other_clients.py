"""Clients of others, used as people use them, say the same of this cluster as of etcd's.

Each runs in a process of its own, against three nodes, the active of which is killed meanwhile.
"""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from support.cluster import crash

from kvbench.cluster import Cluster
from kvbench.flavor import FLAVORS

pytestmark = pytest.mark.cluster

SCRIPTS: Final = Path(__file__).parent.parent / "clients"
NODE_MODULES: Final = Path(sys.prefix) / "node" / "node_modules"
WITHIN_S: Final = 100.0

SERVICES: Final = "kv,lease"
"""What the scripts may use besides watches."""

COMMANDS: Final = {
    "aetcd_everyday.py": [sys.executable],
    "python_etcd3_everyday.py": [sys.executable],
    "node_etcd3_everyday.cjs": ["node"],
}
EVENTS: Final = {
    "aetcd_everyday.py": ("PUT", "DELETE"),
    "python_etcd3_everyday.py": ("PutEvent", "DeleteEvent"),
    "node_etcd3_everyday.cjs": ("put", "delete"),
}


def environment() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    # python-etcd3 comes with code generated for protobuf 3
    found["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    return found | {"NODE_PATH": str(NODE_MODULES), "PYTHONWARNINGS": "ignore"}


async def said(script: str, cluster: Cluster) -> list[list[Any]]:
    """All that a script prints; the active is killed when it asks for it."""
    process = await asyncio.create_subprocess_exec(
        *COMMANDS[script], str(SCRIPTS / script), SERVICES, ",".join(cluster.endpoints),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=environment(), limit=1 << 20,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    found: list[list[Any]] = []
    try:
        async with asyncio.timeout(WITHIN_S):
            async for line in process.stdout:
                found.append(json.loads(line))
                if found[-1] == ["kill"]:
                    await crash(await cluster.active())
                    process.stdin.write(b"\n")
            _, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaints.decode()
    return found


@pytest.mark.parametrize("script", COMMANDS)
async def test_everyday_use_with_the_active_killed(tmp_path: Path, script: str) -> None:
    if script.endswith(".cjs"):
        if shutil.which("node") is None:
            pytest.skip("there is no node on this machine")
        if not (NODE_MODULES / "etcd3").exists():
            pytest.skip(f"etcd3 of npm is not in {NODE_MODULES}: `make install` with npm puts it")
    answers = []
    for flavor in ("etcd", "kvserver"):
        async with Cluster(tmp_path / flavor, flavor=FLAVORS[flavor]) as cluster:
            answers.append(await said(script, cluster))
    on_etcd, watched = (
        answer.pop(place)[1]
        for answer in answers
        for place in [[line[0] for line in answer].index("watched")]
    )
    assert answers[1] == answers[0]
    # etcd3 of npm may lose its first events: it thinks that it has what the server had at the start
    assert watched[len(watched) - len(on_etcd) :] == on_etcd
    put, delete = EVENTS[script]
    values = ["first", *(str(number) for number in range(40)), None, "last"]
    assert [event[0] for event in watched] == [put if value else delete for value in values]
    assert [event[2] for event in watched if event[0] == put] == [v for v in values if v]
