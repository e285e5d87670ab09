"""Real processes: verbs, clusters, whole runs; and nothing outlives the one who started it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kvbench import clock
from kvbench.cluster import Cluster, ClusterError
from kvbench.failover import Failover, Fault, Options
from kvbench.flavor import ETCD, Flavor, NodePlan
from kvbench.history import Fate
from kvbench.nodelog import parse_kvserver
from kvbench.process import end, spawn, wait_exit
from kvbench.verify import verify
from kvbench.writer import Writer

pytestmark = pytest.mark.cluster


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    deadline = clock.monotonic() + 10
    while alive(pid) and clock.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from kvbench.process import spawn\n"
        "child = spawn([sys.executable, '-c', 'import time; time.sleep(600)'], Path(sys.argv[1]))\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            assert alive(pid)
            parent.kill()
            parent.wait(10)
            assert gone(pid)
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


async def test_the_pid_is_the_programs_own(tmp_path: Path) -> None:
    script = "import os; print(os.getpid(), flush=True)"
    process = spawn([sys.executable, "-c", script], tmp_path / "out")
    try:
        assert await wait_exit(process, 20) == 0
    finally:
        end(process)
    assert int((tmp_path / "out").read_text()) == process.pid


async def test_waiting_is_bounded(tmp_path: Path) -> None:
    process = spawn([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "out")
    try:
        with pytest.raises(TimeoutError):
            await wait_exit(process, 0.05)
    finally:
        end(process)
    assert process.returncode == -signal.SIGKILL


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "sign"),
    [
        (["failover", "--rounds", "100", "--fault", "stop"], b"round 1"),
        (["load", "--flavor", "kvserver", "--seconds", "0.5", "--repeats", "100"], b"repeat 1"),
        (["demo"], b"is killed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_interrupted_run_ends_every_process_and_leaves_nothing(
    arguments: list[str], sign: bytes, number: signal.Signals, tmp_path: Path
) -> None:
    if arguments[0] == "load" and shutil.which("h2load") is None:
        pytest.skip("h2load is not installed: apt install nghttp2-client")
    command = [sys.executable, "-m", "kvbench", *arguments]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment
    ) as bench:
        try:
            assert bench.stdout is not None
            said = b""
            while sign not in said:
                line = bench.stdout.readline()
                assert line, said.decode()
                said += line
            nodes = children(bench.pid)
            assert len(nodes) >= 2
            bench.send_signal(number)
            rest, _ = bench.communicate(timeout=30)
        finally:
            bench.kill()
    assert bench.returncode == 130
    assert b"Traceback" not in rest
    for pid in nodes:
        assert gone(pid)
    assert list(tmp_path.glob("kvbench-*")) == []


def _broken(_plan: NodePlan) -> list[str]:
    return [sys.executable, "-c", "print('no space on the moon'); raise SystemExit(3)"]


async def test_a_node_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    broken = Flavor("broken", _broken, parse_kvserver, logs_activation=True, settings=())
    with pytest.raises(ClusterError, match="no space on the moon"):
        async with Cluster(tmp_path, flavor=broken, nodes=1):
            pass


async def test_the_verbs_of_a_cluster(tmp_path: Path) -> None:
    async with Cluster(tmp_path, flavor=ETCD) as cluster:
        active = await cluster.active()
        pids = [node.pid for node in cluster.nodes]

        active.stop()
        assert await cluster.status(active) is None
        successor = await cluster.active()
        assert successor is not active
        active.cont()
        assert await cluster.wait_in_step() is successor

        successor.term()
        assert await successor.wait_exit() in {0, -signal.SIGTERM}
        with pytest.raises(ClusterError, match="does not run"):
            successor.kill()
        successor.start()
        await cluster.wait_in_step()

        frozen = cluster.others(await cluster.active())[0]
        frozen.stop()
        pids += [node.pid for node in cluster.nodes]
    for pid in pids:
        assert pid is not None
        assert gone(pid)


# not after a cut: an answer that is on its way through the wires may come after it
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.CUT])
async def test_a_round_of_failover(tmp_path: Path, fault: Fault) -> None:
    options = Options(ETCD, fault, rounds=1, nodes=3, seed=7, put_timeout_s=0.2)
    shown: list[int] = []
    async with Cluster(tmp_path, flavor=ETCD) as cluster:
        result = await Failover(cluster, options).run(lambda done: shown.append(done.number))
    assert result.verdict.broken == {}
    assert result.verdict.acknowledged > 0
    (only,) = result.rounds
    assert shown == [1]
    assert only.successor not in {None, only.victim}
    assert 0 < only.parts.recovery < 30
    assert only.campaigns >= 1
    assert (only.reads > 0) is (fault is Fault.STOP)


async def test_the_judge_is_given_what_is_really_there(tmp_path: Path) -> None:
    """A run whose history claims more than was written must fail."""
    async with (
        Cluster(tmp_path, flavor=ETCD, nodes=1) as cluster,
        cluster.connect(5.0) as client,
    ):
        writer = Writer(client, "k/", random.Random(1))
        writer.start()
        assert await writer.wait_acknowledged(0.0, 10.0)
        await writer.stop()
        first = writer.writes[0]
        assert (await verify(cluster, writer.writes, "k/")).broken == {}
        lost = replace(first, key="k/never", fate=Fate.ACKNOWLEDGED, revision=10**9)
        assert (await verify(cluster, [*writer.writes, lost], "k/")).lost == ["k/never"]
        await client.put(first.key, first.value)
        assert (await verify(cluster, writer.writes, "k/")).duplicated == [first.key]
