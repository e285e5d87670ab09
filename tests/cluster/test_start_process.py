"""A process is started, as the verifier does, while calls are served."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

SCRIPT = """
import asyncio
import kvserver.api
import grpc
import uvloop

STARTED = 600

async def answer(request, context):
    return request

class Everything(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(answer)

async def call(port):
    while True:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            for _ in range(20):
                await channel.unary_unary("/any/call")(b"x" * 100)

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    calls = [asyncio.create_task(call(port)) for _ in range(8)]
    for _ in range(STARTED):
        process = await asyncio.create_subprocess_exec("/bin/true")
        assert await process.wait() == 0
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await server.stop(None)
    print("done")

uvloop.run(main())
"""


def test_starting_processes_beside_calls_neither_hangs_nor_ends_a_node() -> None:
    """gRPC's fork handlers, if they run at all, do so within a few dozen of them.

    They are on in the environment, to see that the node does not leave it to that.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
    assert "fork" not in done.stderr
