"""Everyday use of python-etcd3. Arguments: services..., then endpoints.

Prints what it sees, a JSON list a line; waits for a line on stdin where the active is to be killed.
It has no failover of its own: this does what its users do, and tries one endpoint after another.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import etcd3
import grpc

SERVICES = sys.argv[1].split(",")
ENDPOINTS = sys.argv[2].split(",")
AT = "python-etcd3/"
TRIES = 200
LOST = (
    etcd3.exceptions.ConnectionFailedError, etcd3.exceptions.ConnectionTimeoutError,
    grpc.RpcError, ValueError,
)  # fmt: skip


def say(*facts: object) -> None:
    print(json.dumps(facts, default=lambda raw: raw.decode()), flush=True)


class Session:
    """A client of whichever endpoint serves."""

    def __init__(self) -> None:
        self._number = 0
        self.client = self._open()

    def _open(self) -> Any:
        host, _, port = ENDPOINTS[self._number % len(ENDPOINTS)].rpartition(":")
        return etcd3.client(host=host, port=int(port), timeout=3)

    def move_on(self) -> None:
        self._number += 1
        self.client = self._open()
        time.sleep(0.05)

    def do(self, call: Callable[[Any], Any]) -> Any:
        """For what may be repeated."""
        for _ in range(TRIES):
            try:
                return call(self.client)
            except LOST:
                self.move_on()
        raise TimeoutError

    def put(self, key: str, value: str) -> None:
        """One that may have been applied although it failed is looked for before it is repeated."""
        for _ in range(TRIES):
            try:
                self.client.put(key, value)
            except LOST:
                self.move_on()
                if self.do(lambda client: client.get(key))[0] != value.encode():
                    continue
            return
        raise TimeoutError


def keys(session: Session) -> None:
    session.do(lambda client: client.delete_prefix(AT))
    client = session.client
    say("missing", client.get(AT + "a"))
    client.put(AT + "a", "1")
    value, about = client.get(AT + "a")
    say("get", about.key, value, about.version, about.lease_id)
    say("prev", client.put(AT + "a", "2", prev_kv=True).prev_kv.value)
    for key in "bc":
        client.put(AT + key, "of " + key)
    say("prefix", [(about.key, value) for value, about in client.get_prefix(AT)])
    newest = client.get_prefix(AT, sort_order="descend", sort_target="mod")
    say("newest", [about.key for _, about in newest])
    say("names", [about.key for _, about in client.get_prefix(AT, keys_only=True)])
    say("range", [about.key for _, about in client.get_range(AT + "b", AT + "d")])
    say("all", len(list(client.get_all())) > 0)
    say("new", client.put_if_not_exists(AT + "n", "1"), client.put_if_not_exists(AT + "n", "2"))
    say("delete", client.delete(AT + "b"), client.delete(AT + "b"))
    say("replace", client.replace(AT + "c", "of c", "new"), client.replace(AT + "c", "of c", "x"))


def transactions(session: Session) -> None:
    client = session.client
    of = client.transactions
    for wanted in "23":
        succeeded, answers = client.transaction(
            compare=[of.value(AT + "a") == wanted, of.version(AT + "a") > 0],
            success=[of.put(AT + "d", "done"), of.get(AT + "a"), of.delete(AT + "c")],
            failure=[of.get(AT + "d"), of.txn(compare=[], success=[of.get(AT + "a")], failure=[])],
        )
        say("txn", succeeded, len(answers))
    say("after", [about.key for _, about in client.get_prefix(AT)])


def refusals(session: Session) -> None:
    client = session.client
    revision = client.put(AT + "a", "3").header.revision
    client.compact(revision, physical=True)
    calls: dict[str, Callable[[], Any]] = {
        "empty key": lambda: client.put("", ""),
        "compacted": lambda: client.compact(revision - 1),
        "too large": lambda: client.put(AT + "big", "x" * 1_600_000),
    }
    for name, call in calls.items():
        try:
            say(name, call())
        except grpc.RpcError as error:  # what it does not know it passes on
            say(name, error.details())
        except etcd3.exceptions.Etcd3Exception as error:
            say(name, type(error).__name__)
    events, _ = client.watch(AT, start_revision=1)
    try:
        for _ in events:
            pass
    except etcd3.exceptions.RevisionCompactedError as error:
        say("watch compacted", error.compacted_revision == revision)


def follow(session: Session, since: int, until: bytes, seen: list[Any]) -> None:
    """Every event of the prefix, over failures, by revision."""
    for _ in range(TRIES):
        try:
            events, cancel = session.client.watch_prefix(AT, start_revision=since)
            for event in events:
                seen.append([type(event).__name__, event.key, event.value])
                since = event.mod_revision + 1
                if event.value == until:
                    cancel()
                    return
        except Exception:  # whatever it says: look at the next endpoint
            session.move_on()


def watches() -> None:
    watching, writing = Session(), Session()
    writing.put(AT + "w", "first")
    revision = writing.do(lambda client: client.get(AT + "w"))[1].mod_revision
    seen: list[Any] = []
    following = threading.Thread(
        target=follow, args=(watching, revision, b"last", seen), daemon=True
    )
    following.start()
    for number in range(20):
        writing.put(AT + "w", str(number))
    say("kill")
    sys.stdin.readline()
    for number in range(20, 40):
        writing.put(AT + "w", str(number))
    writing.do(lambda client: client.delete(AT + "w"))
    writing.put(AT + "w", "last")
    following.join(60)
    say("watched", seen)


def leases(session: Session) -> None:
    client = session.client
    lease = client.lease(30)
    client.put(AT + "leased", "while it lives", lease=lease)
    say("granted", lease.granted_ttl, 25 < lease.remaining_ttl <= 30)
    say("its keys", list(lease.keys))
    say("kept alive", [each.TTL for each in lease.refresh()])
    lease.revoke()
    say("revoked", client.get(AT + "leased")[0])


def locks(session: Session) -> None:
    """One after the other: it can't wait for a lock together with a tenacity of today."""
    for name in ("one", "two"):
        lock = session.client.lock("held", ttl=30)
        say(name, lock.acquire(), lock.is_acquired(), lock.release(), lock.is_acquired())


session = Session()
keys(session)
transactions(session)
refusals(session)
if "lease" in SERVICES:
    leases(session)
    locks(session)
watches()
