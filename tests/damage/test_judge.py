"""The judge of damages judged: it hurts every place, calls what is sound sound, and sees a lie."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import lmdb
import lmdb.verify
import pytest
from support import judge, judging
from support.answers import WrongError
from support.damage import Damage, Damages
from support.damage_file import patched
from support.damage_lmdb_lies import committed
from support.judging import Explorer, Judged
from support.lmdb_file import FREELIST, MAIN, PAGE, LmdbFile
from support.served import Sound, build
from support.verifying import VerifyingProcess

KEYS = 300


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return build(tmp_path_factory.mktemp("sound"), KEYS)


@pytest.fixture(scope="module")
def damages(sound: Sound) -> Damages:
    return Damages(sound.data_dir, sound.older)


def state_file(sound: Sound) -> Path:
    (found,) = sound.data_dir.glob("env-*/data.mdb")
    return found


# ---------------------------------------------------------------------- the damages


def test_every_page_of_the_file_is_known(sound: Sound, tmp_path: Path) -> None:
    """Used or free: so damage can be put anywhere. The numbers are those that LMDB tells."""
    file = LmdbFile(state_file(sound).read_bytes())
    used = {page.number + i for page in file.pages.values() for i in range(page.span)}
    assert not used & file.free.keys()
    assert used | file.free.keys() == set(range(2, file.last_page + 1))
    shutil.copy(state_file(sound), tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=64, lib_version=0) as environment:
        assert environment.info()["last_txnid"] == file.commit
        for name in set(file.trees) - {FREELIST, MAIN}:
            if "[" not in name:
                db = environment.open_db(name.encode(), create=False)
                with environment.begin(db=db) as txn:
                    assert txn.stat(db)["entries"] == file.trees[name].entries
                    keys = {bytes(key) for key in txn.cursor().iternext(values=False)}
                assert keys == {
                    n.key for p in file.leaves(name) for n in file.nodes(p.number * PAGE)
                }


def test_every_kind_of_damage_changes_a_file(
    sound: Sound, damages: Damages, tmp_path: Path
) -> None:
    for kind in damages.kinds:
        folder = tmp_path / "copy"
        shutil.copytree(sound.data_dir, folder)
        damage = damages.draw(Random(kind), kind)
        assert damage.kind == kind
        path = folder / damage.file
        before = path.read_bytes()
        damage.apply(folder)
        assert not path.exists() or path.read_bytes() != before, damage
        shutil.rmtree(folder)


def test_a_seed_draws_the_same_damage_again(sound: Sound, damages: Damages) -> None:
    again = Damages(sound.data_dir, sound.older)
    for number in range(len(damages.kinds)):
        one, other = (judging.draw(each, 7, number) for each in (damages, again))
        assert str(one) == str(other)


def test_a_data_directory_is_built_the_same_again(sound: Sound, tmp_path: Path) -> None:
    again = build(tmp_path, KEYS)
    assert state_file(again).read_bytes() == state_file(sound).read_bytes()


def test_a_damage_that_changes_nothing_is_none(sound: Sound, tmp_path: Path) -> None:
    shutil.copytree(sound.data_dir, tmp_path / "copy")
    with pytest.raises(AssertionError, match="nothing is changed"):
        Damage("none", "CURRENT", "", patched((0, b"env-1"))).apply(tmp_path / "copy")


# ---------------------------------------------------------------------- the judge


def judged(sound: Sound, folder: Path, damage: Damage) -> Judged:
    explorer = Explorer(folder, sound, writes=400, jobs=1)
    try:
        (found,) = explorer.judge([(1, damage)])
    finally:
        explorer.close()
    assert not list(folder.iterdir()), "leftovers"
    return found


UNUSED = Damage("unused", "env-1/lock.mdb", "", lambda content: content + b"x")


def test_the_sound_directory_holds_what_is_easily_taken_for_damage(sound: Sound) -> None:
    """Both of what LMDB does and its own walker does not know: else the next test shows less."""
    problems = lmdb.verify.verify(str(sound.environment))  # type: ignore[no-untyped-call]
    told = "; ".join(problems)
    assert "header mp_pages 3 != OVPAGES" in told
    assert re.search(r"key_history DB: walked \d+ leaf pages", told)


def test_what_is_sound_is_called_sound(sound: Sound, tmp_path: Path) -> None:
    """By the verification too, before and after many writes and a compaction."""
    found = judged(sound, tmp_path, UNUSED)
    assert (found.end, found.step, found.told) == ("harmless", "verify later", "")


@pytest.mark.parametrize("database", ["kv", "history", "key_history", "session", "lease_key"])
def test_without_a_verification_a_lost_row_is_seen_by_who_asks(
    database: str, sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB itself deletes it: nothing but the answers can tell."""

    def lose(txn: "lmdb.Transaction[bytes]", db: "lmdb._Database") -> None:
        with txn.cursor(db) as cursor:
            assert cursor.last() if database == "history" else cursor.first()
            if database == "key_history":
                assert cursor.last_dup()
            assert cursor.delete()

    monkeypatch.setattr(VerifyingProcess, "verify", lambda self: None)
    lost = Damage("lie", "env-1/data.mdb", f"'{database}' lacks a row", committed(database, lose))
    found = judged(sound, tmp_path, lost)
    assert (found.end, found.step) == ("WRONG", "serve"), found


@pytest.mark.parametrize(
    ("ends", "end", "step", "told"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crashed", "open", "SIGSEGV"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), "crashed", "open", "SIGBUS"),
        (lambda: time.sleep(60), "hung", "open", "SIGALRM"),
        (lambda: 1 // 0, "untidy", "verify", "ZeroDivisionError"),
    ],
    ids=["SIGSEGV", "SIGBUS", "a hang", "an error"],
)
def test_however_it_ends_it_is_told(
    ends: Callable[[], object], end: str, step: str, told: str, sound: Sound, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(judging, "LIMIT_S", 1)
    monkeypatch.setattr(judge.Judge, "_open", lambda self: ends())
    found = judged(sound, tmp_path, UNUSED)
    assert (found.end, found.step) == (end, step), "an error is looked behind"
    assert told in found.told


def test_a_wrong_answer_is_told_with_what_is_right(
    sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: judge.Judge) -> None:
        raise WrongError("get b'k': [] instead of [1]")

    monkeypatch.setattr(judge.Judge, "_open", wrong)
    found = judged(sound, tmp_path, UNUSED)
    assert (found.end, found.told) == ("WRONG", "get b'k': [] instead of [1]")
