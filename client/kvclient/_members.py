"""Members as people speak of them: by name, by id, and with the command that starts one. Pure."""

from collections.abc import Sequence

from kvclient._endpoints import parse_address
from kvclient._models import Member, Status
from kvclient._survey import Answer
from kvclient.errors import KvError


class UnclearMember(KvError):  # noqa: N818 - as in errors.py
    """Nothing was asked of the cluster, since it is not clear of which member."""


def find(members: Sequence[Member], wanted: str) -> Member:
    """The member of that name, else of that hexadecimal id."""
    named = [member for member in members if member.name == wanted]
    if len(named) > 1:
        ids = " and ".join(f"{member.id:x}" for member in named)
        raise UnclearMember(f"{ids} are both called {wanted!r}: give the id")
    digits = wanted.lower().removeprefix("0x")
    found = named or [member for member in members if f"{member.id:x}" == digits]
    if not found:
        known = ", ".join(called(member) for member in members)
        raise UnclearMember(f"no member has the name or id {wanted!r}: there are {known}")
    return found[0]


def called(member: Member) -> str:
    """Its name, with its id where that is needed or of use."""
    return f"{member.name} ({member.id:x})" if member.name else f"{member.id:x}"


def check_new_name(members: Sequence[Member], name: str) -> None:
    """Raise if a member has this name."""
    if any(member.name == name for member in members):
        raise UnclearMember(f"there is a member called {name!r} already: choose another name")


def best_standby(answers: Sequence[Answer[Status]]) -> Member:
    """The voter that follows the active most closely."""
    active = next((each.word for each in answers if each.word and each.word.active), None)
    if active is None:
        raise UnclearMember("no node is active, so there is nothing to move: see kv status")
    following = [
        (answer.word.applied_index, answer.member)
        for answer in answers
        if answer.word is not None
        and answer.member is not None
        and not (answer.member.learner or answer.word.learner)
        and not (answer.word.disqualified or answer.word.unverified)
        and not answer.word.active
        and answer.word.leader == active.leader
    ]
    if not following:
        raise UnclearMember("no standby that could take over follows the active: see kv status")
    return max(following, key=lambda each: each[0])[1]


def start_command(members: Sequence[Member], name: str, peer: str, client: str | None) -> list[str]:
    """The command that starts a member which was added.

    Args:
        members: all of them, the new one included.
        name: of the new one.
        peer: its address for the others, as host:port.
        client: its address for clients; by default one port below `peer`, as is the custom.
    """
    host, _, port = peer.rpartition(":")
    client = client or f"{host}:{int(port) - 1}"
    others = [
        (member.name, parse_address(member.peer_urls[0]))
        for member in members
        if member.name and member.peer_urls
    ]
    cluster = ",".join(f"{each}={address}" for each, address in [*others, (name, peer)])
    command = ["kvserver", "--name", name, "--initial-cluster-state", "existing"]
    command += ["--initial-cluster", cluster, "--listen-peer", peer, "--listen-client", client]
    if not all(address.startswith(("127.", "localhost:", "[::1]:")) for address in (peer, client)):
        command.append("--allow-insecure")
    return command
