"""Real LMDB files damaged on purpose: noticed wherever it is, and said with what to do."""

import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.errors import DataDirError, DiskError, NodeError
from kvserver.storage.env import LmdbStorage
from kvserver.storage.rows import REPLACE, seal, unseal
from kvserver.storage.schema import DATABASES, IDENTITY, KEY_HISTORY, KV, META, Database

PAGE = 4096
CONTENT = b"content of a row "


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A closed environment with rows in every database; those of KV on many pages."""
    storage = LmdbStorage(tmp_path)
    for db in DATABASES:
        storage.writer().put(db, b"row", CONTENT + db.name + b"!")
    storage.writer().put_many(KV, [(b"%04d" % i, CONTENT * 20) for i in range(1000)])
    for _ in range(3):
        storage.writer().put(META, b"revision", CONTENT)
        storage.commit()
    storage.close()
    return tmp_path


def change(folder: Path, at: int, fresh: bytes) -> None:
    with (folder / "data.mdb").open("r+b") as file:
        file.seek(at)
        file.write(fresh)


def places(folder: Path, text: bytes) -> list[int]:
    """Where this text lies, older copies included."""
    found = [match.start() for match in re.finditer(text, (folder / "data.mdb").read_bytes())]
    assert found
    return found


def flip(folder: Path, at: int) -> None:
    (old,) = (folder / "data.mdb").read_bytes()[at : at + 1]
    change(folder, at, bytes([old ^ 4]))


def read_all(storage: LmdbStorage) -> None:
    with storage.read() as txn:
        for db in DATABASES:
            list(txn.scan(db))


def fails(folder: Path, use: Callable[[LmdbStorage], object]) -> str:
    """What is said when the environment is opened and used."""
    with pytest.raises(DataDirError) as caught:
        storage = LmdbStorage(folder)
        try:
            use(storage)
        finally:
            storage.close()
    assert str(caught.value).endswith(REPLACE)
    return str(caught.value)


@given(st.binary(min_size=1, max_size=20), st.binary(max_size=60), st.data())
def test_a_flipped_bit_of_a_row_is_noticed_wherever_it_is(
    key: bytes, content: bytes, data: st.DataObject
) -> None:
    row = bytearray(seal(key, content))
    assert unseal(KV, key, bytes(row)) == content
    at = data.draw(st.integers(0, len(row) - 1))
    row[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DataDirError, match="'kv' is damaged"):
        unseal(KV, key, bytes(row))


@pytest.mark.parametrize("length", [0, 3, 4, 20])
def test_a_row_cut_short_or_under_another_key_is_noticed(length: int) -> None:
    row = seal(b"key", CONTENT * 2)
    with pytest.raises(DataDirError):
        unseal(KV, b"key", row[:length])
    with pytest.raises(DataDirError, match="other"):
        unseal(KV, b"other", row)


def test_the_layout_of_a_row_is_fixed() -> None:
    """Disks hold it: a change needs a new format version."""
    assert seal(b"key", b"content").hex() == "636f6e74656e740ccf3676"


@pytest.mark.parametrize("db", DATABASES, ids=lambda db: db.name.decode())
def test_a_damaged_row_of_any_database_is_not_believed(db: Database, sound: Path) -> None:
    for at in places(sound, CONTENT + db.name + b"!"):
        flip(sound, at + 3)
    told = fails(sound, lambda storage: storage.writer().get(db, b"row"))
    assert f"'{db.name.decode()}' is damaged" in told
    fails(sound, read_all)
    fails(sound, lambda storage: storage.writer().get_many(db, [b"row"]))
    fails(sound, lambda storage: list(storage.writer().scan(db, reverse=True)))


def test_damaged_values_of_a_key_with_many_are_not_believed(sound: Path) -> None:
    for at in places(sound, CONTENT + KEY_HISTORY.name + b"!"):
        flip(sound, at + 3)
    fails(sound, lambda storage: list(storage.writer().values(KEY_HISTORY, b"row")))
    fails(sound, lambda storage: storage.writer().last_value(KEY_HISTORY, b"row", b"z"))


def test_a_page_of_zeros_is_noticed_by_who_reads_it(sound: Path) -> None:
    pages = Counter(at // PAGE for at in places(sound, CONTENT * 20))
    for page, rows in pages.items():
        if rows > 3:  # else one that was used again, for something else
            change(sound, page * PAGE, bytes(PAGE))

    def read_each(storage: LmdbStorage) -> None:
        with storage.read() as txn:
            for i in range(1000):
                txn.get(KV, b"%04d" % i)

    assert "MDB_CORRUPTED" in fails(sound, read_each)

    def write_each(storage: LmdbStorage) -> None:
        for i in range(1000):
            storage.writer().put(KV, b"%04d" % i, b"new")

    assert "MDB_CORRUPTED" in fails(sound, write_each)


def test_a_damaged_root_page_does_not_take_the_last_commit_back(sound: Path) -> None:
    numbers = [
        struct.unpack_from("=Q", (sound / "data.mdb").read_bytes(), at + 144)[0] for at in (0, PAGE)
    ]
    newest = numbers.index(max(numbers)) * PAGE
    change(sound, newest + 144, struct.pack("=Q", 0))
    assert "root pages" in fails(sound, read_all)


@pytest.mark.parametrize("page", [0, 1])
def test_a_root_page_of_zeros_is_noticed(page: int, sound: Path) -> None:
    change(sound, page * PAGE, bytes(PAGE))
    fails(sound, read_all)


def test_a_lost_database_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    LmdbStorage(tmp_path).close()
    with lmdb.open(str(tmp_path), max_dbs=20, lib_version=0) as raw, raw.begin(write=True) as txn:
        txn.drop(raw.open_db(META.name, txn=txn), delete=True)
    assert "NOTFOUND" in fails(tmp_path, read_all)


def test_a_lost_format_version_is_noticed(tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    storage.writer().clear(IDENTITY)
    storage.commit()
    storage.close()
    assert "no format version" in fails(tmp_path, read_all)


class FailingTxn:
    """An LMDB transaction whose every call ends with `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            raise self._error

        return call


USES: list[Callable[[LmdbStorage], object]] = [
    lambda storage: storage.writer().get(KV, b"k"),
    lambda storage: storage.writer().get_many(KV, [b"k"]),
    lambda storage: list(storage.writer().scan(KV)),
    lambda storage: list(storage.writer().scan(KV, reverse=True)),
    lambda storage: list(storage.writer().keys(KV)),
    lambda storage: list(storage.writer().values(KEY_HISTORY, b"k")),
    lambda storage: storage.writer().last_value(KEY_HISTORY, b"k", b"z"),
    lambda storage: storage.writer().size_of(KV),
    lambda storage: storage.writer().put(KV, b"k", b"v"),
    lambda storage: storage.writer().put_many(KV, [(b"k", b"v")]),
    lambda storage: storage.writer().delete(KV, b"k"),
    lambda storage: storage.writer().delete_value(KEY_HISTORY, b"k", b"v"),
    lambda storage: storage.writer().clear(KV),
]


def use_failing(storage: LmdbStorage, use: Callable[[LmdbStorage], object], kind: str) -> None:
    writer = storage.writer()
    txn, writer._txn = writer._txn, FailingTxn(getattr(lmdb, kind)("it says"))  # type: ignore[assignment]
    try:
        use(storage)
    finally:
        writer._txn = txn


@pytest.mark.parametrize("kind", ["CorruptedError", "PageNotFoundError", "ProblemError"])
def test_what_the_engine_says_of_damage_ends_the_node(kind: str, tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    for use in USES:
        with pytest.raises(DataDirError, match="it says"):
            use_failing(storage, use, kind)
    storage.close()


@pytest.mark.parametrize(
    "use", USES[8:], ids=["put", "put_many", "delete", "delete_value", "clear"]
)
def test_a_full_disk_is_no_damage(use: Callable[[LmdbStorage], object], tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    with pytest.raises(NodeError) as caught:
        use_failing(storage, use, "DiskError")
    assert isinstance(caught.value, DiskError)
    storage.close()
