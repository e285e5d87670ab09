"""Pictures show the figures that were measured."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kvbench.failover import Fault, Options, Result, Round
from kvbench.flavor import ETCD, KVSERVER
from kvbench.history import judge
from kvbench.load import Plan, Run
from kvbench.plot import failover_figure, load_figure, save
from kvbench.report import distribution
from kvbench.timeline import Parts

MACHINE = {
    "cores": 2, "processor": "P", "kernel": "K", "python": "3", "data_file_system": "ext4",
}  # fmt: skip
OPTIONS = Options(KVSERVER, Fault.KILL, rounds=3, nodes=3, seed=1, put_timeout_s=0.05)
FULL = Parts(0.0125, 0.01, 0.001, 0.002, 0.003, 0.004)


def of(number: int, parts: Parts = FULL) -> Round:
    return Round(number, "n1", "n2", parts, 1, 0, 0, 0.1, 0, {})


def result(*rounds: Round) -> Result:
    return Result(list(rounds), judge([], {}), "3.5.0+kvserver.0.1.0")


def heights(axes: Axes) -> list[list[float]]:
    """Of the bars, group by group."""
    return [
        [patch.get_height() for patch in group if isinstance(patch, Rectangle)]
        for group in axes.containers
        if isinstance(group, BarContainer)
    ]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(match=_is_text))  # type: ignore[attr-defined]


def _is_text(artist: object) -> bool:
    return hasattr(artist, "get_text")


def flat(rows: Iterable[Iterable[float]]) -> list[float]:
    return [value for row in rows for value in row]


def test_the_parts_of_a_round_are_stacked_up_to_its_recovery() -> None:
    figure = failover_figure(OPTIONS, result(of(1), of(2)), MACHINE)
    rounds, _ = figure.axes
    assert [row[0] for row in heights(rounds)] == pytest.approx([1, 2, 3, 4])
    tops = [patch.get_y() + patch.get_height() for patch in rounds.patches]  # type: ignore[attr-defined]
    assert max(tops) == pytest.approx(10)
    (window,) = rounds.lines
    assert list(window.get_ydata()) == pytest.approx([12.5, 12.5])  # type: ignore[arg-type]


def test_a_round_whose_logs_tell_nothing_is_shown_whole() -> None:
    blind = Parts(0.03, 0.02, None, None, None, None)
    figure = failover_figure(OPTIONS, result(of(1), of(2, blind)), MACHINE)
    last = heights(figure.axes[0])[-1]
    assert last == pytest.approx([0, 20])
    assert "the logs tell no more" in words(figure)


def test_a_part_that_is_never_known_is_not_in_the_legend() -> None:
    etcd = replace(FULL, activation=None)
    figure = failover_figure(OPTIONS, result(of(1, etcd)), MACHINE)
    assert "activate" not in words(figure)


def test_a_picture_does_not_hide_a_broken_promise() -> None:
    good = result(of(1))
    assert "none lost" in words(failover_figure(OPTIONS, good, MACHINE))
    bad = replace(good, verdict=replace(good.verdict, lost=["k1", "k2"]))
    assert "A PROMISE WAS BROKEN: 2 lost" in words(failover_figure(OPTIONS, bad, MACHINE))


@pytest.mark.parametrize("count", [1, 2, 31, 300])
def test_any_number_of_rounds(count: int, tmp_path: Path) -> None:
    rounds = [of(number, replace(FULL, window=number / 1000)) for number in range(1, count + 1)]
    figure = failover_figure(OPTIONS, result(*rounds), MACHINE)
    save(figure, tmp_path / "failover.png")
    assert (tmp_path / "failover.png").read_bytes().startswith(b"\x89PNG")
    spread = figure.axes[1]
    assert sum(patch.get_width() for patch in spread.patches) == count  # type: ignore[attr-defined]


def run(flavor: str, clients: int, per_second: int) -> Run:
    return Run(
        "put", flavor, "1", clients, 1, started=per_second, succeeded=per_second, failed=0,
        proven=per_second, seconds=1.0, latency=distribution([0.001, 0.002, 0.003]),
    )  # fmt: skip


def test_load_shows_medians_and_ratios(tmp_path: Path) -> None:
    plan = Plan("put", [KVSERVER, ETCD], [1, 64], 1.0, None, 1, 3)
    runs = [
        run("kvserver", 1, 100), run("etcd", 1, 400), run("kvserver", 64, 900), run("etcd", 64, 600)
    ]  # fmt: skip
    figure = load_figure(plan, runs, MACHINE)
    one, many, latency, _ = figure.axes
    assert flat(heights(one)) == [100, 400]
    assert flat(heights(many)) == [900, 600]
    assert flat(heights(latency)) == pytest.approx([2, 2])
    assert one.get_title("left") == "1 client:  kvserver / etcd = 0.25"
    assert many.get_title("left") == "64 clients:  kvserver / etcd = 1.50"
    assert "NOT EVERY ANSWER" not in words(figure)
    save(figure, tmp_path / "load.svg")
    assert "<svg" in (tmp_path / "load.svg").read_text()


def test_load_of_one_server_has_no_ratio_and_tells_of_doubt() -> None:
    plan = Plan("put", [KVSERVER], [1], 1.0, 100, 1, 1)
    figure = load_figure(plan, [replace(run("kvserver", 1, 100), proven=99)], MACHINE)
    assert figure.axes[0].get_title("left") == "1 client"
    assert "NOT EVERY ANSWER WAS A PUT" in words(figure)
