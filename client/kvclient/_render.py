"""What the command line prints: lines as etcdctl prints them, tables, and JSON.

JSON has one object per command. A key or value is a string if it is valid UTF-8, else
`{"base64": "..."}`; ids are hexadecimal strings, since they exceed what JSON readers hold exactly.
"""

import base64
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvclient._models import Event, HashResult, KeyValue, Member, RangeResult, Status
    from kvclient._survey import Answer

# Wider than any table: a terminal that is not wraps the lines, but rich would cut numbers off.
_TABLE_COLUMNS = 1000
_STYLES = {
    "active": "bold green",
    "unreachable": "bold red",
    "disqualified": "bold red",
    "unverified": "yellow",
}
_UNITS = ("KiB", "MiB", "GiB", "TiB")

STATUS_NUMBERS = ("TERM", "REVISION", "INDEX", "APPLIED", "LAG", "SIZE")
HASH_NUMBERS = ("REVISION", "COMPACTED")


def bytes_json(raw: bytes) -> str | dict[str, str]:
    """Bytes as JSON."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def key_value_json(kv: "KeyValue") -> dict[str, object]:
    """One key as JSON."""
    return {
        "key": bytes_json(kv.key),
        "value": bytes_json(kv.value),
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
        "lease": kv.lease,
    }


def print_event(event: "Event", *, as_json: bool) -> None:
    """One change; as JSON in one line."""
    if as_json:
        previous = key_value_json(event.prev_kv) if event.prev_kv else None
        kind = "DELETE" if event.deleted else "PUT"
        found = {"type": kind, "kv": key_value_json(event.kv), "prev_kv": previous}
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    click.echo("DELETE" if event.deleted else "PUT")
    if event.prev_kv:
        print_key_value(event.prev_kv)
    print_key_value(event.kv)


def member_json(member: "Member") -> dict[str, object]:
    """One member as JSON."""
    return {
        "id": f"{member.id:x}",
        "name": member.name,
        "client_urls": list(member.client_urls),
        "peer_urls": list(member.peer_urls),
        "learner": member.learner,
    }


def range_json(result: "RangeResult") -> dict[str, object]:
    """A range as JSON."""
    return {
        "revision": result.revision,
        "count": result.count,
        "more": result.more,
        "kvs": [key_value_json(kv) for kv in result.kvs],
    }


def status_json(answers: "Sequence[Answer[Status]]") -> list[dict[str, object]]:
    """All nodes as JSON; what only a node could tell is missing if it is silent."""
    front = _front(answers)
    return [_node_json(answer, front) for answer in answers]


def _node_json(answer: "Answer[Status]", front: int) -> dict[str, object]:
    node = {"endpoint": answer.endpoint, **_identity(answer)}
    status = answer.word
    if status is None:
        return {**node, "role": "unreachable", "errors": [answer.error]}
    return {
        **node,
        "role": _role(status),
        "term": status.term,
        "leader": f"{status.leader:x}",
        "revision": status.revision,
        "index": status.index,
        "applied_index": status.applied_index,
        "lag": front - status.applied_index,
        "db_size_bytes": status.db_size_bytes,
        "db_size_in_use_bytes": status.db_size_in_use_bytes,
        "db_size_quota_bytes": status.db_size_quota_bytes,
        "version": status.version,
        "errors": list(status.errors),
    }


def _front(answers: "Sequence[Answer[Status]]") -> int:
    """The highest log index that any node knows of."""
    words = [answer.word for answer in answers if answer.word is not None]
    return max((max(word.index, word.applied_index) for word in words), default=0)


def hash_json(answer: "Answer[HashResult]") -> dict[str, object]:
    """One node's hash as JSON."""
    node = {"endpoint": answer.endpoint, **_identity(answer)}
    if answer.word is None:
        return {**node, "error": answer.error}
    return {
        **node,
        "hash": f"{answer.word.hash:08x}",
        "revision": answer.word.revision,
        "compact_revision": answer.word.compact_revision,
    }


def _identity(answer: "Answer[Status] | Answer[HashResult]") -> dict[str, str]:
    member_id = answer.word.member_id if answer.word else answer.member and answer.member.id
    return {
        "name": answer.member.name if answer.member else "",
        "id": f"{member_id:x}" if member_id else "",
    }


