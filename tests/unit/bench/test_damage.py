"""What is written over the files of a node, and what is said of how it ends then."""

import random
import signal
from pathlib import Path

import pytest

from kvbench.damage import PAGE_BYTES, ZEROS_BYTES_MAX, Damage, flip, inflict, misplace, zero
from kvbench.damaged import (
    ADVICE,
    DATA_DIR_CODE,
    STALL_S_MAX,
    STARTS_MAX,
    Damaged,
    complaint,
    last_words,
    passes,
    upsets_of,
)
from kvbench.nodelog import LogEvent

PAGES = b"".join(bytes([number]) * PAGE_BYTES for number in range(1, 9))
SEEDS = range(50)


def rng(seed: int) -> random.Random:
    return random.Random(seed)


def differing(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """As a node leaves it: an environment that is in use, with a log of three segments."""
    log = tmp_path / "env-2" / "journal-1"
    log.mkdir(parents=True)
    (tmp_path / "CURRENT").write_text("env-2\n")
    (tmp_path / "env-2" / "data.mdb").write_bytes(PAGES)
    for number in (1, 2, 3):
        (log / f"{number:08}").write_bytes(bytes([number]) * 1000 + bytes(9000))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_each_flip_changes_one_bit_of_a_byte_of_its_own(seed: int) -> None:
    patches = flip(PAGES, rng(seed), 5)
    assert len({patch.offset for patch in patches}) == 5
    for patch in patches:
        assert (patch.data[0] ^ PAGES[patch.offset]).bit_count() == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_zeros_do_not_lengthen_the_file(seed: int) -> None:
    (patch,) = zero(PAGES, rng(seed))
    assert 1 <= len(patch.data) <= ZEROS_BYTES_MAX
    assert not any(patch.data)
    assert patch.offset + len(patch.data) <= len(PAGES)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_page_takes_the_place_of_another_whole_one(seed: int) -> None:
    (patch,) = misplace(PAGES, rng(seed))
    there = PAGES[patch.offset : patch.offset + PAGE_BYTES]
    assert patch.offset % PAGE_BYTES == 0
    assert len(there) == len(patch.data)
    assert patch.data in PAGES
    assert patch.data != there


@pytest.mark.parametrize("kind", Damage)
@pytest.mark.parametrize("seed", range(10))
def test_one_file_is_damaged_and_named(data_dir: Path, kind: Damage, seed: int) -> None:
    before = contents(data_dir)
    told = inflict(data_dir, kind, rng(seed))
    after = contents(data_dir)
    (hurt,) = (name for name in before if before[name] != after[name])
    assert hurt.rpartition("/")[2] in told
    match kind:
        case Damage.CUT:
            assert before[hurt].startswith(after[hurt])
        case Damage.CURRENT:
            assert (hurt, after[hurt]) == ("CURRENT", b"")
        case Damage.LOG_BIT:
            assert hurt != "env-2/journal-1/00000001", "a running node may be removing it"
            assert differing(before[hurt][:1000], after[hurt][:1000]) == 1
            assert not any(after[hurt][1000:]), "nobody reads the zeros behind the end"
        case _:
            assert hurt == "env-2/data.mdb"
            assert len(before[hurt]) == len(after[hurt])


def test_the_only_segment_of_a_log_is_damaged_too(data_dir: Path) -> None:
    for number in (2, 3):
        (data_dir / "env-2" / "journal-1" / f"{number:08}").unlink()
    assert "journal-1/00000001" in inflict(data_dir, Damage.LOG_BIT, rng(1))


# ---------------------------------------------------------------------- how the node ends


def test_a_node_may_end_with_the_sentence() -> None:
    assert complaint(DATA_DIR_CODE, f"a row is damaged; {ADVICE}: ...", 0) is None
    assert "does not say what to do" in str(complaint(DATA_DIR_CODE, "a row is damaged", 0))
    assert "it ended with exit code 1" in str(complaint(1, "", 0))
    assert "it ended with exit code 0" in str(complaint(0, ADVICE, 0))


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT])
def test_a_node_may_end_by_a_signal_a_few_times(number: signal.Signals) -> None:
    assert complaint(-number, "", STARTS_MAX - 1) is None
    assert number.name in str(complaint(-number, "", STARTS_MAX))


def test_other_signals_are_none_of_damage() -> None:
    assert complaint(-signal.SIGKILL, "", 0) is not None


def test_the_last_reason_counts() -> None:
    events = [
        LogEvent(1.0, "copy.failed", {"reason": "a"}),
        LogEvent(2.0, "node.failed", {"reason": "b"}),
        LogEvent(3.0, "node.stopped"),
    ]
    assert last_words(events) == "b"
    assert last_words(events[2:]) == ""


def test_only_verifications_that_began_afterwards_count() -> None:
    done = [LogEvent(at, "verify.done", {"seconds": "2.0"}) for at in (10.0, 11.9, 12.1, 20.0)]
    assert passes([*done, LogEvent(30.0, "verify.failed", {"reason": "x"})], since=10.0) == 2


def test_what_the_others_must_not_log() -> None:
    logged = ["peer.down", "snapshot.send", "member.promoted", "verify.done"]
    upset = ["election.campaign", "role.changed", "verify.failed", "node.ready"]
    assert upsets_of(LogEvent(1.0, name) for name in [*logged, *upset]) == upset


def test_a_bench_that_stood_still_blames_nobody() -> None:
    upsets = {"n2 election.won": 1, "n3 election.campaign": 2}
    damaged = Damaged("n1", "flipped bits", False, True, ("SIGBUS",), upsets, STALL_S_MAX)
    assert damaged.blamed == 3
    assert "n1 (down), flipped bits: found after SIGBUS; others were upset: 1 x n2" in str(damaged)
    stalled = Damaged("n1", "flipped bits", True, False, (), upsets, 2 * STALL_S_MAX)
    assert stalled.blamed == 0
    assert "(running), flipped bits: harmless; others were upset" in str(stalled)
    assert "upset" not in str(Damaged("n1", "flipped bits", True, False))
