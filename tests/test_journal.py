from __future__ import annotations

import os
from pathlib import Path

import pytest

from errseg.errors import OutputError, WriteError
from errseg.journal import EndEntry, Entry, FrameEntry, Journal, SegmentEntry, Stamp
from errseg.records import UNLABELLED_CLASS_ID, ClassArea

AREAS = (ClassArea(0, 3, 0.1, 1 / 3), ClassArea(UNLABELLED_CLASS_ID, 27, 0.9, 0.2))


def frame(source: str, index: int = 0, **more: object) -> FrameEntry:
    return FrameEntry(source, index, index / 7, 6, 5, AREAS, **more)  # type: ignore[arg-type]


ENTRIES: list[Entry] = [
    frame("a.jpg", stamp=Stamp(12, 10**18 + 1), warnings=("shown as stored",)),
    frame("v.mp4", 1, of_video=True),
    SegmentEntry("v.mp4", 2, 480, Stamp(5, 6)),
    EndEntry("v.mp4", None, "cut short", ("sound left out",)),
    frame("line\nend \udcff \N{SNOWMAN}.png"),
]


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for entry in ENTRIES:
        journal.append(entry)
    assert list(journal.entries()) == ENTRIES
    journal.close()
    journal.close()
    again = Journal(tmp_path)
    assert list(again.entries()) == ENTRIES
    again.close()


@pytest.mark.parametrize("lost", [1, 10, 40])
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path, lost: int) -> None:
    journal = Journal(tmp_path)
    for entry in ENTRIES[:2]:
        journal.append(entry)
    journal.close()
    path = tmp_path / ".errseg/journal.jsonl"
    os.truncate(path, path.stat().st_size - lost)
    again = Journal(tmp_path)
    assert list(again.entries()) == ENTRIES[:1]
    again.append(ENTRIES[2])
    assert list(again.entries()) == [ENTRIES[0], ENTRIES[2]]
    again.close()


def test_a_journal_that_is_one_cut_off_line_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".errseg").mkdir()
    (tmp_path / ".errseg/journal.jsonl").write_bytes(b"x" * 200_000)
    journal = Journal(tmp_path)
    assert list(journal.entries()) == []
    journal.close()


def test_two_runs_cannot_hold_one_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(OutputError, match="another run is writing"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_entries_are_kept_and_sorted(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for name in ("c", "a", "b", "a"):
        journal.append(frame(name, len(list(journal.entries()))))
    journal.keep(lambda entry: entry.source != "b")
    journal.sort(lambda entry: "abc".index(entry.source))
    found = [(e.source, e.frame) for e in journal.entries() if isinstance(e, FrameEntry)]
    assert found == [("a", 1), ("a", 3), ("c", 0)]
    journal.append(frame("d"))
    assert [entry.source for entry in journal.entries()] == ["a", "a", "c", "d"]
    journal.forget_all()
    assert list(journal.entries()) == []
    journal.close()
    assert [path.name for path in (tmp_path / ".errseg").iterdir()] == ["journal.jsonl"]


def test_a_line_that_no_run_wrote_is_shown(tmp_path: Path) -> None:
    (tmp_path / ".errseg").mkdir()
    (tmp_path / ".errseg/journal.jsonl").write_text('{"kind": "poem"}\n')
    journal = Journal(tmp_path)
    with pytest.raises(OutputError, match="poem"):
        list(journal.entries())
    journal.close()


def test_a_folder_removed_meanwhile_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    journal = Journal(out)
    journal.append(ENTRIES[0])
    out.rename(tmp_path / "moved")
    with pytest.raises(WriteError, match=r"journal\.jsonl"):
        journal.append(ENTRIES[1])
    journal.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WriteError, match="out"):
        Journal(tmp_path / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_costs_the_line_and_not_those_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(ENTRIES[0])
    real = journal._file
    with Path("/dev/full").open("wb", buffering=0) as full:
        journal._file = full
        with pytest.raises(WriteError):
            journal.append(ENTRIES[1])
    journal._file = real
    journal.append(ENTRIES[2])
    assert list(journal.entries()) == [ENTRIES[0], ENTRIES[2]]
    journal.close()


def test_a_stamp_tells_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    before = Stamp.of(path)
    assert before == Stamp.of(path)
    path.write_text("12")
    assert before != Stamp.of(path)
    assert Stamp.of(tmp_path / "absent") is None
    assert Stamp.of(None) is None
