"""A sign of life from commands that change very many keys: whoever watches sees that they go on."""

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

STEP_KEYS: Final = 1_000

T = TypeVar("T")


class Pace:
    """Counts how far the work is."""

    def __init__(self) -> None:
        self.steps = 0
        """Invariant: rises with every so many keys of whatever takes long; any thread may look."""

    def chunks(self, items: Iterable[T]) -> Iterator[list[T]]:
        """The same items, some at a time; each time counts."""
        rest = iter(items)
        while some := list(islice(rest, STEP_KEYS)):
            yield some
            self.steps += 1

    def drive(self, work: Generator[None, None, T]) -> T:
        """Do work that yields now and then; each time counts."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                result: T = end.value
                return result
            self.steps += 1

    def all(self, items: Iterable[T]) -> list[T]:
        """All items, where it takes long to find them."""
        return [item for some in self.chunks(items) for item in some]
