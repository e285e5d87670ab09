"""The bytes of an LMDB 0.9 file taken apart: every page, and every field in it.

It reads what LMDB wrote and never asks LMDB, so damage can be put exactly where it is wanted. The
names of fields are the classes that damage is drawn from.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

PAGE: Final = 4096
HEADER: Final = 16
NODE: Final = 8
RECORD: Final = struct.Struct("<IHHQQQQQ")
"""Of a database: pad, flags, depth; branch, leaf and overflow pages; entries; root."""

NO_PAGE: Final = (1 << 64) - 1
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG, SUB, DUP = 1, 2, 4
"""Flags of a node: its data lies on overflow pages; it is the record of a tree; of duplicates."""

FREELIST: Final = "freelist"
MAIN: Final = "main"
META_AT: Final = HEADER
FREE_AT: Final = META_AT + 24
MAIN_AT: Final = FREE_AT + RECORD.size
LAST_PAGE_AT: Final = MAIN_AT + RECORD.size
TXN_AT: Final = LAST_PAGE_AT + 8

_RECORD_FIELDS: Final = (
    ("pad", 0, 4), ("flags", 4, 2), ("depth", 6, 2), ("branch pages", 8, 8), ("leaf pages", 16, 8),
    ("overflow pages", 24, 8), ("entries", 32, 8), ("root", 40, 8),
)  # fmt: skip
_HEADER_FIELDS: Final = (
    ("number", 0, 8), ("pad", 8, 2), ("flags", 10, 2), ("lower", 12, 2), ("upper", 14, 2),
)  # fmt: skip


class Field(NamedTuple):
    """Bytes with one meaning."""

    kind: str
    """Class, such as "branch header"."""
    name: str
    at: int
    """Offset in the file."""
    size: int


class Node(NamedTuple):
    """One entry of a branch or a leaf."""

    at: int
    flags: int
    key: bytes
    data_at: int
    data_size: int
    child: int
    """Of a branch."""


class Tree(NamedTuple):
    """A B-tree as its record tells it."""

    name: str
    at: int
    """Offset of the record."""
    flags: int
    entries: int
    root: int


@dataclass
class Page:
    """A page that is reached from a root."""

    number: int
    kind: int
    tree: str
    span: int = 1
    fields: list[Field] = field(default_factory=list)


class LmdbFile:
    """All that the newest commit of a file reaches."""

    def __init__(self, data: bytes) -> None:
        """Take a sound file apart."""
        self.data = data
        self.pages: dict[int, Page] = {}
        self.trees: dict[str, Tree] = {}
        """Named databases, the freelist and the main one; trees of duplicates as `name[number]`."""
        self.free: dict[int, Field] = {}
        """Pages that the freelist names, with where it does."""
        self.free_lists: list[tuple[Node, int]] = []
        """Records of the freelist, and where their lists lie."""
        numbers = [self.u64(at + TXN_AT) for at in (0, PAGE)]
        self.newest = numbers.index(max(numbers))
        """Number of the root page that counts."""
        self.commit = max(numbers)
        base = self.newest * PAGE
        self.last_page = self.u64(base + LAST_PAGE_AT)
        self._walk_tree(FREELIST, base + FREE_AT)
        self._walk_tree(MAIN, base + MAIN_AT)
        self.where: dict[str, dict[str, list[Page]]] = defaultdict(lambda: defaultdict(list))
        """Pages with fields of a class, by tree."""
        for page in self.pages.values():
            for kind in {each.kind for each in page.fields if each.size}:
                self.where[kind][page.tree.partition("[")[0]].append(page)

    # ------------------------------------------------------------------ numbers

    def u16(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 2], "little")

    def u32(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 4], "little")

    def u64(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 8], "little")

    def page_bytes(self, number: int) -> bytes:
        return self.data[number * PAGE : (number + 1) * PAGE]

    # ------------------------------------------------------------------ trees

    def nodes(self, at: int) -> list[Node]:
        """Of the page, or the page within a page, that begins at an offset."""
        found = []
        branch = self.u16(at + 10) & BRANCH
        for position in range((self.u16(at + 12) - HEADER) // 2):
            start = at + self.u16(at + HEADER + 2 * position)
            low, high, flags, key_size = struct.unpack_from("<HHHH", self.data, start)
            key = self.data[start + NODE : start + NODE + key_size]
            size = low | high << 16
            child = size | flags << 32 if branch else 0
            found.append(Node(start, flags, key, start + NODE + key_size, size, child))
        return found

    def leaves(self, tree: str) -> list[Page]:
        return [each for each in self.pages.values() if each.tree == tree and each.kind == LEAF]

    def _walk_tree(self, name: str, at: int) -> None:
        _, flags, _, _, _, _, entries, root = RECORD.unpack_from(self.data, at)
        self.trees[name] = Tree(name, at, flags, entries, root)
        if root != NO_PAGE:
            self._walk(name, root)

    def _walk(self, tree: str, number: int) -> None:
        at = number * PAGE
        kind = self.u16(at + 10)
        assert kind in (BRANCH, LEAF), (number, kind)
        assert self.u64(at) == number, number
        assert number not in self.pages, number
        page = self.pages[number] = Page(number, kind, tree)
        what = "branch" if kind == BRANCH else "leaf"
        page.fields += [Field(f"{what} header", n, at + o, s) for n, o, s in _HEADER_FIELDS]
        nodes = self.nodes(at)
        page.fields += [
            Field(f"{what} pointer", "", at + HEADER + 2 * i, 2) for i in range(len(nodes))
        ]
        lower, upper = self.u16(at + 12), self.u16(at + 14)
        if upper > lower:
            page.fields.append(Field("unused space", "", at + lower, upper - lower))
        for node in nodes:
            if kind == BRANCH:
                self._branch_node(page, node)
            else:
                self._leaf_node(page, node)

    def _branch_node(self, page: Page, node: Node) -> None:
        page.fields += [
            Field("branch node", "child", node.at, 6),
            Field("branch node", "key size", node.at + 6, 2),
        ]
        if node.key:
            page.fields.append(Field("separator", "", node.at + NODE, len(node.key)))
        self._walk(page.tree, node.child)

    def _leaf_node(self, page: Page, node: Node) -> None:
        page.fields += [
            Field("leaf node", "size", node.at, 4),
            Field("leaf node", "flags", node.at + 4, 2),
            Field("leaf node", "key size", node.at + 6, 2),
            Field("free record" if page.tree == FREELIST else "key", "key",
                  node.at + NODE, len(node.key)),
        ]  # fmt: skip
        if node.flags & SUB:
            self._sub_tree(page, node)
        elif node.flags & DUP:
            self._sub_page(page, node)
        elif node.flags & BIG:
            page.fields.append(Field("overflow reference", "", node.data_at, 8))
            self._overflow(page.tree, node)
        elif page.tree == FREELIST:
            self._free_list(page, node, node.data_at)
        else:
            page.fields.append(Field("data", "", node.data_at, node.data_size))

    def _sub_tree(self, page: Page, node: Node) -> None:
        kind = "record of duplicates" if node.flags & DUP else "record"
        page.fields += [Field(kind, n, node.data_at + o, s) for n, o, s in _RECORD_FIELDS]
        if node.flags & DUP:
            self._walk_tree(f"{page.tree}[{node.data_at}]", node.data_at)
        else:
            self._walk_tree(node.key.decode(), node.data_at)

    def _sub_page(self, page: Page, node: Node) -> None:
        at = node.data_at
        page.fields += [Field("sub-page header", n, at + o, s) for n, o, s in _HEADER_FIELDS]
        for position, each in enumerate(self.nodes(at)):
            page.fields += [
                Field("sub-page node", "pointer", at + HEADER + 2 * position, 2),
                Field("sub-page node", "size", each.at, 4),
                Field("sub-page node", "flags", each.at + 4, 2),
                Field("sub-page node", "key size", each.at + 6, 2),
                Field("sub-page data", "", each.at + NODE, len(each.key)),
            ]

    def _overflow(self, tree: str, node: Node) -> None:
        number = self.u64(node.data_at)
        at = number * PAGE
        span = self.u32(at + 12)
        page = self.pages[number] = Page(number, OVERFLOW, tree, span)
        page.fields += [
            Field("overflow header", "number", at, 8),
            Field("overflow header", "pad", at + 8, 2),
            Field("overflow header", "flags", at + 10, 2),
            Field("overflow header", "pages", at + 12, 4),
        ]
        if tree == FREELIST:
            self._free_list(page, node, at + HEADER)
        else:
            page.fields.append(Field("overflow data", "", at + HEADER, node.data_size))

    def _free_list(self, page: Page, node: Node, at: int) -> None:
        self.free_lists.append((node, at))
        page.fields.append(Field("free record", "count", at, 8))
        for position in range(1, self.u64(at) + 1):
            entry = Field("free record", "entry", at + 8 * position, 8)
            page.fields.append(entry)
            self.free[self.u64(entry.at)] = entry

    # ------------------------------------------------------------------ the root pages

    def meta_fields(self, number: int) -> Iterator[Field]:
        """Of root page 0 or 1."""
        at, kind = number * PAGE, "newer root page" if number == self.newest else "older root page"
        for name, offset, size in (
            ("number", 0, 8), ("pad", 8, 2), ("flags", 10, 2), ("magic", META_AT, 4),
            ("version", META_AT + 4, 4), ("address", META_AT + 8, 8), ("map size", META_AT + 16, 8),
            ("last page", LAST_PAGE_AT, 8), ("commit", TXN_AT, 8),
        ):  # fmt: skip
            yield Field(kind, name, at + offset, size)
        for tree, start in ((FREELIST, FREE_AT), (MAIN, MAIN_AT)):
            for name, offset, size in _RECORD_FIELDS:
                yield Field(kind, f"{tree} {name}", at + start + offset, size)
        yield Field(kind, "unused", at + TXN_AT + 8, PAGE - TXN_AT - 8)
