"""The client for threads is generated, fresh, and generated as a whole."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import kvclient

CLIENT = Path(kvclient.__file__).parent.parent


@pytest.fixture(scope="module")
def unasync() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unasync", CLIENT / "unasync.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(unasync: ModuleType) -> dict[str, str]:
    return {source.name: source.read_text() for source in unasync.TARGETS}


def test_the_committed_code_is_fresh(unasync: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["unasync", "--check"])
    unasync.main()


def test_stale_code_is_found(
    unasync: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["unasync", "--check"])
    for source, committed in unasync.TARGETS.items():
        for content in (None, committed.read_text() + "\n"):
            target = tmp_path / committed.name
            if content is not None:
                target.write_text(content)
            monkeypatch.setattr(unasync, "TARGETS", {**unasync.TARGETS, source: target})
            with pytest.raises(SystemExit, match="out of date"):
                unasync.main()
            assert not target.exists() or target.read_text() == content, "a check changes nothing"


def test_a_substitution_that_matches_nothing_is_an_error(
    unasync: ModuleType, sources: dict[str, str]
) -> None:
    slept = {name: text.replace("asyncio.sleep", "time.sleep") for name, text in sources.items()}
    with pytest.raises(ValueError, match="unused substitution"):
        unasync.unasync(slept)


def test_asyncio_that_no_substitution_knows_is_an_error(
    unasync: ModuleType, sources: dict[str, str]
) -> None:
    for name, text in sources.items():
        more = {**sources, name: text + "\nasync_only = asyncio.gather\n"}
        with pytest.raises(ValueError, match="still asyncio"):
            unasync.unasync(more)
