"""Who the members are, and what the log published about them, also after a restart."""

from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import Member, PublishMember
from kvserver.pipeline.roster import Roster
from kvserver.raft.entry import MemberId
from kvserver.raft.membership import Configuration
from kvserver.storage.schema import MEMBER

ONE, TWO, FOREIGN = MemberId(1), MemberId(2**63 + 2), MemberId(99)
MEMBERS = {
    ONE: Member(id=ONE, name="n1", peer_address="127.0.0.1:2380"),
    TWO: Member(id=TWO, name="n2", peer_address="127.0.0.1:2381"),
}


def load(storage: MemoryStorage) -> Roster:
    roster = Roster()
    roster.set_members(Configuration(1, 7, MEMBERS))
    with storage.read() as txn:
        roster.load(txn)
    return roster


def told(member: MemberId, *urls: str) -> PublishMember:
    return PublishMember(id=member, client_urls=urls, version="1")


def test_nothing_is_known_before_it_is_published() -> None:
    roster = load(MemoryStorage())
    assert roster.published(ONE) is None
    assert roster.client_address(ONE) is None
    assert roster.name(ONE) == "n1"


def test_what_is_published_is_known_now_and_after_a_restart() -> None:
    storage = MemoryStorage()
    roster = load(storage)
    roster.publish(storage.writer(), told(TWO, "http://127.0.0.1:22379", "http://other:1"))
    assert storage.commit()
    for each in (roster, load(storage)):
        assert each.client_address(TWO) == "127.0.0.1:22379"
        assert each.published(TWO) == told(TWO, "http://127.0.0.1:22379", "http://other:1")
        assert each.client_address(ONE) is None


def test_what_is_not_durable_is_forgotten() -> None:
    storage = MemoryStorage()
    load(storage).publish(storage.writer(), told(ONE, "h:1"))
    storage.crash()
    assert load(storage).published(ONE) is None


def test_the_newest_word_counts() -> None:
    storage = MemoryStorage()
    roster = load(storage)
    for url in ("http://a:1", "https://b:2", ""):
        roster.publish(storage.writer(), told(ONE, *([url] if url else [])))
        storage.commit()
        address = url.partition("//")[2] or None
        assert roster.client_address(ONE) == load(storage).client_address(ONE) == address


def test_names_follow_the_configuration() -> None:
    roster = load(MemoryStorage())
    assert roster.name(FOREIGN) == "63", "nobody known: the id, as logs have it"
    roster.set_members(Configuration(2, 7, {FOREIGN: Member(id=FOREIGN, name="n3")}))
    assert roster.name(FOREIGN) == "n3"
    assert roster.name(ONE) == "1"


def test_a_node_writes_what_the_log_says_whoever_it_believes_to_be_a_member() -> None:
    """Its newest configuration may be ahead of the entry: rows must not depend on it."""
    storage = MemoryStorage()
    roster = load(storage)
    roster.publish(storage.writer(), told(FOREIGN, "h:1"))
    storage.commit()
    assert load(storage).client_address(FOREIGN) == "h:1"


def test_another_state_replaces_what_was_known() -> None:
    """As when a copy of the active's state arrives."""
    storage = MemoryStorage()
    roster = load(storage)
    roster.publish(storage.writer(), told(ONE, "a:1"))
    storage.commit()
    with MemoryStorage().read() as txn:
        roster.load(txn)
    assert roster.published(ONE) is None


def test_a_reader_in_another_thread_keeps_a_whole_picture() -> None:
    """Invariant: objects are replaced, never changed."""
    storage = MemoryStorage()
    roster = load(storage)
    roster.publish(storage.writer(), told(ONE, "a:1"))
    before, held = roster._published, roster.published(ONE)
    roster.publish(storage.writer(), told(ONE, "b:2"))
    roster.publish(storage.writer(), told(TWO, "c:3"))
    assert before == {ONE: told(ONE, "a:1")}
    assert held == told(ONE, "a:1")


def test_rows_are_the_same_bytes_on_every_node() -> None:
    rows = []
    for _ in range(2):
        storage = MemoryStorage()
        load(storage).publish(storage.writer(), told(TWO, "http://h:1"))
        storage.commit()
        with storage.read() as txn:
            rows.append(list(txn.scan(MEMBER)))
    assert rows[0] == rows[1] == [
        (TWO.to_bytes(8, "big"), told(TWO, "http://h:1").SerializeToString(deterministic=True))
    ]  # fmt: skip
