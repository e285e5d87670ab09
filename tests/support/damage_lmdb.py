"""Damage in the pages of an LMDB file: a bit of any field, pages that lie where others should."""

from collections.abc import Callable, Iterator, Sequence
from random import Random

from support.damage_file import Drawn, flipped, patched
from support.lmdb_file import HEADER, PAGE, Field, LmdbFile, Page

Draw = Callable[[Random], Drawn | None]

FIELDS = (
    "branch header", "branch pointer", "branch node", "separator", "leaf header", "leaf pointer",
    "leaf node", "key", "data", "record", "record of duplicates", "overflow reference",
    "overflow header", "overflow data", "sub-page header", "sub-page node", "sub-page data",
    "free record", "unused space",
)  # fmt: skip


def numbered(number: int, content: bytes) -> bytes:
    """A page that says it has this number."""
    return number.to_bytes(8, "little") + content[8:]


class LmdbDamages:
    """Of the file of a state."""

    def __init__(self, content: bytes, older: Sequence[bytes]) -> None:
        """Take the file apart; `older` are what it was before, the oldest first."""
        self._file = LmdbFile(content)
        self._older = older

    def kinds(self) -> Iterator[tuple[str, Draw]]:
        """Names of kinds, and what draws one of each."""
        for kind in FIELDS:
            yield f"bit: {kind}", self._flip_in(kind)
        yield "bit: newer root page", lambda rng: self._flip_meta(rng, self._file.newest)
        yield "bit: older root page", lambda rng: self._flip_meta(rng, 1 - self._file.newest)
        yield "bit: free page", self._flip_free
        yield "page: zeros", self._zeros
        yield "page: two swapped", lambda rng: self._swap(rng, renumber=False)
        yield "page: two swapped, numbers right", lambda rng: self._swap(rng, renumber=True)
        yield "page: what another holds", lambda rng: self._misplace(rng, renumber=False)
        yield (
            "page: what another holds, number right",
            lambda rng: self._misplace(rng, renumber=True),
        )
        yield "page: as it was", self._outdated
        yield "root page: as it was", self._outdated_meta
        yield "root pages: what the other holds", self._same_metas

    # ------------------------------------------------------------------ bits

    def _flip_in(self, kind: str) -> Draw:
        def draw(rng: Random) -> Drawn | None:
            trees = self._file.where.get(kind)
            if not trees:
                return None
            page = rng.choice(trees[rng.choice(sorted(trees))])
            fields = [each for each in page.fields if each.kind == kind and each.size]
            name = rng.choice(sorted({each.name for each in fields}))
            found = rng.choice([each for each in fields if each.name == name])
            return self._flip(rng, found, f"page {page.number} of {page.tree}")

        return draw

    def _flip_meta(self, rng: Random, number: int) -> Drawn:
        return self._flip(rng, rng.choice(list(self._file.meta_fields(number))), f"page {number}")

    def _flip(self, rng: Random, found: Field, where: str) -> Drawn:
        at, bit = found.at + rng.randrange(found.size), rng.randrange(8)
        return Drawn(
            f"bit {bit} of byte {at}, {found.kind} {found.name}, {where}", flipped(at, bit)
        )

    def _flip_free(self, rng: Random) -> Drawn:
        number = rng.choice(sorted(self._file.free))
        at, bit = number * PAGE + rng.randrange(PAGE), rng.randrange(8)
        return Drawn(f"bit {bit} of byte {at}, page {number} is free", flipped(at, bit))

    # ------------------------------------------------------------------ whole pages

    def _page(self, rng: Random) -> Page:
        """One that is used, of any tree as likely as of any other."""
        trees = sorted({each.tree for each in self._file.pages.values()})
        tree = rng.choice(trees)
        return rng.choice([each for each in self._file.pages.values() if each.tree == tree])

    def _like(self, rng: Random, page: Page) -> Page | None:
        """Another one of its kind; mostly of its tree, if that has any."""
        same = [each for each in self._file.pages.values() if each.kind == page.kind]
        if rng.random() < 0.7:
            same = [each for each in same if each.tree == page.tree]
        same = [each for each in same if each.number != page.number]
        return rng.choice(same) if same else None

    def _zeros(self, rng: Random) -> Drawn:
        page = self._page(rng)
        return Drawn(
            f"page {page.number} of {page.tree} is zeros",
            patched((page.number * PAGE, bytes(PAGE))),
        )

    def _swap(self, rng: Random, *, renumber: bool) -> Drawn | None:
        one = self._page(rng)
        other = self._like(rng, one)
        if other is None:
            return None
        a, b = one.number, other.number
        pages = self._file.page_bytes(b), self._file.page_bytes(a)
        if renumber:
            pages = numbered(a, pages[0]), numbered(b, pages[1])
        return Drawn(
            f"pages {a} of {one.tree} and {b} of {other.tree} are swapped",
            patched((a * PAGE, pages[0]), (b * PAGE, pages[1])),
        )

    def _misplace(self, rng: Random, *, renumber: bool) -> Drawn | None:
        page = self._page(rng)
        other = self._like(rng, page)
        if other is None:
            return None
        content = self._file.page_bytes(other.number)
        if renumber:
            content = numbered(page.number, content)
        return Drawn(
            f"page {page.number} of {page.tree} holds page {other.number} of {other.tree}",
            patched((page.number * PAGE, content)),
        )

    def _outdated(self, rng: Random) -> Drawn | None:
        """A write that was lost: the page holds what it did before."""
        if not self._older:
            return None
        page, older = self._page(rng), rng.choice(self._older)
        content = older[page.number * PAGE : (page.number + 1) * PAGE]
        if len(content) < PAGE:
            content = bytes(PAGE)
        what = (
            "other" if content[HEADER:] != self._file.page_bytes(page.number)[HEADER:] else "same"
        )
        return Drawn(
            f"page {page.number} of {page.tree} is as it was, {what} content",
            patched((page.number * PAGE, content)),
        )

    def _outdated_meta(self, rng: Random) -> Drawn | None:
        if not self._older:
            return None
        number, older = rng.randrange(2), rng.choice(self._older)
        return Drawn(
            f"root page {number} is as it was",
            patched((number * PAGE, older[number * PAGE :][:PAGE])),
        )

    def _same_metas(self, rng: Random) -> Drawn:
        number = rng.randrange(2)
        content = self._file.page_bytes(1 - number)
        if rng.random() < 0.5:
            content = numbered(number, content)
        return Drawn(f"root page {number} is the other one", patched((number * PAGE, content)))
