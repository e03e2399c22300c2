from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from errseg.errors import WriteError
from errseg.files import RecordFile, atomic_write, write_bytes_atomic

LONGEST_NAME = "n" * 251 + ".png"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "name",
    [
        "plain.png",
        "two words.png",
        "dog \N{DOG FACE}.png",
        "new\nline.png",
        "a\udcff.png",
        "é" * 120,
        LONGEST_NAME,
    ],
)
def test_writes_any_name_the_file_system_allows(tmp_path: Path, name: str) -> None:
    write_bytes_atomic(tmp_path / name, b"data")
    assert (tmp_path / name).read_bytes() == b"data"
    assert len(names_in(tmp_path)) == 1


def test_makes_parent_folders_and_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_bytes_atomic(path, b"old")
    write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(path.parent) == ["c.txt"]


def test_the_name_appears_only_at_the_end_and_the_hidden_one_is_hidden(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "c.txt") as file:
        file.write(b"data")
        (during,) = names_in(tmp_path)
    assert during.startswith(".")
    assert during.endswith(".part")
    assert names_in(tmp_path) == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError("body"), KeyboardInterrupt()])
def test_a_body_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"old")

    def write_and_fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_and_fail()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["c.txt"]


def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullFile(io.BufferedWriter):
        write = full_disk

    monkeypatch.setattr(Path, "open", lambda self, mode: FullFile(io.FileIO(str(self), mode)))
    with pytest.raises(WriteError, match=r"c\.txt.*the disk is full") as caught:
        write_bytes_atomic(tmp_path / "c.txt", b"data")
    assert isinstance(caught.value.__cause__, OSError)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/c.txt", "File exists"),
        ("file/deeper/c.txt", "Not a directory"),
        ("folder", "Is a directory"),
        ("n" * 256, "File name too long"),
    ],
)
def test_impossible_paths_are_write_errors_in_one_line(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=reason) as caught:
        write_bytes_atomic(tmp_path / name, b"data")
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == ["file", "folder"]


def test_a_name_with_a_newline_stays_on_one_line_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    with pytest.raises(WriteError) as caught:
        write_bytes_atomic(tmp_path / "a\nb", b"data")
    assert "\n" not in str(caught.value)


def test_record_file_appears_at_publish_with_all_records(tmp_path: Path) -> None:
    records = RecordFile(tmp_path / "deep" / "rows.csv")
    records.append(b"one\n")
    records.append(b"two\n")
    (during,) = names_in(tmp_path / "deep")
    assert during.startswith(".")
    records.publish()
    records.publish()
    assert names_in(tmp_path / "deep") == ["rows.csv"]
    assert (tmp_path / "deep" / "rows.csv").read_bytes() == b"one\ntwo\n"


def test_a_record_that_fails_half_way_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = len(b"one\ntw")

    class SmallDisk(io.FileIO):
        def write(self, data: Any) -> int:
            fits = bytes(data)[: room - self.tell()]
            return super().write(fits) if fits else int(full_disk())

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode, **_: SmallDisk(str(self), mode))
        records = RecordFile(tmp_path / "rows.csv")
    records.append(b"one\n")
    with pytest.raises(WriteError, match="the disk is full"):
        records.append(b"two\n")
    records.publish()
    assert (tmp_path / "rows.csv").read_bytes() == b"one\n"
    assert names_in(tmp_path) == ["rows.csv"]


def test_record_file_that_cannot_be_published_leaves_nothing(tmp_path: Path) -> None:
    records = RecordFile(tmp_path / "rows.csv")
    records.append(b"one\n")
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(WriteError, match="Is a directory"):
        records.publish()
    assert names_in(tmp_path) == ["rows.csv"]


def test_record_file_in_an_impossible_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(WriteError, match="File exists"):
        RecordFile(tmp_path / "file" / "rows.csv")
