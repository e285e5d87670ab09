"""Every target and relation, over one key, many, or none."""

import pytest
from support.memory_storage import MemoryStorage, MemoryTxn
from support.reading import holds

from kvpb.rpc_pb2 import Compare, PutRequest
from kvserver.mvcc.store import Writer

NUMBERS = {
    "version": Compare.VERSION,
    "create_revision": Compare.CREATE,
    "mod_revision": Compare.MOD,
    "lease": Compare.LEASE,
}
FOUND = {"version": 2, "create_revision": 2, "mod_revision": 4, "lease": 0}
"""Of key "a" in `state`."""

RELATIONS = {
    Compare.EQUAL: lambda found, wanted: found == wanted,
    Compare.GREATER: lambda found, wanted: found > wanted,
    Compare.LESS: lambda found, wanted: found < wanted,
    Compare.NOT_EQUAL: lambda found, wanted: found != wanted,
}


@pytest.fixture
def state() -> MemoryTxn:
    storage = MemoryStorage()
    writer = Writer(storage.writer(), 1)
    for key, value in [(b"a", b"0"), (b"b", b"m"), (b"a", b"m")]:
        writer.put(PutRequest(key=key, value=value))
    writer.flush()
    return storage.writer()


def compare(**fields: object) -> Compare:
    return Compare(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(state: MemoryTxn, name: str, relation: Compare.CompareResult.ValueType) -> None:
    for key, found in ((b"a", FOUND[name]), (b"missing", 0)):
        for wanted in (found - 1, found, found + 1):
            asked = compare(key=key, target=NUMBERS[name], result=relation, **{name: wanted})
            assert holds(state, asked) is RELATIONS[relation](found, wanted)


@pytest.mark.parametrize("relation", RELATIONS)
def test_values(state: MemoryTxn, relation: Compare.CompareResult.ValueType) -> None:
    for wanted in (b"", b"l", b"m", b"m\0", b"n"):
        asked = compare(key=b"a", target=Compare.VALUE, result=relation, value=wanted)
        assert holds(state, asked) is RELATIONS[relation](b"m", wanted)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("range_end", [b"", b"z"])
def test_a_missing_key_has_no_value_to_compare(
    state: MemoryTxn, relation: Compare.CompareResult.ValueType, range_end: bytes
) -> None:
    asked = compare(key=b"x", range_end=range_end, target=Compare.VALUE, result=relation)
    assert not holds(state, asked)


@pytest.mark.parametrize(
    ("key", "range_end", "version", "expected"),
    [
        (b"a", b"c", 1, False),
        (b"a", b"b", 2, True),
        (b"b", b"\0", 1, True),
        (b"\0", b"\0", 1, False),
        (b"x", b"z", 0, True),
        (b"x", b"z", 1, False),
        (b"c", b"a", 0, True),
        (b"a" * 600, b"", 0, True),
        (b"a" * 600, b"b", 0, True),
        (b"a" * 600, b"c", 1, True),
    ],
)
def test_all_keys_of_a_range_have_to_agree(
    state: MemoryTxn, key: bytes, range_end: bytes, version: int, expected: bool
) -> None:
    asked = compare(key=key, range_end=range_end, target=Compare.VERSION, version=version)
    assert holds(state, asked) is expected


def test_a_wanted_value_of_another_kind_counts_as_none(state: MemoryTxn) -> None:
    assert holds(state, compare(key=b"x", target=Compare.VERSION, value=b"5"))
    assert not holds(state, compare(key=b"a", target=Compare.VERSION, value=b"5"))


@pytest.mark.parametrize(
    ("relation", "expected"),
    [(Compare.EQUAL, True), (Compare.NOT_EQUAL, False), (Compare.LESS, False), (9, True)],
)
def test_an_unknown_target_is_equal_to_anything(
    state: MemoryTxn, relation: int, expected: bool
) -> None:
    assert holds(state, compare(key=b"a", target=17, result=relation)) is expected


def test_an_unknown_relation_holds(state: MemoryTxn) -> None:
    assert holds(state, compare(key=b"a", target=Compare.VERSION, result=9, version=77))
