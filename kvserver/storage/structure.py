"""Whether the pages of an LMDB file fit together: a reading of its bytes, safe on any bytes.

`lmdb.verify` does most of it. It calls two things damage that a sound file of LMDB 0.9 may hold,
does not look at the separators that lead a search, and passes over numbers that only matter when a
page is written the next time; `_Walk` mends that.
"""

import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
from lmdb.verify import VerifyError, _Verifier

from kvserver.errors import NodeError
from kvserver.storage.rows import damaged
from kvserver.storage.trouble import trouble

FOUND_SHOWN_MAX: Final = 3

ROOT_READS_MAX: Final = 1_000
"""They take some microseconds, a commit at least as many tenths of a millisecond."""

_ROOTS_BYTES: Final = 2 << 15
"""Of two pages of the largest size that there is."""

_SAMPLE_ROWS: Final = 1_000
"""Enough for branch pages, and values that fill pages of their own."""

_HEADER_BYTES: Final = 16
_POINTER_BYTES: Final = 2
_NODE_BYTES: Final = 8
_KEY_SIZE_AT: Final = 6
_NODE: Final = struct.Struct("<HHHH")
"""Low and high half of the size of the data (of a branch: of the page), flags, size of the key."""

_BIG_DATA: Final = 1
"""Flag: the data lies on pages of its own, the node holds the number of the first."""

_LEAF_FLAGS: Final = 7
_PAGE_NUMBER_BYTES: Final = 8
_DUPLICATES: Final = "[dup@"
"""In the name of a tree of the values of one key."""

Bounds = tuple[bytes | None, bytes | None]
"""Of the keys below a page, `[lo, hi)`; None for none."""


