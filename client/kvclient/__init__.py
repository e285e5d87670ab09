"""Client SDK: `AsyncClient` for asyncio and `Client` for threads, against kvserver or any etcd v3.

    async with AsyncClient("127.0.0.1:2379,127.0.0.1:22379") as kv:
        await kv.put("greeting", "hello")
        found = await kv.get("greeting")

Names load when first used: help and shell completion of `kv` need no gRPC, the most of a start.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from kvclient import errors
from kvclient.errors import (
    AnswerLost,
    DeadlineExceeded,
    KvError,
    OutcomeUnknown,
    ServerError,
    Unavailable,
)

if TYPE_CHECKING:
    from kvclient._aio import AsyncClient
    from kvclient._models import (
        Alarm,
        DeleteResult,
        Event,
        HashResult,
        KeyValue,
        Member,
        MemberAdded,
        OpResult,
        PutResult,
        RangeResult,
        Status,
        TxnResult,
    )
    from kvclient._requests import Compare, Op
    from kvclient._snapshot import SavedSnapshot, save_snapshot
    from kvclient._sync import Client
    from kvclient._watching import watch

__all__ = [
    "Alarm",
    "AnswerLost",
    "AsyncClient",
    "Client",
    "Compare",
    "DeadlineExceeded",
    "DeleteResult",
    "Event",
    "HashResult",
    "KeyValue",
    "KvError",
    "Member",
    "MemberAdded",
    "Op",
    "OpResult",
    "OutcomeUnknown",
    "PutResult",
    "RangeResult",
    "SavedSnapshot",
    "ServerError",
    "Status",
    "TxnResult",
    "Unavailable",
    "errors",
    "save_snapshot",
    "watch",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in ("_models", "_requests", "_aio", "_sync", "_snapshot", "_watching"):
            found: object = vars(import_module(f"kvclient.{home}")).get(name)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
