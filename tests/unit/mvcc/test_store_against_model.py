"""Any commands, cut into batches anywhere, against a model that is a dict and nothing else."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.kv_model import Model, RefusedError
from support.kv_requests import (
    KEYS,
    Reply,
    Request,
    absolute,
    fillings,
    ranges,
    requests,
    txns,
    wide_ranges,
)
from support.memory_storage import MemoryStorage
from support.reading import read_range, read_txn

from kvpb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from kvserver.api import validate
from kvserver.errors import RequestError
from kvserver.mvcc.hashing import HashBuilder
from kvserver.mvcc.store import Writer, current_revision
from kvserver.storage.contract import Storage
from kvserver.storage.env import LmdbStorage

SLOW = [HealthCheck.too_slow]
"""Of no interest: the machine may be busy."""

EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")

Command = PutRequest | DeleteRangeRequest | TxnRequest | CompactionRequest

changes_and_reads = st.one_of(requests, requests, txns(2))


@st.composite
def sequences(draw: st.DrawFn) -> list[Request]:
    """Some keys, then anything."""
    return [*draw(fillings), *draw(st.lists(changes_and_reads, max_size=8))]


def is_well_formed(request: Request) -> bool:
    try:
        if isinstance(request, PutRequest):
            validate.check_put(request)
        elif isinstance(request, DeleteRangeRequest):
            validate.check_delete_range(request)
        elif isinstance(request, RangeRequest):
            validate.check_range(request)
        elif isinstance(request, CompactionRequest):
            return True
        else:
            validate.check_txn(request)
    except RequestError:
        return False
    return True


def expected(model: Model, request: Request) -> Reply | None:
    """The model's reply, None for a refusal."""
    try:
        return model.ask(request)
    except RefusedError:
        return None


def command(writer: Writer, request: Command) -> Reply | RequestError:
    """What the store says to a change."""
    try:
        if isinstance(request, PutRequest):
            return writer.put(request)
        if isinstance(request, DeleteRangeRequest):
            return writer.delete_range(request)
        if isinstance(request, CompactionRequest):
            return writer.compact(request)
        return writer.txn(request)
    except RequestError as error:
        return error


def apply(storage: Storage, batch: Sequence[Command]) -> list[Reply | RequestError]:
    """Apply one batch as the applier does."""
    with storage.read() as txn:
        writer = Writer(storage.writer(), current_revision(txn))
    writer.expect([request.key for request in batch if isinstance(request, PutRequest)])
    replies = [command(writer, request) for request in batch]
    writer.flush()
    storage.commit()
    return replies


def read(storage: Storage, request: RangeRequest | TxnRequest) -> Reply | None:
    with storage.read() as txn:
        try:
            if isinstance(request, TxnRequest):
                return read_txn(txn, request)
            return read_range(txn, request, current_revision(txn))
        except RequestError:
            return None


def state(storage: Storage) -> tuple[int, int, Reply]:
    """Revision, hash, and all there is."""
    with storage.read() as txn:
        builder = HashBuilder(txn)
        while not builder.step(3):
            pass
        revision = current_revision(txn)
        return revision, builder.value, read_range(txn, EVERYTHING, revision)


@contextmanager
def memory() -> Iterator[Storage]:
    yield MemoryStorage()


@contextmanager
def lmdb() -> Iterator[Storage]:
    with TemporaryDirectory() as folder:
        storage = LmdbStorage(Path(folder))
        try:
            yield storage
        finally:
            storage.close()


def check(storage: Storage, sequence: list[Request]) -> None:
    """Compare each answer with the model's, and the whole state after each change."""
    model = Model()
    for drawn in filter(is_well_formed, sequence):
        request = copy.deepcopy(drawn)
        absolute(request, 1, model.revision)
        before = state(storage)
        wanted = expected(model, request)
        if isinstance(request, RangeRequest):
            assert read(storage, request) == wanted
            continue
        (reply,) = apply(storage, [request])
        if wanted is None:
            assert isinstance(reply, RequestError)
            assert state(storage) == before, "refused, so nothing changed"
        else:
            assert reply == wanted
        revision, _, everything = state(storage)
        assert revision == model.revision
        assert everything == model.ask(EVERYTHING)


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=SLOW)
@given(sequences())
def test_every_answer_is_the_models(sequence: list[Request]) -> None:
    with memory() as storage:
        check(storage, sequence)


@settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=SLOW)
@given(sequences())
def test_every_answer_is_the_models_on_disk(sequence: list[Request]) -> None:
    with lmdb() as storage:
        check(storage, sequence)


@settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=SLOW)
@given(sequences(), st.lists(st.integers(1, 6), max_size=12))
def test_batches_change_nothing(sequence: list[Request], sizes: list[int]) -> None:
    """One by one or many at once: the same replies, rows and hash. Standbys batch as the active."""
    changes = [
        copy.deepcopy(request)
        for request in sequence
        if is_well_formed(request) and not isinstance(request, RangeRequest)
    ]
    for request in changes:
        absolute(request, 1, len(KEYS))
    single, batched = MemoryStorage(), MemoryStorage()
    one_by_one = [reply for request in changes for reply in apply(single, [request])]
    at_once: list[Reply | RequestError] = []
    rest = list(changes)
    for size in (*sizes, len(changes) + 1):
        at_once += apply(batched, rest[:size])
        rest = rest[size:]
    assert [comparable(reply) for reply in at_once] == [comparable(r) for r in one_by_one]
    assert state(batched) == state(single)


def comparable(reply: Reply | RequestError) -> Reply | type[RequestError]:
    return type(reply) if isinstance(reply, RequestError) else reply


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=SLOW)
@given(fillings, st.lists(st.one_of(ranges, wide_ranges), max_size=4))
def test_a_transaction_that_only_reads_is_the_same_with_and_without_the_log(
    filling: list[PutRequest], found: list[RangeRequest]
) -> None:
    storage = MemoryStorage()
    apply(storage, filling)
    revision = state(storage)[0]
    txn = TxnRequest()
    for request in found:
        absolute(request, 1, revision)
        txn.success.add().request_txn.success.add().request_range.CopyFrom(request)
        txn.success.add().request_range.CopyFrom(request)
    if not is_well_formed(txn):
        return
    (logged,) = apply(storage, [txn])
    assert read(storage, txn) == (None if isinstance(logged, RequestError) else logged)


@pytest.mark.parametrize("key", KEYS)
def test_a_store_without_keys_has_revision_one(key: bytes) -> None:
    storage = MemoryStorage()
    assert state(storage)[0] == 1
    (reply,) = apply(storage, [PutRequest(key=key)])
    assert not isinstance(reply, RequestError)
    assert reply.header.revision == 2
