"""Intervals, the encoding of rows, and the hash over them."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_storage import MemoryStorage

from kvserver.mvcc.hashing import HashBuilder
from kvserver.mvcc.interval import KEY_BYTES_MAX, bounds, covers
from kvserver.mvcc.keyvalue import Row, decode_row, encode_row, to_message
from kvserver.storage.schema import KV

REPEATABLE = settings(max_examples=300, derandomize=True, deadline=None)

numbers = st.integers(0, 2**63 - 1)
rows = st.builds(Row, numbers, numbers, numbers, numbers, st.binary(max_size=50))
names = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.tuples(st.integers(478, 484), st.binary(max_size=3)).map(lambda t: b"k" * t[0] + t[1]),
)


# ---------------------------------------------------------------------------- intervals


@REPEATABLE
@given(names, st.one_of(st.just(b""), st.just(b"\0"), names), names)
def test_an_interval_covers_what_its_request_names(
    key: bytes, range_end: bytes, candidate: bytes
) -> None:
    candidate = candidate[:KEY_BYTES_MAX]
    if not range_end:
        wanted = candidate == key
    else:
        wanted = candidate >= key and (range_end == b"\0" or candidate < range_end)
    assert covers(bounds(key, range_end), candidate) is wanted


@REPEATABLE
@given(names, names)
def test_bounds_are_short_enough_for_storage(key: bytes, range_end: bytes) -> None:
    lo, hi = bounds(key, range_end)
    assert len(lo) <= 511
    assert hi is None or len(hi) <= 511


# ---------------------------------------------------------------------------- rows


@REPEATABLE
@given(rows)
def test_a_row_comes_back_as_it_was_stored(row: Row) -> None:
    assert decode_row(encode_row(row)) == row


def test_the_layout_of_a_row_is_fixed() -> None:
    """Disks hold it: a change needs a new format version."""
    stored = encode_row(Row(2, 5, 3, 7, b"value"))
    assert stored.hex() == (
        "0000000000000002" "0000000000000005" "0000000000000003" "0000000000000007"
        "76616c7565"
    )  # fmt: skip


def test_clients_see_every_field() -> None:
    kv = to_message(b"key", Row(2, 5, 3, 7, b"v"))
    assert (kv.key, kv.create_revision, kv.mod_revision) == (b"key", 2, 5)
    assert (kv.version, kv.lease, kv.value) == (3, 7, b"v")
    assert to_message(b"key", Row(2, 5, 3, 7, b"v"), with_value=False).value == b""


# ---------------------------------------------------------------------------- hash


def hash_of(pairs: list[tuple[bytes, bytes]], rows_max: int) -> int:
    storage = MemoryStorage()
    storage.writer().put_many(KV, pairs)
    builder = HashBuilder(storage.writer())
    while not builder.step(rows_max):
        pass
    return builder.value


tables = st.dictionaries(st.binary(min_size=1, max_size=3), st.binary(max_size=5), max_size=8)


@REPEATABLE
@given(tables, st.integers(1, 9), st.integers(1, 9))
def test_neither_steps_nor_the_order_of_writes_matter(
    table: dict[bytes, bytes], one: int, other: int
) -> None:
    pairs = list(table.items())
    assert hash_of(pairs, one) == hash_of(pairs[::-1], other)


@REPEATABLE
@given(tables, st.data())
def test_every_row_matters(table: dict[bytes, bytes], data: st.DataObject) -> None:
    if not table:
        return
    key = data.draw(st.sampled_from(sorted(table)))
    changed = {**table, key: table[key] + b"!"}
    gone = {k: v for k, v in table.items() if k != key}
    hashes = {hash_of(list(t.items()), 100) for t in (table, changed, gone)}
    assert len(hashes) == 3
