"""The judge finds each kind of broken promise in a history made to break it, and no other."""

from dataclasses import replace

import pytest

from kvbench.history import Fate, Read, Stored, Verdict, Write, is_stale, judge


def acknowledged(number: int) -> Write:
    return Write(
        f"k{number}", f"text {number}", float(number), number + 0.5, Fate.ACKNOWLEDGED, number + 1
    )


def of_fate(number: int, fate: Fate) -> Write:
    return replace(acknowledged(number), fate=fate, revision=0)


def stored(*writes: Write) -> dict[str, Stored]:
    return {
        write.key: Stored(write.value.encode(), 1, int(write.key.removeprefix("k")) + 1)
        for write in writes
    }


GOOD = [
    acknowledged(1),
    of_fate(2, Fate.UNKNOWN),
    of_fate(3, Fate.UNKNOWN),
    of_fate(4, Fate.REFUSED),
    acknowledged(5),
]
GOOD_STORED = stored(GOOD[0], GOOD[2], GOOD[4])


def test_a_good_history() -> None:
    verdict = judge(GOOD, GOOD_STORED, hashes={"n1": 7, "n2": 7})
    assert verdict.broken == {}
    assert (verdict.acknowledged, verdict.unknown, verdict.refused) == (2, 2, 1)
    assert verdict.applied_of_unknown == 1


def test_nothing_done_is_good() -> None:
    assert judge([], {}).broken == {}


def test_an_acknowledged_write_that_is_not_there_is_lost() -> None:
    found = {key: value for key, value in GOOD_STORED.items() if key != "k5"}
    verdict = judge(GOOD, found)
    assert verdict.lost == ["k5"]
    assert verdict.broken == {"lost": 1}


@pytest.mark.parametrize("key", ["k1", "k3"])
def test_version_two_is_a_duplicate_of_acknowledged_and_unknown_writes(key: str) -> None:
    twice = replace(GOOD_STORED[key], version=2, mod_revision=99)
    verdict = judge(GOOD, {**GOOD_STORED, key: twice})
    assert verdict.duplicated == [key]
    assert verdict.broken == {"duplicated": 1}


@pytest.mark.parametrize("key", ["k1", "k3"])
def test_another_value_is_altered(key: str) -> None:
    other = replace(GOOD_STORED[key], value=b"text 1\n")
    assert judge(GOOD, {**GOOD_STORED, key: other}).broken == {"altered": 1}


def test_another_revision_than_acknowledged_is_altered() -> None:
    moved = replace(GOOD_STORED["k1"], mod_revision=3)
    assert judge(GOOD, {**GOOD_STORED, "k1": moved}).broken == {"altered": 1}


@pytest.mark.parametrize("key", ["k4", "k99"])
def test_refused_or_never_written_and_there_is_a_phantom(key: str) -> None:
    verdict = judge(GOOD, {**GOOD_STORED, key: Stored(b"text 4", 1, 9)})
    assert verdict.phantom == [key]
    assert verdict.broken == {"phantom": 1}


def test_revisions_that_do_not_rise() -> None:
    second = replace(acknowledged(2), revision=acknowledged(1).revision)
    writes = [acknowledged(1), second, acknowledged(3)]
    found = stored(*writes) | {"k2": Stored(b"text 2", 1, second.revision)}
    verdict = judge(writes, found)
    assert verdict.disordered == ["k2"]
    assert verdict.broken == {"disordered": 1}


def test_an_early_high_revision_is_not_forgotten() -> None:
    writes = [replace(acknowledged(1), revision=9), acknowledged(2), acknowledged(3)]
    assert judge(writes, {}).disordered == ["k2", "k3"]


@pytest.mark.parametrize("revision", [1, 2])
def test_one_of_unknown_outcome_is_not_applied_before_it_was_asked_for(revision: int) -> None:
    """Its revision is not above that of a write acknowledged before it began."""
    early = replace(GOOD_STORED["k3"], mod_revision=revision)
    verdict = judge(GOOD, {**GOOD_STORED, "k3": early})
    assert verdict.disordered == ["k3"]
    assert verdict.broken == {"disordered": 1}


def test_one_of_unknown_outcome_may_be_applied_late() -> None:
    late = replace(GOOD_STORED["k3"], mod_revision=99)
    assert judge(GOOD, {**GOOD_STORED, "k3": late}).broken == {}


def test_two_writes_do_not_share_a_revision() -> None:
    shared = replace(GOOD_STORED["k3"], mod_revision=acknowledged(5).revision)
    assert judge(GOOD, {**GOOD_STORED, "k3": shared}).broken == {"disordered": 1}
    writes = [acknowledged(1), of_fate(2, Fate.UNKNOWN), of_fate(3, Fate.UNKNOWN)]
    found = stored(*writes) | {"k3": Stored(b"text 3", 1, acknowledged(2).revision)}
    assert judge(writes, found).disordered == ["k3"]


def test_copies_that_differ() -> None:
    verdict = judge(GOOD, GOOD_STORED, hashes={"n1": 7, "n2": 7, "n3": 8})
    assert verdict.differing_hashes == {"n1": 7, "n2": 7, "n3": 8}
    assert verdict.broken == {"differing copies": 2}


def read(found: Stored | None, *, revision: int = 6) -> Read:
    return Read(acknowledged(5), begun=6.0, ended=6.1, revision=revision, found=found)


def test_reads_of_the_newest_state_are_fresh() -> None:
    newest = GOOD_STORED["k5"]
    assert not is_stale(read(newest))
    assert not is_stale(read(newest, revision=80))
    assert judge(GOOD, GOOD_STORED, [read(newest)]).broken == {}


@pytest.mark.parametrize(
    "old",
    [
        read(None),
        read(None, revision=80),
        read(Stored(b"text 0", 1, 6)),
        read(GOOD_STORED["k5"], revision=5),
    ],
    ids=["missing", "missing at a later revision", "another value", "older store"],
)
def test_reads_of_an_older_state_are_stale(old: Read) -> None:
    assert is_stale(old)
    verdict = judge(GOOD, GOOD_STORED, [old, read(GOOD_STORED["k5"])])
    assert verdict.stale == ["k5"]
    assert verdict.broken == {"stale": 1}


def test_a_read_may_not_go_back_behind_another_that_had_ended() -> None:
    newest = GOOD_STORED["k5"]
    first = replace(read(newest, revision=9), begun=6.0, ended=6.1)
    behind = replace(read(newest, revision=8), begun=6.2, ended=6.3)
    beside = replace(behind, begun=6.05)
    assert judge(GOOD, GOOD_STORED, [behind, first]).broken == {"stale": 1}
    assert judge(GOOD, GOOD_STORED, [first, beside]).broken == {}
    again = replace(behind, begun=6.4, ended=6.5, revision=9)
    assert judge(GOOD, GOOD_STORED, [first, again]).broken == {}


def test_a_read_may_not_be_held_to_what_came_later() -> None:
    early = replace(read(None), begun=5.4)
    with pytest.raises(AssertionError, match="acknowledged before"):
        is_stale(early)


def test_all_kinds_together_are_all_counted() -> None:
    bad = Verdict(1, 0, 0, 0, lost=["a"], duplicated=["b", "c"], stale=["d"])
    assert bad.broken == {"lost": 1, "duplicated": 2, "stale": 1}
