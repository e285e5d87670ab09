"""Lies in an LMDB file: every page makes sense, perhaps the whole file too, yet it is not true."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import lmdb
from support.damage_file import Change, Drawn, patched
from support.damage_lmdb import Draw, numbered
from support.lmdb_file import (
    BRANCH,
    FREELIST,
    LEAF,
    MAIN,
    NO_PAGE,
    NODE,
    PAGE,
    RECORD,
    LmdbFile,
    Node,
    Page,
)

MAP_BYTES = 1 << 30
ENTRIES_AT, ROOT_AT = 32, 40


class LmdbLies:
    """Of the file of a state."""

    def __init__(self, content: bytes, older: Sequence[bytes]) -> None:
        """Take it and what it was before apart; the oldest first."""
        self._file = LmdbFile(content)
        self._older = [LmdbFile(each) for each in older]

    def kinds(self) -> Iterator[tuple[str, Draw]]:
        """Names of kinds, and what draws one of each."""
        yield "lie: an older root", lambda rng: self._older_root(rng, whole=False)
        yield "lie: an older record", lambda rng: self._older_root(rng, whole=True)
        yield "lie: an older main root", self._older_main
        yield "lie: an older child", self._older_child
        yield "lie: an older leaf of the same keys", self._older_leaf
        yield "lie: an empty tree", self._empty_tree
        yield "lie: one entry more or less", self._count
        yield "lie: children swapped", self._swap_children
        yield "lie: a separator moved", self._move_separator
        yield "lie: a free page that is used", self._free_used
        yield "lie: a free page forgotten", self._forget_free
        yield "lie: rows as they were, file sound", self._older_rows
        yield "lie: a row as it was, file sound", self._older_row
        yield "lie: a row is missing, file sound", self._lost_row

    # ------------------------------------------------------------------ what was

    def _older_root(self, rng: Random, *, whole: bool) -> Drawn | None:
        """A database's record names a root that was, and whose pages may all still be there."""
        if not self._older:
            return None
        older = rng.choice(self._older)
        changed = [
            name
            for name, tree in self._file.trees.items()
            if name not in (FREELIST, MAIN) and "[" not in name
            and name in older.trees and older.trees[name].root not in (tree.root, NO_PAGE)
        ]  # fmt: skip
        if not changed:
            return None
        name = rng.choice(changed)
        at, was = self._file.trees[name].at, older.trees[name].at
        offset, size = (0, RECORD.size) if whole else (ROOT_AT, 8)
        fresh = older.data[was + offset : was + offset + size]
        intact = self._intact(older, name)
        return Drawn(
            f"'{name}' has its root of commit {older.commit}, {intact}",
            patched((at + offset, fresh)),
        )

    def _intact(self, older: LmdbFile, tree: str) -> str:
        pages = [each for each in older.pages.values() if each.tree.partition("[")[0] == tree]
        kept = sum(
            older.page_bytes(each.number) == self._file.page_bytes(each.number) for each in pages
        )
        return f"{kept} of {len(pages)} pages are as they were"

    def _older_main(self, rng: Random) -> Drawn | None:
        """The newest root page names all databases as they were."""
        if not self._older:
            return None
        older = rng.choice(self._older)
        at, was = self._file.trees[MAIN].at, older.trees[MAIN].at
        return Drawn(
            f"the root page names the main root of commit {older.commit}",
            patched((at, older.data[was : was + RECORD.size])),
        )

    def _older_child(self, rng: Random) -> Drawn | None:
        """A branch points to what was there before, if that page is still as it was."""
        if not self._older:
            return None
        older = rng.choice(self._older)
        for _ in range(20):
            page, position, node = self._branch_node(rng, self._file)
            if page is None or node is None:
                return None
            for then in older.pages.values():
                if then.kind != BRANCH or then.tree != page.tree:
                    continue
                for each in older.nodes(then.number * PAGE):
                    if (
                        each.key == node.key
                        and each.child != node.child
                        and self._same(older, each)
                    ):
                        fresh = each.child.to_bytes(6, "little")
                        return Drawn(
                            f"child {position} of page {page.number} of {page.tree} is page "
                            f"{each.child} of commit {older.commit} instead of {node.child}",
                            patched((node.at, fresh)),
                        )
        return None

    def _same(self, older: LmdbFile, node: Node) -> bool:
        return older.page_bytes(node.child) == self._file.page_bytes(node.child)

    def _older_leaf(self, rng: Random) -> Drawn | None:
        """A leaf holds the rows that the same keys had before: all counts stay right."""
        if not self._older:
            return None
        older = rng.choice(self._older)
        found = {}
        for then in older.pages.values():
            if then.kind == LEAF and then.tree != FREELIST:
                nodes = older.nodes(then.number * PAGE)
                found[(then.tree, *(each.key for each in nodes))] = then
        pairs = []
        for page in self._file.pages.values():
            if page.kind == LEAF:
                keys = (page.tree, *(each.key for each in self._file.nodes(page.number * PAGE)))
                if keys in found and not self._same_rows(older, found[keys], page):
                    pairs.append((page, found[keys]))
        if not pairs:
            return None
        page, then = rng.choice(pairs)
        content = numbered(page.number, older.page_bytes(then.number))
        return Drawn(
            f"page {page.number} of {page.tree} holds the rows of commit {older.commit}",
            patched((page.number * PAGE, content)),
        )

    def _same_rows(self, older: LmdbFile, then: Page, page: Page) -> bool:
        return older.page_bytes(then.number)[8:] == self._file.page_bytes(page.number)[8:]

    # ------------------------------------------------------------------ trees

    def _empty_tree(self, rng: Random) -> Drawn:
        names = [n for n, tree in self._file.trees.items() if "[" not in n and tree.root != NO_PAGE]
        name = rng.choice(names)
        tree = self._file.trees[name]
        empty = RECORD.pack(self._file.u32(tree.at), tree.flags, 0, 0, 0, 0, 0, NO_PAGE)
        return Drawn(f"'{name}' is an empty tree", patched((tree.at, empty)))

    def _count(self, rng: Random) -> Drawn:
        name = rng.choice(sorted(self._file.trees))
        tree = self._file.trees[name]
        count = tree.entries + (rng.choice([-1, 1]) if tree.entries else 1)
        return Drawn(
            f"'{name}' has {count} entries instead of {tree.entries}",
            patched((tree.at + ENTRIES_AT, count.to_bytes(8, "little"))),
        )

    def _branch_node(
        self, rng: Random, file: LmdbFile
    ) -> tuple[Page, int, Node] | tuple[None, None, None]:
        branches = file.where.get("branch node")
        if not branches:
            return None, None, None
        page = rng.choice(branches[rng.choice(sorted(branches))])
        nodes = file.nodes(page.number * PAGE)
        position = rng.randrange(len(nodes))
        return page, position, nodes[position]

    def _swap_children(self, rng: Random) -> Drawn | None:
        """Two neighbours below a branch change places; the separators stay in order."""
        page, position, node = self._branch_node(rng, self._file)
        if page is None or position is None or node is None:
            return None
        nodes = self._file.nodes(page.number * PAGE)
        if position + 1 == len(nodes):
            return None
        after = nodes[position + 1]
        return Drawn(
            f"children {position} and {position + 1} of page {page.number} of {page.tree} swapped",
            patched(
                (node.at, after.child.to_bytes(6, "little")),
                (after.at, node.child.to_bytes(6, "little")),
            ),
        )

    def _move_separator(self, rng: Random) -> Drawn | None:
        """A separator becomes another key beside it: some keys are looked for in the wrong leaf."""
        page, position, node = self._branch_node(rng, self._file)
        if page is None or position is None or node is None or not position:
            return None
        nodes = self._file.nodes(page.number * PAGE)
        beside = [nodes[position - 1].child, node.child]
        keys = [
            each.key
            for child in beside
            if self._file.pages[child].kind == LEAF
            for each in self._file.nodes(child * PAGE)
            if len(each.key) == len(node.key) and each.key != node.key
        ]
        if not keys:
            return None
        fresh = rng.choice(keys)
        return Drawn(
            f"separator {position} of page {page.number} of {page.tree} is {fresh!r} instead of "
            f"{node.key!r}",
            patched((node.at + NODE, fresh)),
        )

    # ------------------------------------------------------------------ the freelist

    def _free_used(self, rng: Random) -> Drawn | None:
        """The list names, in its order, a page that is used: later writes go there."""
        file = self._file
        for _ in range(20):
            _, at = rng.choice(file.free_lists)
            count = file.u64(at)
            position = rng.randrange(1, count + 1)
            above = file.u64(at + 8 * position - 8) if position > 1 else file.last_page + 1
            below = file.u64(at + 8 * position + 8) if position < count else 1
            used = [number for number in file.pages if below < number < above]
            if used:
                number, was = rng.choice(used), file.u64(at + 8 * position)
                page = file.pages[number]
                return Drawn(
                    f"page {number} of {page.tree} is free instead of {was}",
                    patched((at + 8 * position, number.to_bytes(8, "little"))),
                )
        return None

    def _forget_free(self, rng: Random) -> Drawn | None:
        """A list is one page shorter, or not there."""
        file = self._file
        node, at = rng.choice(file.free_lists)
        count = file.u64(at)
        if count < 2 or node.data_size > PAGE // 4:
            return None
        return Drawn(
            f"a list of {count} free pages lacks the last one",
            patched(
                (at, (count - 1).to_bytes(8, "little")),
                (node.at, (node.data_size - 8).to_bytes(4, "little")),
            ),
        )

    # ------------------------------------------------------------------ a sound file

    def _names(self) -> list[str]:
        return [n for n in self._file.trees if n not in (FREELIST, MAIN) and "[" not in n]

    def _older_rows(self, rng: Random) -> Drawn | None:
        """A database holds what it did; pages, lists and counts are as after any commit."""
        if not self._older:
            return None
        older = rng.choice(self._older)
        name = rng.choice(self._names())
        rows = _rows(older.data, name)
        if rows == _rows(self._file.data, name):
            return None

        def change(txn: "lmdb.Transaction[bytes]", db: "lmdb._Database") -> None:
            txn.drop(db, delete=False)
            for key, row in rows:
                txn.put(key, row, db=db)

        return Drawn(f"'{name}' holds the rows of commit {older.commit}", committed(name, change))

    def _older_row(self, rng: Random) -> Drawn | None:
        if not self._older:
            return None
        older = rng.choice(self._older)
        name = rng.choice([each for each in self._names() if each != "key_history"])
        now = dict(_rows(self._file.data, name))
        then = [(k, row) for k, row in _rows(older.data, name) if now.get(k, row) != row]
        if not then:
            return None
        key, row = rng.choice(then)
        return Drawn(
            f"'{name}' holds for {key!r} the row of commit {older.commit}",
            committed(name, lambda txn, db: txn.put(key, row, db=db)),
        )

    def _lost_row(self, rng: Random) -> Drawn | None:
        name = rng.choice(self._names())
        rows = _rows(self._file.data, name)
        if not rows:
            return None
        key, row = rng.choice(rows)
        return Drawn(
            f"'{name}' lacks a row of {key!r}",
            committed(name, lambda txn, db: txn.delete(key, row, db=db)),
        )


Use = Callable[["lmdb.Transaction[bytes]", "lmdb._Database"], object]


def _opened(folder: Path, content: bytes) -> "lmdb.Environment":
    (folder / "data.mdb").write_bytes(content)
    return lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=64, lib_version=0)


def _rows(content: bytes, name: str) -> list[tuple[bytes, bytes]]:
    with tempfile.TemporaryDirectory() as folder, _opened(Path(folder), content) as environment:
        db = environment.open_db(name.encode(), create=False)
        with environment.begin(db=db) as txn, txn.cursor() as cursor:
            return [(bytes(key), bytes(row)) for key, row in cursor]


def committed(name: str, use: Use) -> Change:
    """LMDB itself makes the lie, in a commit of its own."""

    def change(content: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            with _opened(Path(folder), content) as environment:
                db = environment.open_db(name.encode(), create=False)
                with environment.begin(write=True) as txn:
                    use(txn, db)
            return (Path(folder) / "data.mdb").read_bytes()

    return change
