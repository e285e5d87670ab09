"""How the row of a database is read and written by this build, as a form."""

from collections.abc import Callable

from golden.form import Form, Parts
from support.memory_storage import MemoryStorage, MemoryTxn

from kvserver.storage.contract import ReadTxn
from kvserver.storage.rows import seal, unseal
from kvserver.storage.schema import (
    Database,
)

Read = Callable[[ReadTxn], object]


def database_of(name: str) -> str:
    """The database that an entry is of: the first word of its name."""
    return name.partition(":")[0]


def row_of(db: Database, key: bytes, find: Callable[[], MemoryStorage]) -> Callable[[], Parts]:
    """Makes the parts of the row that this build has put into a storage."""

    def make() -> Parts:
        with find().read() as txn:
            found = [row for at, row in txn.scan(db, key, key + b"\0")]
        return {"key": key, "row": seal(key, found[-1])}

    return make


def content_of(db: Database, parts: Parts) -> tuple[bytes, bytes]:
    return parts["key"], unseal(db, parts["key"], parts["row"])


def read_in(
    db: Database, begin: Callable[[], MemoryStorage], read: Read
) -> Callable[[Parts], object]:
    """Reads an entry out of a storage that it was put into."""

    def look(parts: Parts) -> object:
        storage = begin()
        storage.writer().put(db, *content_of(db, parts))
        storage.commit()
        with storage.read() as txn:
            return read(txn)

    return look


def row_form(
    db: Database,
    what: str,
    key: bytes,
    find: Callable[[], MemoryStorage],
    read: Read,
    means: object,
) -> Form:
    name = f"{db.name.decode()}: {what}"
    return Form(name, read_in(db, MemoryStorage, read), means, row_of(db, key, find))


def written(write: Callable[[MemoryTxn], None]) -> Callable[[], MemoryStorage]:
    def find() -> MemoryStorage:
        storage = MemoryStorage()
        write(storage.writer())
        storage.commit()
        return storage

    return find
