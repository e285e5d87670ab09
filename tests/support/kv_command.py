"""`kv` in this process, and what nodes tell it about themselves."""

from typing import Any

from click.testing import CliRunner, Result
from support.fake_node import Step, answers

from kvclient import cli
from kvpb import rpc_pb2

HEADER = rpc_pb2.ResponseHeader(cluster_id=1, revision=7, raft_term=3)


def kv(*arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Result:
    environment: dict[str, str | None] = {"KV_ENDPOINTS": None, **(env or {})}
    return CliRunner().invoke(cli.main, arguments, input=stdin, env=environment)


def status_step(member_id: int, leader: int, applied: int, **fields: Any) -> Step:
    header = rpc_pb2.ResponseHeader(cluster_id=1, member_id=member_id, revision=7, raft_term=3)
    return answers(
        rpc_pb2.StatusResponse(
            header=header, version="3.5.0", dbSize=2048, dbSizeInUse=1024, leader=leader,
            raftIndex=applied, raftTerm=3, raftAppliedIndex=applied, **fields,
        )
    )  # fmt: skip


def three_members(*addresses: str) -> Step:
    members = [
        rpc_pb2.Member(ID=i, name=f"n{i}", clientURLs=[f"http://{address}"])
        for i, address in enumerate(addresses, 0xA1)
    ]
    return answers(rpc_pb2.MemberListResponse(members=members))
