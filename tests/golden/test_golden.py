"""What was written once is read for ever, and is written alike as long as it is written at all."""

from collections.abc import Iterable
from typing import Final

import pytest
from golden import log, messages, row, rows
from golden.form import Form, Parts, load, text_of
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from support.applying import Replica

from kvpb import raft_pb2
from kvpb.raft_pb2 import (
    Command,
    CommandBatch,
    HardState,
    KeptAnswer,
    PeerMessage,
    SessionRow,
)
from kvserver.errors import LogNotUnderstoodError
from kvserver.storage.schema import DATABASES, IDENTITY

FILES: Final = {"rows.txt": rows.FORMS, "log.txt": log.FORMS, "messages.txt": messages.FORMS}
RECORDED: Final = {name: parts for file in FILES for name, parts in load(file).items()}
FORMS: Final = {form.name: form for forms in FILES.values() for form in forms}


@pytest.mark.parametrize("file", FILES)
def test_what_is_recorded_and_what_is_known_are_the_same(file: str) -> None:
    assert set(load(file)) == {form.name for form in FILES[file]}, "record it: README.md"


@pytest.mark.parametrize("name", RECORDED)
def test_golden_bytes_are_read(name: str) -> None:
    assert FORMS[name].read(RECORDED[name]) == FORMS[name].means


@pytest.mark.parametrize("name", RECORDED)
def test_golden_bytes_are_written(name: str) -> None:
    make = FORMS[name].make
    if make is not None:
        assert dict(make()) == RECORDED[name]


@pytest.mark.parametrize("name", [name for name in RECORDED if name.startswith("entry: ")])
def test_a_golden_entry_is_applied(name: str) -> None:
    """By this build, whatever comes of it: an older log is never too new."""
    payload = RECORDED[name]["bytes"]
    applier = Replica().applier
    applier.apply(2, 3, payload[1:] if payload[:1] == b"\0" else None)
    assert applier.applied_index == 2


# ---------------------------------------------------------------------- nothing is left out


def parsed() -> Iterable[Message]:
    """Every recorded message of raft.proto, the way it is kept or sent."""
    for name, parts in RECORDED.items():
        if name.startswith("message: "):
            yield PeerMessage.FromString(parts["bytes"][8:])
        elif name.startswith("entry: ") and parts["bytes"][:1] == b"\0":
            yield CommandBatch.FromString(parts["bytes"][1:])
        elif name.startswith("session: "):
            yield SessionRow.FromString(parts["row"][:-4])
        elif name.startswith("identity: identity"):
            yield raft_pb2.Identity.FromString(parts["row"][:-4])
        elif name.startswith("batch: "):
            yield HardState.FromString(log.parse(parts["bytes"]).state)


def fields_in(message: Message) -> Iterable[str]:
    """Full names of all fields that are set, in nested messages too."""
    for field, value in message.ListFields():
        yield field.full_name
        if field.type == FieldDescriptor.TYPE_MESSAGE and not is_map(field):
            for each in value if field.is_repeated else [value]:
                yield from fields_in(each)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def test_every_field_of_our_messages_is_in_the_record() -> None:
    wanted = {
        field.full_name
        for message in raft_pb2.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    found = {name for message in parsed() for name in fields_in(message)}
    assert not wanted - found, "record them: README.md"


def test_every_kind_of_command_answer_and_message_is_in_the_record() -> None:
    oneofs = [
        Command.DESCRIPTOR.oneofs_by_name["request"],
        KeptAnswer.DESCRIPTOR.oneofs_by_name["answer"],
        PeerMessage.DESCRIPTOR.oneofs_by_name["message"],
    ]
    found = {name for message in parsed() for name in fields_in(message)}
    for oneof in oneofs:
        assert not {field.full_name for field in oneof.fields} - found


def test_every_database_is_in_the_record() -> None:
    recorded = {row.database_of(name) for name in load("rows.txt")}
    assert recorded == {db.name.decode() for db in DATABASES}


# ---------------------------------------------------------------------- these tests can fail


def test_a_changed_bit_is_noticed() -> None:
    for name, parts in RECORDED.items():
        last = list(parts)[-1]
        changed: Parts = {**parts, last: bytes([parts[last][0] ^ 0x10]) + parts[last][1:]}
        try:
            found = FORMS[name].read(changed)
        except Exception:  # noqa: BLE001 - whichever way it says so
            continue
        assert found != FORMS[name].means, name


def test_an_unknown_command_is_noticed() -> None:
    batch = CommandBatch(format=1, commands=[Command()])
    with pytest.raises(LogNotUnderstoodError):
        Replica().applier.apply(2, 3, batch.SerializeToString())


def test_a_row_under_another_key_is_noticed() -> None:
    parts = RECORDED["identity: identity, of a member"]
    form = FORMS["identity: identity, of a member"]
    assert IDENTITY.name == b"identity"
    with pytest.raises(Exception, match="damaged"):
        form.read({**parts, "key": b"other"})


def test_an_entry_reads_as_it_was_recorded() -> None:
    form = Form("a: b", lambda parts: parts, None, lambda: {"key": b"k", "row": bytes(range(200))})
    lines = text_of(form).splitlines()
    assert lines[0] == "a: b"
    assert max(map(len, lines)) <= 103
    assert "".join(line.split()[-1] for line in lines[2:]) == "6b" + bytes(range(200)).hex()
