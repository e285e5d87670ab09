"""What the commands of `kv` share: global options, asking the cluster, how a command ends."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import click

import kvclient
from kvclient.errors import DeadlineExceeded, KvError, OutcomeUnknown, Unavailable

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])

EXIT_DECLINED = 1
EXIT_UNREACHABLE = 3
EXIT_UNKNOWN = 4
EXIT_INTERRUPTED = 130


@dataclass
class Settings:
    """The options that every command has."""

    endpoints: str = ""
    timeout: float = 0.0
    output: str = ""

    @property
    def json(self) -> bool:
        """Whether to print JSON."""
        return self.output == "json"

    def client(self) -> "kvclient.AsyncClient":
        """A client as these options want it."""
        try:
            return kvclient.AsyncClient(self.endpoints, timeout_s=self.timeout)
        except ValueError as error:
            raise click.UsageError(str(error)) from error


class Declined(click.ClickException):
    """An error of the cluster's: one sentence and an exit code."""

    exit_code = EXIT_DECLINED

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """Print it."""
        click.echo(f"kv: {self.message}", err=True)


class Unreachable(Declined):
    """Nobody answered and nothing was changed."""

    exit_code = EXIT_UNREACHABLE


class Unknown(Declined):
    """A write that may be applied or not."""

    exit_code = EXIT_UNKNOWN


def _failure(error: KvError) -> Declined:
    if isinstance(error, OutcomeUnknown):
        return Unknown(str(error))
    if isinstance(error, Unavailable | DeadlineExceeded):
        return Unreachable(str(error))
    return Declined(str(error))


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines)


def _remember(context: click.Context, option: click.Parameter, value: object) -> None:
    found = context.find_root().ensure_object(Settings)
    if value is not None:
        setattr(found, str(option.name), value)


def options(*, root: bool) -> Callable[[_Command], _Command]:
    """The global options; each command takes them too, so that they may stand at a line's end."""
    common: dict[str, Any] = {
        "expose_value": False,
        "callback": _remember,
        "hidden": not root,
        "show_default": root,
    }

    def decorate(command: _Command) -> _Command:
        for option in (
            click.option(
                "--output",
                "-o",
                type=click.Choice(["text", "json"]),
                default="text" if root else None,
                help="What to print.",
                **common,
            ),
            click.option(
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                default=5.0 if root else None,
                help="How long a command may take, all attempts together.",
                **common,
            ),
            click.option(
                "--endpoints",
                metavar="HOST:PORT,...",
                default="127.0.0.1:2379" if root else None,
                envvar="KV_ENDPOINTS" if root else None,
                show_envvar=root,
                help="Nodes to ask; name all members, since any of them may be down.",
                **common,
            ),
        ):
            command = option(command)
        return command

    return decorate


def run(ask: "Callable[[kvclient.AsyncClient], Coroutine[Any, Any, _T]]") -> _T:
    """Ask the cluster; what goes wrong becomes a sentence and an exit code."""
    client = settings().client()

    async def session() -> _T:
        async with client:
            return await ask(client)

    return ask_one(lambda: asyncio.run(session()))


def ask_one(ask: Callable[[], _T]) -> _T:
    """Ask by other means than a client; what goes wrong ends as with `run`."""
    try:
        return ask()
    except KvError as error:
        raise _failure(error) from error


def settings() -> Settings:
    """The global options as given."""
    return click.get_current_context().find_root().ensure_object(Settings)
