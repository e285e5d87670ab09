"""Which numbers somebody waits for. Made by hand, since every write in a session passes here."""


class Awaited:
    """Numbers, each as often as somebody waits for it."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def within(self, *numbers: int) -> "_Within":
        """A context in which these are awaited."""
        return _Within(self._counts, numbers)


class _Within:
    __slots__ = ("_counts", "_numbers")

    def __init__(self, counts: dict[int, int], numbers: tuple[int, ...]) -> None:
        self._counts = counts
        self._numbers = numbers

    def __enter__(self) -> None:
        for number in self._numbers:
            self._counts[number] = self._counts.get(number, 0) + 1

    def __exit__(self, *_: object) -> None:
        for number in self._numbers:
            left = self._counts[number] - 1
            if left:
                self._counts[number] = left
            else:
                del self._counts[number]
