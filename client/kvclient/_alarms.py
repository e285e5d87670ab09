"""The commands of `kv` about alarms: which are raised, and disarm them."""

from typing import TYPE_CHECKING

import click

from kvclient import _render
from kvclient._command import examples, options, run, settings

if TYPE_CHECKING:
    from kvclient import Alarm, AsyncClient, Member


@click.group()
def alarm() -> None:
    """Look at the alarms of the cluster, and disarm them.

    NOSPACE: a member's data takes more than its quota, so puts are refused. Delete keys, compact
    and wait; or restart the nodes with a greater --quota-bytes. The alarm then ends by itself.

    CORRUPT: a member's copy of the data differs from the others'. It does not serve; replace it:
    stop it, empty its --data-dir, start it.
    """


@alarm.command("list", epilog=examples("kv alarm list"))
@options(root=False)
def alarm_list() -> None:
    """Print the alarms that are raised; nothing if there are none.

    JSON: {"alarms"}, with {"id", "name", "alarm"} for each.
    """
    _print(*run(lambda client: _raised(client, None)))


@alarm.command("disarm", epilog=examples("kv alarm disarm", "kv alarm disarm n2"))
@options(root=False)
@click.argument("member", metavar="[NAME|ID]", required=False)
def alarm_disarm(member: str | None) -> None:
    """Disarm all alarms, or those of a member, and print them.

    What is still wrong raises its alarm again. A member without its CORRUPT alarm may become
    the active: disarm it only if you know that its copy is the right one.

    JSON: as `alarm list` prints it.
    """

    async def disarm(client: "AsyncClient") -> "tuple[list[Alarm], dict[int, Member]]":
        alarms, members = await _raised(client, member)
        for each in alarms:
            await client.disarm(each)
        return alarms, members

    _print(*run(disarm))


async def _raised(
    client: "AsyncClient", wanted: str | None
) -> "tuple[list[Alarm], dict[int, Member]]":
    """The alarms that are raised, of one member or of all, and the members by their ids."""
    from kvclient import _members  # noqa: PLC0415 - loads gRPC

    alarms = await client.alarms()
    members = await client.members(linearizable=False)
    if wanted is not None:
        member_id = _members.find(members, wanted).id
        alarms = tuple(each for each in alarms if each.member_id == member_id)
    return list(alarms), {each.id: each for each in members}


def _print(alarms: "list[Alarm]", members: "dict[int, Member]") -> None:
    rows = [
        {
            "id": f"{each.member_id:x}",
            "name": members[each.member_id].name if each.member_id in members else "",
            "alarm": each.kind,
        }
        for each in alarms
    ]
    if settings().json:
        _render.print_json({"alarms": rows})
    elif rows:
        _render.print_table([{name.upper(): cell for name, cell in row.items()} for row in rows])
