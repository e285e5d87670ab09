"""The command line: help with examples, options that are refused, ends that are exit codes."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvbench import __main__ as entry
from kvbench import command
from kvbench.__main__ import main
from kvbench.cluster import ClusterError
from kvbench.history import Fate, Verdict, Write, judge


@pytest.mark.parametrize("command", ["failover", "load", "demo"])
def test_every_command_has_help_with_examples(command: str) -> None:
    found = CliRunner().invoke(main, [command, "--help"])
    assert found.exit_code == 0
    lines = found.output.splitlines()
    examples = lines[lines.index("  Examples:") + 1 :]
    assert examples[0].startswith(f"    kvbench {command}"), "each on a line of its own"
    assert "\b" not in found.output
    assert "\\b" not in found.output


def test_help_names_the_exit_codes() -> None:
    found = CliRunner().invoke(main, ["--help"])
    lines = found.output.splitlines()
    codes = lines[lines.index("  Exit codes:") + 1 :]
    assert [int(line.split()[0]) for line in codes] == [0, 1, 2, 3, 130]
    assert "a promise was broken" in codes[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["failover", "--fault", "flood"],
        ["failover", "--rounds", "0"],
        ["failover", "--flavor", "zookeeper"],
        ["load", "--flavor", "etcd,zookeeper"],
        ["load", "--flavor", "etcd,etcd"],
        ["load", "--clients", "0"],
        ["load", "--json", "nowhere/load.json"],
        ["failover", "--json", "nowhere/failover.json"],
        ["failover", "--plot", "nowhere/failover.png"],
        ["failover", "--plot", "failover.doc"],
    ],
    ids=" ".join,
)
def test_wrong_options(arguments: list[str]) -> None:
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 2
    assert "Usage:" in found.output


def test_a_picture_without_matplotlib_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvbench.command.importlib.util.find_spec", lambda name: None)
    found = CliRunner().invoke(main, ["load", "--plot", "load.png"])
    assert found.exit_code == 2
    assert "pip install 'kvserver[bench]'" in found.output


# ---------------------------------------------------------------------- ends

WRITE = Write("demo/1", "v", 1.0, 2.0, Fate.ACKNOWLEDGED, 2)


def demo_that_finds(verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> int:
    async def run_demo(*_given: object) -> Verdict:
        return verdict

    monkeypatch.setattr(entry, "run_demo", run_demo)
    return CliRunner().invoke(main, ["demo"]).exit_code


def test_a_demonstration_that_loses_a_write_says_so_to_the_shell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = judge([WRITE], {})
    assert lost.lost == ["demo/1"]
    assert demo_that_finds(lost, monkeypatch) == 1
    assert demo_that_finds(judge([], {}), monkeypatch) == 0


def ends(work: Coroutine[None, None, int]) -> object:
    with pytest.raises(SystemExit) as caught:
        command.run(work)
    return caught.value.code


async def _ends_with(code: int) -> int:
    return code


async def _fails_with(error: BaseException) -> int:
    raise error


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(_ends_with(0)) == 0
    assert ends(_ends_with(1)) == 1
    assert ends(_fails_with(ClusterError("n1 ended"))) == 3
    assert capsys.readouterr().err == "kvbench: n1 ended\n"
    assert ends(_fails_with(asyncio.CancelledError())) == 130


def test_a_bug_of_the_bench_is_no_broken_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(_fails_with(ZeroDivisionError("a bug"))) == 3
    assert "Traceback" in capsys.readouterr().err


def test_files_are_wanted_in_folders_that_exist(tmp_path: Path) -> None:
    failover = main.commands["failover"]
    option = next(each for each in failover.params if each.name == "json_file")
    with failover.make_context("failover", ["--json", str(tmp_path / "a.json")]) as context:
        assert context.params[option.name or ""] == tmp_path / "a.json"
