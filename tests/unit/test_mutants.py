"""The tool that breaks the server in small ways: what it changes, and what it leaves alone."""

from collections.abc import Iterator

import mutants as tool
import pytest
from support.mutating import mutants


def changed(source: str) -> set[str]:
    """The lines that differ after a change, without the space before them."""

    def found() -> Iterator[str]:
        for mutant in mutants("a.py", source):
            after = mutant.after.splitlines()
            yield "; ".join(
                line.strip() for line in after if line not in mutant.before.splitlines()
            )

    return set(found())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("x = a < b", {"x = a <= b", "x = a > b"}),
        ("x = a >= b", {"x = a > b", "x = a <= b"}),
        ("BITS: Final = 5", {"BITS: Final = 6", "BITS: Final = 4"}),
        ("x = a == b", {"x = a != b"}),
        ("x = a is not b", {"x = a is b"}),
        ("x = a in b", {"x = a not in b"}),
        ("x = not a", {"x = (a)"}),
        ("x = a and b", {"x = (a or b)", "x = (a)", "x = (b)"}),
        ("x = a + b", {"x = (a - b)"}),
        ("x = f(1)", {"x = f(2)", "x = f(0)"}),
        ("x = f(0)", {"x = f(1)", "x = f((-1))"}),
        ("x = f(True)", {"x = f(False)"}),
        ("x = f(0.5)", {"x = f(1.0)"}),
        ("x = max(a, b)", {"x = min(a, b)"}),
        ("x = a if b else c", {"x = a if (not (b)) else c"}),
        ("f(a)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("x += a", {"pass"}),
        ("raise E", {"pass"}),
    ],
)
def test_a_line_is_changed_in_all_these_ways(line: str, wanted: set[str]) -> None:
    assert changed(f"{line}\n") == wanted


@pytest.mark.parametrize(
    "source",
    [
        '"""A text."""\n',
        "import a\n",
        "assert a < b\n",
        "x = 'a' + b\n",
        "x: Annotated[int, 5]\n",
        "x = f'{a + 1}'\n",
        "WAIT_S: Final = 5\n",
        "self._event('a', b=c + 1)\n",
        "class A(Protocol):\n    def f(self) -> int:\n        return 1\n",
        "class A:\n    @abstractmethod\n    def f(self) -> int:\n        return 1\n",
        "class A:\n    def __init__(self) -> None:\n        self.a = b\n",
    ],
)
def test_what_no_test_could_notice_is_left_alone(source: str) -> None:
    assert changed(source) == set()


def test_a_condition_is_negated_and_each_way_out_blocked() -> None:
    source = "def f(a):\n    if a:\n        return\n    return a\n"
    assert changed(source) == {"if not (a):", "pass", "return None"}


def test_a_change_stands_in_its_place_among_letters_of_many_bytes() -> None:
    assert changed("x = g('ä€', a < b, 'é')\n") == {
        "x = g('ä€', a <= b, 'é')",
        "x = g('ä€', a > b, 'é')",
    }


def test_a_seed_draws_the_same_mutants_of_different_lines() -> None:
    paths = list(tool.sources(""))
    drawn = tool.draw(paths, 3, 30)
    assert drawn == tool.draw(paths, 3, 30)
    assert drawn != tool.draw(paths, 4, 30)
    assert len({(each.path, each.line) for each in drawn}) == 30
    assert {path.rsplit("/", 1)[0] + "/" for path in paths} == set(tool.ROOMS)
