"""Everyday use of aetcd, as its README shows it. Arguments: services..., then endpoints.

Prints what it sees, a JSON list a line; waits for a line on stdin where the active is to be killed.
It has no failover of its own: this does what its users do, and tries one endpoint after another.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aetcd

SERVICES = sys.argv[1].split(",")
ENDPOINTS = sys.argv[2].split(",")
AT = b"aetcd/"
TRIES = 200


def say(*facts: object) -> None:
    print(json.dumps(facts, default=lambda raw: raw.decode()), flush=True)


class Session:
    """A client of whichever endpoint serves."""

    def __init__(self) -> None:
        self._number = 0
        self.client = self._open()

    def _open(self) -> Any:
        host, _, port = ENDPOINTS[self._number % len(ENDPOINTS)].rpartition(":")
        return aetcd.Client(host, int(port), timeout=3)

    async def move_on(self) -> None:
        await self.client.close()
        self._number += 1
        self.client = self._open()
        await asyncio.sleep(0.05)

    async def do(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """For what may be repeated."""
        for _ in range(TRIES):
            try:
                return await call(self.client)
            except (aetcd.ConnectionFailedError, aetcd.ConnectionTimeoutError):
                await self.move_on()
        raise TimeoutError

    async def put(self, key: bytes, value: bytes) -> None:
        """One that may have been applied although it failed is looked for before it is repeated."""
        for _ in range(TRIES):
            try:
                await self.client.put(key, value)
            except (aetcd.ConnectionFailedError, aetcd.ConnectionTimeoutError):
                await self.move_on()
                found = await self.do(lambda client: client.get(key))
                if found is None or found.value != value:
                    continue
            return
        raise TimeoutError


async def keys(session: Session) -> None:
    await session.do(lambda client: client.delete_prefix(AT))
    client = session.client
    say("missing", await client.get(AT + b"a"))
    await client.put(AT + b"a", b"1")
    found = await client.get(AT + b"a")
    say("get", found.key, found.value, found.version, found.lease)
    say("prev", (await client.put(AT + b"a", b"2", prev_kv=True)).prev_kv.value)
    for key in (b"b", b"c"):
        await client.put(AT + key, b"of " + key)
    say("prefix", [(each.key, each.value) for each in await client.get_prefix(AT)])
    newest = await client.get_prefix(AT, sort_order="descend", sort_target="mod")
    say("newest", [each.key for each in newest], newest.more, newest.count)
    say("names", [(e.key, e.value) for e in await client.get_prefix(AT, keys_only=True)])
    say("range", [each.key for each in await client.get_range(AT + b"b", AT + b"d")])
    say("all", len(await client.get_all()) > 0)
    say("delete", (await client.delete(AT + b"b", prev_kv=True)).prev_kv.value)
    say("delete again", await client.delete(AT + b"b"))
    say("replace", await client.replace(AT + b"c", b"of c", b"new"))
    say("replace again", await client.replace(AT + b"c", b"of c", b"newer"))


async def transactions(session: Session) -> None:
    client = session.client
    of = client.transactions
    for wanted in (b"2", b"3"):
        succeeded, answers = await client.transaction(
            compare=[
                of.value(AT + b"a") == wanted,
                of.version(AT + b"a") > 0,
                of.mod(AT + b"x") == 0,
            ],
            success=[of.put(AT + b"d", b"done"), of.get(AT + b"a"), of.delete(AT + b"c")],
            failure=[of.get(AT + b"d")],
        )
        say("txn", succeeded, len(answers))
    say("after", [each.key for each in await client.get_prefix(AT)])


async def refusals(session: Session) -> None:
    client = session.client
    revision = (await client.put(AT + b"a", b"3")).header.revision
    await client.compact(revision, physical=True)
    for name, call in {
        "empty key": client.put(b"", b""),
        "compacted": client.compact(revision - 1),
        "too large": client.put(AT + b"big", b"x" * 1_600_000),
    }.items():
        try:
            say(name, await call)
        except aetcd.ClientError as error:
            say(name, type(error).__name__)
        except Exception as error:  # what it does not know it passes on
            say(name, type(error).__name__, str(getattr(error, "details", lambda: "")()))
    watch = await client.watch(AT, start_revision=1)
    try:
        async for _ in watch:
            pass
    except aetcd.RevisionCompactedError as error:
        say("watch compacted", error.compacted_revision == revision)


async def follow(session: Session, since: int, until: bytes) -> list[Any]:
    """Every event of the prefix, over failures, by revision."""
    seen: list[Any] = []
    for _ in range(TRIES):
        try:
            watch = await session.client.watch_prefix(AT, start_revision=since, prev_kv=True)
            async for event in watch:
                seen.append([str(event.kind), event.kv.key, event.kv.value])
                since = event.kv.mod_revision + 1
                if event.kv.value == until:
                    await watch.cancel()
                    return seen
        except Exception:  # whatever it says: look at the next endpoint
            await session.move_on()
    raise TimeoutError


async def watches() -> None:
    watching, writing = Session(), Session()
    await writing.put(AT + b"w", b"first")
    revision = (await writing.do(lambda client: client.get(AT + b"w"))).mod_revision
    following = asyncio.create_task(follow(watching, revision, b"last"))
    for number in range(20):
        await writing.put(AT + b"w", b"%d" % number)
    say("kill")
    await asyncio.to_thread(sys.stdin.readline)
    for number in range(20, 40):
        await writing.put(AT + b"w", b"%d" % number)
    await writing.do(lambda client: client.delete(AT + b"w"))
    await writing.put(AT + b"w", b"last")
    say("watched", await asyncio.wait_for(following, 60))
    await watching.client.close()
    await writing.client.close()


async def leases(session: Session) -> None:
    client = session.client
    lease = await client.lease(30)
    await client.put(AT + b"leased", b"while it lives", lease=lease)
    say("granted", await lease.granted_ttl(), 25 < await lease.remaining_ttl() <= 30)
    say("its keys", list(await lease.keys()))
    say("kept alive", (await lease.refresh()).TTL)
    await lease.revoke()
    say("revoked", await client.get(AT + b"leased"))


async def locks(session: Session) -> None:
    first, second = session.client.lock(AT + b"lock", ttl=30), session.client.lock(AT + b"lock")
    say("lock", await first.acquire(), await first.is_acquired(), await second.acquire(timeout=1))
    waiting = asyncio.create_task(second.acquire(timeout=30))
    await asyncio.sleep(0.2)
    say("unlock", await first.release(), await waiting, await second.release())


async def main() -> None:
    session = Session()
    await keys(session)
    await transactions(session)
    await refusals(session)
    if "lease" in SERVICES:
        await leases(session)
        await locks(session)
    await session.client.close()
    await watches()


asyncio.run(main())
