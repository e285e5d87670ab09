"""Asking every node of a cluster the same question; that one is silent is an answer, too.

The nodes are the client's endpoints and all further members that those which answer know of.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from kvclient._aio import AsyncClient
from kvclient._endpoints import parse_address
from kvclient._models import HashResult, Member, Status
from kvclient.errors import DeadlineExceeded, KvError, Unavailable


class _FromMember(Protocol):
    @property
    def member_id(self) -> int: ...


_Word = TypeVar("_Word", bound=_FromMember)


HASH_TRIES = 3


class Verdict(Enum):
    """What a comparison of hashes came to."""

    EQUAL = "equal"
    DIFFERENT = "different"
    INCOMPARABLE = "incomparable"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Answer(Generic[_Word]):
    """What one node said."""

    endpoint: str
    member: Member | None
    """Who it is, if the cluster's member list tells."""
    word: _Word | None
    error: str
    """Why there is no word, empty if there is one."""


async def statuses(client: AsyncClient) -> list[Answer[Status]]:
    """Where each node stands."""
    return await _ask_all(client, client.status)


async def hashes(client: AsyncClient, revision: int) -> list[Answer[HashResult]]:
    """Each node's hash; asks again when the nodes answered from different revisions."""
    answers: list[Answer[HashResult]] = []
    for _ in range(HASH_TRIES):
        answers = await _ask_all(
            client, lambda endpoint: client.hash_kv(endpoint, revision=revision)
        )
        if compare(answers) is not Verdict.INCOMPARABLE:
            break
    return answers


def compare(answers: Sequence[Answer[HashResult]]) -> Verdict:
    """What the hashes prove."""
    words = [answer.word for answer in answers if answer.word is not None]
    hashes_at: dict[tuple[int, int], set[int]] = {}
    for word in words:
        hashes_at.setdefault((word.revision, word.compact_revision), set()).add(word.hash)
    if any(len(found) > 1 for found in hashes_at.values()):
        return Verdict.DIFFERENT
    if len(words) < len(answers) or not words:
        return Verdict.INCOMPLETE
    return Verdict.EQUAL if len(hashes_at) == 1 else Verdict.INCOMPARABLE


async def _ask_all(
    client: AsyncClient, ask: Callable[[str], Awaitable[_Word]]
) -> list[Answer[_Word]]:
    given = await asyncio.gather(*(_answer(ask, endpoint) for endpoint in client.endpoints))
    members = await _members(client, given)
    known = [_with_member(answer, members) for answer in given]
    seen = {answer.member.id for answer in known if answer.member is not None}
    others = [member for member in members if member.id not in seen]
    further = await asyncio.gather(*(_answer_of_member(ask, member) for member in others))
    return [*known, *further]


async def _answer(ask: Callable[[str], Awaitable[_Word]], endpoint: str) -> Answer[_Word]:
    try:
        return Answer(endpoint, None, await ask(endpoint), "")
    except (DeadlineExceeded, Unavailable) as error:
        return Answer(endpoint, None, None, "; ".join(text for _, text in error.said))
    except KvError as error:
        return Answer(endpoint, None, None, str(error))


async def _answer_of_member(
    ask: Callable[[str], Awaitable[_Word]], member: Member
) -> Answer[_Word]:
    if not member.client_urls:
        return Answer("", member, None, "has not started yet: it has published no address")
    try:
        endpoint = parse_address(member.client_urls[0])
    except ValueError as error:
        return Answer(member.client_urls[0], member, None, str(error))
    answer = await _answer(ask, endpoint)
    return Answer(endpoint, member, answer.word, answer.error)


async def _members(client: AsyncClient, given: Sequence[Answer[_Word]]) -> tuple[Member, ...]:
    """As those know them that answered; a silent node would only cost its timeout again."""
    answering = [answer.endpoint for answer in given if answer.word is not None]
    if not answering:
        return ()
    try:
        async with AsyncClient(answering, timeout_s=client.timeout_s) as those:
            return await those.members(linearizable=False)
    except KvError:
        return ()


def _with_member(answer: Answer[_Word], members: Sequence[Member]) -> Answer[_Word]:
    for member in members:
        if answer.word is not None:
            matches = answer.word.member_id == member.id
        else:
            matches = answer.endpoint in {url.removeprefix("http://") for url in member.client_urls}
        if matches:
            return Answer(answer.endpoint, member, answer.word, answer.error)
    return answer
