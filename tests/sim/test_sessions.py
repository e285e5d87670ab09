"""The time of sessions, on a node that is whole."""

from typing import Any, cast

from support.simulation import Cluster
from support.whole_node import Sent, WholeNode

from kvclient._sessions import WRITE_ID
from kvpb.rpc_pb2 import PutRequest
from kvpb.session_pb2 import OpenSessionRequest, WriteId


def test_a_write_in_time_keeps_its_session_however_late_its_answer_is() -> None:
    cluster = Cluster(1, node_type=WholeNode)
    node = cast("WholeNode", cluster.elect())
    cluster.run(10)  # after a short reign the log would have to hear how late it is

    def ask(method: str, request: Any) -> Any:
        task = node.loop.create_task(node.serve(method, request))
        assert cluster.run(5, until=task.done)
        return task.result()

    opened_at = cluster.clock.now
    session = ask("Open", OpenSessionRequest(ttl_s=1)).session
    cluster.run(opened_at + 0.95 - cluster.clock.now)
    cluster.storages[node.name].commit_s = 0.3
    write = WriteId(session=session, sequence=1).SerializeToString()
    began = cluster.clock.now
    ask("Put", Sent("Put", PutRequest(key=b"k"), ((WRITE_ID, write),)))
    assert cluster.clock.now > opened_at + 1.0, "its time was up meanwhile"
    cluster.run(began + 0.95 - cluster.clock.now)
    write = WriteId(session=session, sequence=2).SerializeToString()
    ask("Put", Sent("Put", PutRequest(key=b"k"), ((WRITE_ID, write),)))