def _role(status: "Status") -> str:
    if status.disqualified:
        return "disqualified"
    if status.unverified:
        return "unverified"
    if status.active:
        return "active"
    return "learner" if status.learner else "standby"


def _size(count: int) -> str:
    """Bytes for people."""
    if count < 1024:
        return f"{count} B"
    exponent = min((count.bit_length() - 1) // 10, len(_UNITS))
    amount = count / 1024**exponent
    digits = f"{amount:.0f}" if amount >= 100 else f"{amount:.3g}"
    return f"{digits} {_UNITS[exponent - 1]}"


def print_json(value: Mapping[str, object]) -> None:
    """One object, readable by people too."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_key_value(kv: "KeyValue") -> None:
    """Key and value, a line each, byte by byte as stored."""
    click.echo(kv.key)
    click.echo(kv.value)


def status_rows(answers: "Sequence[Answer[Status]]") -> list[dict[str, object]]:
    """Lines of the status table."""
    front = _front(answers)
    return [_status_row(answer, front) for answer in answers]


def _status_row(answer: "Answer[Status]", front: int) -> dict[str, object]:
    identity = _identity(answer)
    first = {"ENDPOINT": answer.endpoint, "NAME": identity["name"] or identity["id"]}
    status = answer.word
    if status is None:
        unknown = dict.fromkeys((*STATUS_NUMBERS, "VERSION"), "")
        return {**first, "ROLE": "unreachable", **unknown}
    return {
        **first,
        "ROLE": _role(status),
        "TERM": status.term,
        "REVISION": status.revision,
        "INDEX": status.index,
        "APPLIED": status.applied_index,
        "LAG": front - status.applied_index,
        "SIZE": _size(status.db_size_bytes),
        "VERSION": status.version,
    }


def hash_rows(answers: "Sequence[Answer[HashResult]]") -> list[dict[str, object]]:
    """Lines of the table of hashes."""
    rows: list[dict[str, object]] = []
    for answer in answers:
        identity, word = _identity(answer), answer.word
        rows.append(
            {
                "ENDPOINT": answer.endpoint,
                "NAME": identity["name"] or identity["id"],
                "HASH": f"{word.hash:08x}" if word else "",
                "REVISION": word.revision if word else "",
                "COMPACTED": word.compact_revision if word else "",
            }
        )
    return rows


def print_errors(answers: "Iterable[Answer[Status] | Answer[HashResult]]") -> None:
    """What is wrong with the nodes, a line each below their table, where it has all the room."""
    errors = [(answer.endpoint, _errors(answer)) for answer in answers]
    lines = [f"{endpoint}: {error}" for endpoint, found in errors for error in found]
    if lines:
        click.echo("\n" + "\n".join(lines))


def _errors(answer: "Answer[Status] | Answer[HashResult]") -> Sequence[str]:
    if answer.word is None:
        return (answer.error,)
    return getattr(answer.word, "errors", ())


def member_rows(members: "Iterable[Member]") -> list[dict[str, object]]:
    """Lines of the member table."""
    return [
        {
            "ID": f"{member.id:x}",
            "NAME": member.name,
            "CLIENT URLS": ", ".join(member.client_urls),
            "PEER URLS": ", ".join(member.peer_urls),
            "VOTES": "no" if member.learner else "yes",
        }
        for member in members
    ]


def print_table(rows: Sequence[Mapping[str, object]], numbers: Collection[str] = ()) -> None:
    """Rows under the keys of the first one; columns named in `numbers` stand to the right."""
    # It takes longer to load than most commands take, and most need no table.
    import rich.box  # noqa: PLC0415
    import rich.console  # noqa: PLC0415
    import rich.table  # noqa: PLC0415
    import rich.text  # noqa: PLC0415

    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False, show_edge=False
    )
    for name in rows[0]:
        table.add_column(name, justify="right" if name in numbers else "left")
    for row in rows:
        cells = [str(cell) for cell in row.values()]
        table.add_row(*(rich.text.Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
    rich.console.Console(width=_TABLE_COLUMNS).print(table)
