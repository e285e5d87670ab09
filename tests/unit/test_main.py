"""The command line: where options come from, how a node's end becomes an exit code."""

import json
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvserver import __main__ as entry
from kvserver import __version__
from kvserver.config import Config, flag_name
from kvserver.errors import (
    AddressError,
    DataDirError,
    DiskError,
    ExitCode,
    LogNotUnderstoodError,
    LostDiskError,
    NodeError,
    StoppedError,
    StuckError,
)

DEFAULTS = Config()

# Three values of each kind, all unlike the default, to tell the sources apart.
_STRINGS = ("from-file", "from-environment", "from-flag")
_NUMBERS = (11, 22, 33)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("KV_", "_KVSERVER_")):
            monkeypatch.delenv(name)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs that `serve` was called with, instead of serving."""
    configs: list[Config] = []

    def serve(config: Config) -> ExitCode:
        configs.append(config)
        return ExitCode.OK

    monkeypatch.setattr(entry, "serve", serve)
    return configs


def run(*arguments: str) -> Result:
    return CliRunner().invoke(entry.command, arguments)


def triple(name: str) -> tuple[Any, Any, Any]:
    """Values for the file, the environment and the command line."""
    default = getattr(DEFAULTS, name)
    if isinstance(default, bool):
        return (not default, default, not default)
    return _NUMBERS if isinstance(default, int) else _STRINGS


def arguments(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag_name(name) if value else "--no-" + flag_name(name)[2:]]
    return [flag_name(name), str(value)]


def toml(file: Path, **values: object) -> Path:
    lines = [f"{name.replace('_', '-')} = {json.dumps(each)}\n" for name, each in values.items()]
    file.write_text("".join(lines))
    return file


OPTIONS = [each.name for each in fields(Config)]


# ---------------------------------------------------------------------- sources


def test_without_anything_the_defaults_hold(served: list[Config]) -> None:
    assert run().exit_code == 0
    assert served == [DEFAULTS]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_and_who_wins(
    name: str, served: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_file, in_environment, in_flag = triple(name)
    config = ["--config", str(toml(tmp_path / "kv.toml", **{name: in_file}))]
    assert run(*config).exit_code == 0
    monkeypatch.setenv(f"KV_{name.upper()}", str(in_environment))
    assert run(*config).exit_code == 0
    assert run(*config, *arguments(name, in_flag)).exit_code == 0
    assert [getattr(each, name) for each in served] == [in_file, in_environment, in_flag]
    others = [other for other in OPTIONS if other != name]
    for each in served:
        assert [getattr(each, other) for other in others] == [
            getattr(DEFAULTS, other) for other in others
        ]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_command_line_alone(name: str, served: list[Config]) -> None:
    value = triple(name)[2]
    assert run(*arguments(name, value)).exit_code == 0
    assert getattr(served[0], name) == value


def test_the_file_can_be_named_in_the_environment(
    served: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KV_CONFIG", str(toml(tmp_path / "kv.toml", name="n7")))
    assert run().exit_code == 0
    assert served[0].name == "n7"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heart-beat-ms = 5", "there is no option 'heart-beat-ms'"),
        ("heartbeat_ms = 5", "there is no option 'heartbeat_ms'"),
        ("[server]\nname = 'n1'", "there is no option 'server'"),
        ("config = 'other.toml'", "there is no option 'config'"),
        ("name =", "--config"),
        ("heartbeat-ms = '50'", "'heartbeat-ms' must be a whole number"),
        ("heartbeat-ms = 50.7", "'heartbeat-ms' must be a whole number"),
        ("heartbeat-ms = true", "'heartbeat-ms' must be a whole number"),
        ("restart = 0", "'restart' must be true or false"),
        ("restart = 'no'", "'restart' must be true or false"),
        ("data-dir = ['a']", "'data-dir' must be a string"),
    ],
)
def test_a_wrong_file(text: str, said: str, served: list[Config], tmp_path: Path) -> None:
    file = tmp_path / "kv.toml"
    file.write_text(text)
    found = run("--config", str(file))
    assert found.exit_code == ExitCode.USAGE
    assert said in found.output
    assert "kv.toml" in found.output
    assert not served


def test_a_file_that_is_not_there_or_not_text(served: list[Config], tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name in ("missing", "bytes"):
        found = run("--config", str(tmp_path / name))
        assert found.exit_code == ExitCode.USAGE
        assert name in found.output
    assert not served


def test_a_wrong_value_in_the_environment(
    served: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KV_HEARTBEAT_MS", "often")
    found = run()
    assert found.exit_code == ExitCode.USAGE
    assert "--heartbeat-ms" in found.output
    assert not served


@pytest.mark.parametrize("wrong", [["--nonsense"], ["--heartbeat-ms", "x"], ["extra"]], ids=str)
def test_a_wrong_command_line(wrong: list[str], served: list[Config]) -> None:
    assert run(*wrong).exit_code == ExitCode.USAGE
    assert not served


# ---------------------------------------------------------------------- help


def test_help() -> None:
    found = run("--help")
    assert found.exit_code == 0
    lines = found.output.splitlines()
    assert "  Examples:" in lines
    assert "    kvserver" in lines, "examples stand on lines of their own"
    assert any(line.endswith("--data-dir /var/lib/kv \\") for line in lines)
    assert "\b" not in found.output
    for name in OPTIONS:
        assert flag_name(name) in found.output


def test_help_names_every_exit_code() -> None:
    listing = run("--help").output.partition("Exit codes:")[2].partition("Options:")[0]
    named = {int(number) for number in re.findall(r"(?:^| )(\d) [a-z]", listing)}
    assert named == set(ExitCode)


def test_version() -> None:
    assert run("--version").output == f"kvserver, version {__version__}\n"


# ---------------------------------------------------------------------- ends


class Exec(Exception):  # noqa: N818 - stands for a process that is replaced
    """Raised where the process would be replaced."""

    def __init__(self, program: str, arguments: list[str]) -> None:
        super().__init__(program, arguments)
        self.program = program
        self.arguments = arguments


class World:
    """A node that ends as told, and everything that starting over touches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept: list[float] = []
        self.now = 100.0
        self.ran_s = 1.0
        self.end: NodeError | ExitCode = ExitCode.OK
        self.files = entry.FILES_ADVISED_MIN
        world = self

        class FakeNode:
            def __init__(self, config: Config, *rooms: object) -> None:
                self.config = config

            def stop(self) -> None:
                raise AssertionError("nobody asked")

            async def run(self) -> ExitCode:
                world.now += world.ran_s
                if isinstance(world.end, NodeError):
                    raise world.end
                return world.end

        class FakeClock:
            def monotonic(self) -> float:
                return world.now

        def execv(program: str, arguments: list[str]) -> None:
            raise Exec(program, arguments)

        monkeypatch.setattr(entry, "Node", FakeNode)
        monkeypatch.setattr(entry, "SystemClock", FakeClock)
        monkeypatch.setattr(entry, "raise_limit", lambda: world.files)
        monkeypatch.setattr("kvserver.__main__.os.execv", execv)
        monkeypatch.setattr("kvserver.__main__.time.sleep", self.slept.append)
        # so that what starting over sets is put back
        monkeypatch.setenv(entry._RESTARTS, "0")

    def starts_over(self) -> Exec:
        with pytest.raises(Exec) as caught:
            entry.serve(DEFAULTS)
        return caught.value


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NodeError("x"), 1),
        (DataDirError("x"), 3),
        (AddressError("x"), 4),
        (StuckError("x"), 6),
        (LogNotUnderstoodError("x"), 7),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_node_is_an_exit_code(
    error: NodeError, code: int, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.end = type(error)("the sentence for the operator")
    assert entry.serve(DEFAULTS) == code
    assert not world.slept
    said = capfd.readouterr().err
    assert f'node.failed reason="the sentence for the operator" exit_code={code}' in said


def test_a_node_that_is_stopped_ends_well(world: World) -> None:
    assert entry.serve(DEFAULTS) == 0


@pytest.mark.parametrize("files", [1024, entry.FILES_ADVISED_MIN])
def test_a_low_limit_of_open_files_is_told(
    files: int, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.files = files
    assert entry.serve(DEFAULTS) == 0
    said = capfd.readouterr().err
    assert ('warning config.advice option="ulimit -Hn" value=1024' in said) == (files == 1024)


def test_options_that_contradict_each_other(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    assert entry.serve(Config(log_level="loud")) == 2
    assert capfd.readouterr().err == (
        "kvserver: --log-level 'loud': use debug, info, warning or error\n"
    )


def test_the_exit_code_reaches_the_shell(world: World) -> None:
    world.end = AddressError("in use")
    assert run().exit_code == 4
    assert run("--log-level", "loud").exit_code == 2


def test_after_a_failed_disk_it_starts_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "bin/kvserver", "--name", "n1"])
    world.end = DiskError("sync failed")
    replaced = world.starts_over()
    assert replaced.program == sys.executable
    assert replaced.arguments == [sys.executable, "bin/kvserver", "--name", "n1"]
    assert world.slept == [1.0]


def test_again_and_again_it_waits_longer_up_to_a_bound(world: World) -> None:
    world.end = DiskError("sync failed")
    for _ in range(7):
        world.starts_over()
    assert world.slept == [1, 2, 4, 8, 16, 30, 30]
    os.environ[entry._RESTARTS] = "5000"
    world.starts_over()
    assert world.slept[-1] == 30


def test_a_node_that_ran_well_for_long_starts_over_soon(world: World) -> None:
    world.end = DiskError("sync failed")
    for _ in range(4):
        world.starts_over()
    world.ran_s = entry.HEALTHY_AFTER_S + 1
    world.starts_over()
    world.ran_s = 1.0
    world.starts_over()
    assert world.slept == [1, 2, 4, 8, 1, 2]


def test_a_member_that_lost_its_disk_starts_over_at_once_as_a_new_one(world: World) -> None:
    world.end = LostDiskError("n1 had another data directory")
    world.starts_over()
    assert world.slept == []
    assert os.environ[entry._RESTARTS] == "0"


def test_one_that_is_stopped_while_it_waits_ends_well(world: World) -> None:
    world.end = StoppedError("stopped")
    assert entry.serve(DEFAULTS) == 0


def test_it_can_be_told_not_to(world: World) -> None:
    world.end = DiskError("sync failed")
    assert run("--no-restart").exit_code == 5
    assert not world.slept


def test_a_programmers_error_is_not_hidden(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*rooms: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "Node", broken)
    with pytest.raises(ZeroDivisionError):
        entry.serve(DEFAULTS)
