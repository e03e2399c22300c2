from __future__ import annotations

import io
from pathlib import Path

import pytest
import typer

from errseg.errors import InputError, UsageError, WeightsError, WriteError
from errseg.summary import ClassTotal, Progress
from errseg_cli import output
from errseg_cli.errors import reported
from errseg_cli.output import print_table, say, shown
from errseg_cli.progress import clock, is_round, pace, progress_shown, sparse_lines
from errseg_cli.report import print_classes


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Both streams of a person. Not a fixture: pytest would set them back before the test."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    return stream


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no"), 2),
        (WeightsError("no"), 2),
        (InputError("no"), 1),
        (WriteError("no"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("no\nway"), 1),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        raise error
    assert caught.value.exit_code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("errseg: ")
    assert len(err.splitlines()) == 1


def test_exits_pass() -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        raise typer.Exit(7)
    assert caught.value.exit_code == 7


def test_lines_are_sparse_but_never_silent_for_long() -> None:
    lines: list[str] = []
    on_progress = sparse_lines(lines.append)
    for count in range(101):
        on_progress(Progress(count, 0, total=100, seconds=count / 2, frames=count))
    assert [line.split()[1] for line in lines] == [
        *("1/100", "2/100", "5/100", "10/100", "20/100", "50/100")
    ]
    assert lines[3] == "errseg: 10/100 pictures, 2.00 pictures/s, 0:45 left"
    slow = sparse_lines(lines.append)
    lines.clear()
    for count in range(100):
        done = count - count // 2
        slow(Progress(done, count // 2, total=100, seconds=count * 31, frames=done))
    assert len(lines) == 99


def test_a_long_video_is_not_silent() -> None:
    lines: list[str] = []
    on_progress = sparse_lines(lines.append)
    for frame in range(1, 101):
        part = frame / 100
        on_progress(Progress(1, 0, 4, seconds=frame, frames=frame, earlier=1, part=part))
    seen = [int(line.split()[4]) for line in lines]
    assert seen == [1, 2, 5, 10, 20, 50, 80, 100]
    assert lines[4] == "errseg: 1/4 inputs and 20 frames, 1.00 frames/s, 4:40 left"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, True), (3, False), (5, True), (15, False), (20, True), (25, False), (5000, True)],
)
def test_round_counts(count: int, expected: bool) -> None:
    assert is_round(count) is expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_pace_before_the_first_picture() -> None:
    assert pace(Progress(done=0, failed=0, total=5, seconds=0.0)) == "starting"


def test_a_person_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with progress_shown(4, quiet=False) as on_progress:
        assert on_progress is not None
        on_progress(Progress(done=2, failed=1, total=4, seconds=1.5, frames=2))
    assert "3/4" in terminal.getvalue()
    assert "1.33 pictures/s, 0:00 left" in terminal.getvalue()


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with progress_shown(4, quiet=True) as on_progress:
        assert on_progress is None
    assert terminal.getvalue() == ""


def test_a_person_sees_the_largest_classes_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    areas = [
        ClassTotal(number, f"[b]class {number}", 1000 - number, 0.04, 2) for number in range(25)
    ]
    print_classes(areas)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 22
    assert lines[1].split() == ["[b]class", "0", "4.0%", "2"]
    assert lines[-1] == "and 5 more"


def test_names_that_standard_output_cannot_hold_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    print_table(("name",), [("空",), ("a",)])
    assert stream.buffer.getvalue() == b"name\n\\u7a7a\na\n"  # type: ignore[attr-defined]


def test_streams_that_are_closed_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    output.print_result("lost")
    say("lost")


def test_file_names_stay_on_their_line() -> None:
    assert shown("two words.png") == "two words.png"
    assert shown("new\nline.png") == "'new\\nline.png'"
    assert "\n" not in shown(str(Path("a\r\nb")))
