"""Folders of runs: the temporary ones go, the wanted ones stay."""

from pathlib import Path

import pytest

from kvbench.workfolder import FolderInUse, work_folder


def test_a_temporary_folder_goes() -> None:
    with work_folder(None) as folder:
        (folder.path / "file").write_text("x")
    assert not folder.path.exists()


def test_it_stays_as_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with work_folder(None) as folder:
        folder.keep = True
    assert folder.path.exists()
    assert folder.path.parent == tmp_path


def test_a_folder_given_stays(tmp_path: Path) -> None:
    given = tmp_path / "a" / "b"
    with work_folder(given) as folder:
        assert folder.path == given
    assert given.exists()


def test_a_folder_with_somebodys_data_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderInUse, match="not empty"), work_folder(tmp_path):
        pass
    assert (tmp_path / "file").exists()
