"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lipscope.certificate.files import new_folder, write_file
from lipscope.claims.errors import ResourceError, UsageError


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    write_file(target, b"old")
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    write_file(target, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ResourceError, match="disk is full"):
        write_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with new_folder(target, "marker") as place:
        (place / "marker").write_text("1")
        assert not target.exists()
    assert (target / "marker").read_text() == "1"
    with pytest.raises(ResourceError, match="disk is full"), new_folder(target, "marker") as place:
        (place / "marker").write_text("2")
        full_disk()
    assert (target / "marker").read_text() == "1"
    assert list(target.parent.iterdir()) == [target]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "bundle", "marker"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="nothing was overwritten"), new_folder(tmp_path, "marker"):
        pass
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="nothing was overwritten"), new_folder(file, "marker"):
        pass
    with pytest.raises(UsageError, match="cannot write"), new_folder(file / "below", "marker"):
        pass
