"""What callers say becomes the messages of the wire."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvclient import Compare, Op
from kvclient._requests import is_write, prefix_end, put_request, range_request, span, txn_request
from kvpb import rpc_pb2

Pb = rpc_pb2.Compare


@given(st.binary(min_size=1), st.binary())
@example(b"\xff\xff", b"\xff")
@example(b"a\xff", b"b")
def test_a_prefix_range_holds_the_keys_with_the_prefix_and_no_other(
    prefix: bytes, key: bytes
) -> None:
    end = prefix_end(prefix)
    in_range = key >= prefix and (end == b"\0" or key < end)
    assert in_range == key.startswith(prefix)


@pytest.mark.parametrize(
    ("key", "range_end", "prefix", "expected"),
    [
        ("a", None, False, (b"a", b"")),
        ("a", "c", False, (b"a", b"c")),
        (b"a", b"\0", False, (b"a", b"\0")),
        ("a", None, True, (b"a", b"b")),
        ("", None, True, (b"\0", b"\0")),
        ("", b"\0", False, (b"\0", b"\0")),
        ("", "c", False, (b"\0", b"c")),
        ("", None, False, (b"", b"")),
    ],
)
def test_span(
    key: str | bytes, range_end: str | bytes | None, prefix: bool, expected: tuple[bytes, bytes]
) -> None:
    assert span(key, range_end, prefix=prefix) == expected


def test_a_range_has_one_end() -> None:
    with pytest.raises(ValueError, match="either range_end or prefix"):
        span("a", "b", prefix=True)


def test_text_is_sent_as_utf8() -> None:
    request = put_request("ä", "ö", lease=0, prev_kv=False)
    assert (request.key, request.value) == ("ä".encode(), "ö".encode())


def test_no_order_is_left_to_the_server() -> None:
    request = range_request("a", sort_by="value")
    assert request.sort_order == rpc_pb2.RangeRequest.NONE
    assert request.sort_target == rpc_pb2.RangeRequest.VALUE


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        (
            Compare.create_revision("k", "==", 0),
            rpc_pb2.Compare(
                key=b"k",
                result=Pb.EQUAL,
                target=Pb.CREATE,
                create_revision=0,
            ),
        ),
        (
            Compare.mod_revision(b"k", ">", 5),
            rpc_pb2.Compare(key=b"k", result=Pb.GREATER, target=Pb.MOD, mod_revision=5),
        ),
        (
            Compare.version("k", "<", 5),
            rpc_pb2.Compare(key=b"k", result=Pb.LESS, target=Pb.VERSION, version=5),
        ),
        (
            Compare.value("k", "!=", "v"),
            rpc_pb2.Compare(key=b"k", result=Pb.NOT_EQUAL, target=Pb.VALUE, value=b"v"),
        ),
        (
            Compare.lease("k", "==", 9),
            rpc_pb2.Compare(key=b"k", result=Pb.EQUAL, target=Pb.LEASE, lease=9),
        ),
    ],
)
def test_compares(compare: Compare, message: Pb) -> None:
    assert compare.message == message
    assert compare.message.WhichOneof("target_union") == message.WhichOneof("target_union")


def test_a_transaction_writes_if_any_branch_could() -> None:
    read, nothing = Op.range("k"), Op.txn([], [Op.range("a")], [Op.range("b")])
    put, delete = Op.put("k", "v"), Op.delete("k")
    for success, failure, expected in [
        ([], [], False),
        ([read, nothing], [read], False),
        ([read], [put], True),
        ([delete], [], True),
        ([Op.txn([], [], [Op.txn([], [put])])], [], True),
    ]:
        assert is_write(txn_request([], success, failure)) is expected
    assert is_write(rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp()])), "an empty one is no read"
