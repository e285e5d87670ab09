"""What a key-value store answers, written as plainly as possible: a dict and loops.

It shares nothing with the store but the messages: no batches, no steps, no storage. A transaction
is done on a copy, which is dropped when anything in it fails.
"""

import copy
from collections.abc import Callable

from support.kv_requests import Reply, Request

from kvpb.kv_pb2 import KeyValue
from kvpb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)


class RefusedError(Exception):
    """Nothing is changed."""


class Model:
    """State and answers of one store."""

    def __init__(self) -> None:
        self.rows: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.compacted = -1
        self.past: dict[int, dict[bytes, KeyValue]] = {1: {}}
        """The rows as of each revision."""

    def ask(self, request: Request) -> Reply:
        """Answer a request that is well formed.

        Raises:
            RefusedError: it can't be done in this state.
        """
        if isinstance(request, CompactionRequest):
            return self._compact(request)
        scratch = copy.copy(self)
        scratch.rows = dict(self.rows)  # a pair is replaced, never changed
        reply, changed = scratch.do(request, self, self.revision + 1, changed=False)
        if changed:
            scratch.revision += 1
        reply.header.revision = scratch.revision
        self.rows, self.revision = scratch.rows, scratch.revision
        self.past[self.revision] = self.rows
        return reply

    def _compact(self, request: CompactionRequest) -> CompactionResponse:
        if not self.compacted < request.revision <= self.revision:
            raise RefusedError
        self.compacted = request.revision
        reply = CompactionResponse()
        reply.header.revision = self.revision
        return reply

    def do(
        self, request: Request, before: "Model", revision: int, *, changed: bool
    ) -> tuple[Reply, bool]:
        """One operation of the change that makes `revision` out of `before`."""
        reply: Reply
        if isinstance(request, PutRequest):
            reply, changed = self._put(request, revision), True
        elif isinstance(request, DeleteRangeRequest):
            reply = self._delete(request)
            changed = changed or reply.deleted > 0
        elif isinstance(request, RangeRequest):
            reply = before.range(request) if request.revision > 0 else self.range(request)
        else:
            assert isinstance(request, TxnRequest)
            return self._txn(request, before, revision, changed=changed)
        reply.header.revision = revision if changed else revision - 1
        return reply, changed

    def _put(self, request: PutRequest, revision: int) -> PutResponse:
        old = self.rows.get(request.key)
        if request.lease or (old is None and (request.ignore_value or request.ignore_lease)):
            raise RefusedError
        new = KeyValue(key=request.key, value=request.value, mod_revision=revision)
        new.create_revision = revision if old is None else old.create_revision
        new.version = 1 if old is None else old.version + 1
        if request.ignore_value and old is not None:
            new.value = old.value
        self.rows[request.key] = new
        return PutResponse(prev_kv=old if request.prev_kv else None)

    def _delete(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        gone = [self.rows.pop(key) for key in self._selected(request.key, request.range_end)]
        return DeleteRangeResponse(deleted=len(gone), prev_kvs=gone if request.prev_kv else [])

    def _selected(self, key: bytes, range_end: bytes) -> list[bytes]:
        if not range_end:
            return [key] if key in self.rows else []
        to_the_end = range_end == b"\0"
        return sorted(k for k in self.rows if k >= key and (to_the_end or k < range_end))

    def range(self, request: RangeRequest) -> RangeResponse:
        at = request.revision
        if at > self.revision or 0 < at < min(self.compacted, self.revision):
            raise RefusedError
        then = copy.copy(self)
        then.rows = self.past[at] if at > 0 else self.rows
        found = [then.rows[key] for key in then._selected(request.key, request.range_end)]
        reply = RangeResponse(count=len(found))
        if request.count_only:
            return reply
        unordered = request.sort_order == RangeRequest.NONE
        kept = [kv for kv in found if _passes(request, kv)]
        if unordered and not _filters(request) and request.limit > 0:
            kept = kept[: request.limit + 1]
        if not unordered or request.sort_target != RangeRequest.KEY:
            kept.sort(key=lambda kv: kv.key)
            down = request.sort_order == RangeRequest.DESCEND
            kept.sort(key=_sort_key(request), reverse=down)  # type: ignore[arg-type]
        if 0 < request.limit < len(kept):
            kept, reply.more = kept[: request.limit], True
        for kv in kept:
            reply.kvs.add().CopyFrom(kv)
            if request.keys_only:
                reply.kvs[-1].ClearField("value")
        return reply

    def _txn(
        self, request: TxnRequest, before: "Model", revision: int, *, changed: bool
    ) -> tuple[TxnResponse, bool]:
        succeeded = all(before.holds(compare) for compare in request.compare)
        reply = TxnResponse(succeeded=succeeded)
        reply.header.SetInParent()
        for op in request.success if succeeded else request.failure:
            name = op.WhichOneof("request")
            assert name is not None
            if op.request_range.revision < min(0, before.compacted):
                raise RefusedError  # alone it would mean none
            part, changed = self.do(getattr(op, name), before, revision, changed=changed)
            getattr(reply.responses.add(), name.replace("request", "response")).CopyFrom(part)
        return reply, changed

    def holds(self, compare: Compare) -> bool:
        selected = self._selected(compare.key, compare.range_end)
        if not selected and compare.target == Compare.VALUE:
            return False
        return all(_related(compare, self.rows[key]) for key in selected) and (
            bool(selected) or _related(compare, KeyValue())
        )


def _filters(request: RangeRequest) -> bool:
    return any(field.name.startswith(("min_", "max_")) for field, _ in request.ListFields())


def _passes(request: RangeRequest, kv: KeyValue) -> bool:
    for field, bound in request.ListFields():
        side, _, name = field.name.partition("_")
        if side == "min" and getattr(kv, name) < bound:
            return False
        if side == "max" and getattr(kv, name) > bound:
            return False
    return True


def _sort_key(request: RangeRequest) -> Callable[[KeyValue], object]:
    names = ("key", "version", "create_revision", "mod_revision", "value")
    return lambda kv: getattr(kv, names[request.sort_target])


def _related(compare: Compare, kv: KeyValue) -> bool:
    names = ("version", "create_revision", "mod_revision", "value", "lease")
    if compare.target >= len(names):
        sign = 0
    else:
        found = getattr(kv, names[compare.target])
        wanted = getattr(compare, names[compare.target])
        sign = (found > wanted) - (found < wanted)
    rules = (sign == 0, sign > 0, sign < 0, sign != 0)
    return rules[compare.result] if compare.result < len(rules) else True
