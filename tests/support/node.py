"""One real kvserver process on loopback, alone in its cluster; ended by its own pid in any case."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from support.etcd import START_TRIES, free_ports

from kvbench.process import end, spawn
from kvpb.rpc_pb2 import RangeRequest
from kvpb.rpc_pb2_grpc import KVStub

READY_S_MAX = 30.0

CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class SingleNode:
    """A running server."""

    endpoint: str
    process: "subprocess.Popen[bytes]"


@contextlib.contextmanager
def running_node(folder: Path, options: Sequence[str] = ()) -> Iterator[SingleNode]:
    """A server with its data and logs below `folder`, answering requests."""
    for attempt in range(START_TRIES):
        node = start_node(folder / f"try{attempt}", options)
        try:
            if _answers(node):
                yield node
                return
        finally:
            end(node.process)
    logs = sorted(folder.rglob("*.log"))
    raise RuntimeError("kvserver did not start: " + "\n".join(log.read_text() for log in logs))


def start_node(folder: Path, options: Sequence[str]) -> SingleNode:
    """A server that may take a while before it answers; whoever starts it ends its process."""
    folder.mkdir(parents=True)
    client, peer = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, "-m", "kvserver", f"--data-dir={folder / 'data'}"]
    command += [f"--listen-client={client}", f"--listen-peer={peer}"]
    command += ["--auto-compaction-retention=0", *options]  # etcd forgets nothing by itself
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
    return SingleNode(client, spawn(command, folder / "node.log", environment))


def _answers(node: SingleNode) -> bool:
    """False when the process ended, as it does when another took its port meanwhile."""
    with grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as channel:
        waiting = KVStub(channel).Range.future(
            RangeRequest(key=b"ready"), timeout=READY_S_MAX, wait_for_ready=True
        )
        while node.process.poll() is None:
            with contextlib.suppress(grpc.FutureTimeoutError):
                return waiting.exception(timeout=0.05) is None
        waiting.cancel()
    return False