class _Walk(_Verifier):
    """The walk over all pages."""

    def __init__(self, file: Any, size: int, between: Callable[[], object]) -> None:
        super().__init__(file, size)
        self._between = between
        self._bounds: Bounds = (None, None)
        """Of the page that is walked next."""
        self._below: list[Iterator[Bounds]] = []
        """Of the children of each branch page on the way to it."""

    def load_metas(self) -> None:
        """Read both roots as they are between two commits, and then the size.

        Beside a writer a root may change while it is read, and the file be longer than it was.
        """
        for _ in range(ROOT_READS_MAX):
            self.errors = []
            before, failure = self._roots(), None
            try:
                super().load_metas()
            except VerifyError as error:
                failure = error
            self.filesize = self.f.seek(0, 2)
            if self._roots() == before:
                if failure is not None:
                    raise failure
                return
        raise NodeError("the roots of the database never stood still")

    def _roots(self) -> bytes:
        return os.pread(self.f.fileno(), _ROOTS_BYTES, 0)

    def _verify_tree(self, *given: Any, **named: Any) -> Any:
        outside, self._below = self._below, []
        self._bounds = (None, None)
        try:
            return super()._verify_tree(*given, **named)
        finally:
            self._below = outside

    def _walk_page(self, ctx: dict[str, Any], pgno: int, depth: int) -> None:
        self._between()
        if self._below:
            self._bounds = next(self._below[-1], (None, None))
        super()._walk_page(ctx, pgno, depth)

    def _walk_branch(self, ctx: dict[str, Any], pgno: int, buf: bytes, depth: int) -> None:
        """A search goes by separators: each must lie between the keys on its two sides."""
        self._check_nodes(ctx["name"], pgno, buf, branch=True)
        lo, hi = self._bounds
        separators = [key for _, key in self._keys(buf)][1:]
        self._below.append(zip([lo, *separators], [*separators, hi], strict=True))
        try:
            super()._walk_branch(ctx, pgno, buf, depth)
        finally:
            self._below.pop()

    def _walk_leaf(self, ctx: dict[str, Any], pgno: int, buf: bytes) -> None:
        (lo, hi), compare = self._bounds, ctx["key_cmp"]
        keys = [key for _, key in self._keys(buf, ends_only=True)]
        if keys and lo is not None and compare(keys[0], lo) < 0:
            self.err(f"{ctx['name']} DB: keys of leaf page {pgno} lie before its separator")
        if keys and hi is not None and compare(keys[-1], hi) >= 0:
            self.err(f"{ctx['name']} DB: keys of leaf page {pgno} lie behind the next separator")
        self._check_nodes(ctx["name"], pgno, buf, duplicates=_DUPLICATES in ctx["name"])
        super()._walk_leaf(ctx, pgno, buf)

    def _walk_subpage(
        self, ctx: dict[str, Any], pgno: int, i: int, buf: bytes, doff: int, dsize: int
    ) -> Any:
        page = buf[doff : doff + dsize]
        if len(page) >= _HEADER_BYTES:
            self._check_nodes(f"{ctx['name']}{_DUPLICATES}", pgno, page, duplicates=True)
        return super()._walk_subpage(ctx, pgno, i, buf, doff, dsize)

    def _check_nodes(
        self, name: str, pgno: int, page: bytes, *, branch: bool = False, duplicates: bool = False
    ) -> None:
        """The nodes of a page fill its end without gaps, and hold nothing that nobody reads.

        Reads work without that. But the engine copies nodes by these sizes when it moves them.
        """
        spans, flaws = [], set()
        for number, at in enumerate(self._pointers(page)):
            if at + _NODE_BYTES > len(page):
                return  # the library reports it
            low, high, flags, key_bytes = _NODE.unpack_from(page, at)
            data_bytes = 0 if branch else low | high << 16
            if branch and not number and key_bytes:
                flaws.add("a key before its first child")
            if duplicates and (data_bytes or flags):
                flaws.add("a value that has one itself")
            if not branch and flags & ~_LEAF_FLAGS:
                flaws.add("unknown flags")
            held = _PAGE_NUMBER_BYTES if not branch and flags & _BIG_DATA else data_bytes
            spans.append((at, _NODE_BYTES + key_bytes + held + 1 & ~1))
        end = self._pg_upper(page, 0)
        for at, size in sorted(spans):
            if at != end:
                flaws.add("gaps between its nodes, or nodes in one another")
            end = at + size
        if end != len(page):
            flaws.add("nodes that do not fill it")
        for flaw in sorted(flaws):
            self.err(f"{name} DB: page {pgno} has {flaw}")

    def _pointers(self, page: bytes) -> Sequence[int]:
        count = max(0, self._numkeys(self._pg_lower(page, 0)))
        count = min(count, (len(page) - _HEADER_BYTES) // _POINTER_BYTES)
        return struct.unpack_from(f"<{count}H", page, _HEADER_BYTES)

    def _keys(self, buf: bytes, *, ends_only: bool = False) -> Iterator[tuple[int, bytes]]:
        """Keys of a page, or the first and the last one: as far as they lie in it."""
        pointers = self._pointers(buf)
        if ends_only and pointers:
            pointers = (pointers[0], pointers[-1])
        for number, at in enumerate(pointers):
            size = int.from_bytes(buf[at + _KEY_SIZE_AT : at + _NODE_BYTES], "little")
            yield number, bytes(buf[at + _NODE_BYTES : at + _NODE_BYTES + size])

    def _check_counts(self, name: str, db: Any, ctx: dict[str, Any]) -> None:
        """Of a database with many values the page counts may be too high.

        The engine does not take the last leaf of a key's values off them when it deletes it.
        """
        if ctx["dup_cmp"] is not None:
            db.branch_pages = min(db.branch_pages, ctx["branch"] + ctx["dup_branch"])
            db.leaf_pages = min(db.leaf_pages, ctx["leaf"] + ctx["dup_leaf"])
        super()._check_counts(name, db, ctx)

    def _bigdata(  # noqa: PLR0913, PLR0917 - the library's
        self, ctx: dict[str, Any], pgno: int, i: int, buf: bytes, doff: int, dsize: int,
        want_bytes: bool,
    ) -> Any:  # fmt: skip
        """Of a value that took the place of a larger one in the same transaction.

        It keeps the pages of that one, so there may be more of them than it needs.
        """
        first = int.from_bytes(buf[doff : doff + 8], "little")
        need = (_HEADER_BYTES - 1 + dsize) // self.psize + 1
        page = self.read_page(first) if first < self.next_pgno else None
        kept = 0 if page is None else self._pg_pages(page, 0)
        if page is None or not need < kept <= self.next_pgno - first:
            return super()._bigdata(ctx, pgno, i, buf, doff, dsize, want_bytes)
        data = super()._bigdata(
            ctx, pgno, i, buf, doff, kept * self.psize - _HEADER_BYTES, want_bytes
        )
        return None if data is None else data[:dsize]


def verify_structure(path: Path, between: Callable[[], object] = lambda: None) -> None:
    """Read all pages of the newest commit in a file, none of them through the engine.

    Args:
        path: of the file.
        between: called before each page; it may take its time, or raise a NodeError.

    Raises:
        DamagedError: they do not fit together, or the disk does not give them.
        NodeError: it can't be done; or whatever `between` raises.
    """
    try:
        with path.open("rb", buffering=0) as file:  # what was read before may have changed
            size = file.seek(0, 2)
            problems = _Walk(file, size, between).verify()
    except VerifyError as error:
        problems = [str(error)]
    except OSError as error:
        raise trouble("it can't be read", path, error) from error
    except (NodeError, MemoryError):
        raise
    except Exception as error:
        if not _walks():
            raise NodeError(f"the installed lmdb can't be used for it ({error!r})") from error
        problems = [repr(error)]  # bytes that it can't even take apart
    if problems:
        told = "; ".join(problems[:FOUND_SHOWN_MAX])
        more = f" and {len(problems) - FOUND_SHOWN_MAX} more" * (len(problems) > FOUND_SHOWN_MAX)
        raise damaged(f"{path}: its structure is damaged ({told}{more})")


def _walks() -> bool:
    """Whether the walk gets along with the installed library: over a sound file it raises nothing.

    It takes the place of methods that are the library's own affair.
    """
    with tempfile.TemporaryDirectory() as folder, lmdb.open(folder, max_dbs=2) as environment:
        many = environment.open_db(b"many", dupsort=True)
        one = environment.open_db(b"one")
        with environment.begin(write=True) as txn:
            for number in range(_SAMPLE_ROWS):
                txn.put(b"key", b"%06d" % number, db=many)
                txn.put(b"%06d" % number, b"value" * (number + 1), db=one)
        with (Path(folder) / "data.mdb").open("rb", buffering=0) as file:
            try:
                return not _Walk(file, file.seek(0, 2), lambda: None).verify()
            except Exception:  # noqa: BLE001 - that is the question
                return False
