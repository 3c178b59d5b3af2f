"""Progress off a terminal: a line every ten seconds, with its own unit; and on one: a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from medunifier_cli.terminal import progress
from medunifier_cli.terminal.output import QUIET, TALK
from medunifier_cli.terminal.progress import PLAIN_EVERY, Progress, duration

Wait = Callable[[float], None]
Read = Callable[[], list[str]]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Let seconds pass on the clock that Progress reads."""
    now = 1000.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    return wait


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str]) -> Read:
    """Lines on stderr since the last call; nothing ever goes to stdout."""

    def read() -> list[str]:
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return read


def test_a_line_every_ten_seconds(wait: Wait, read: Read) -> None:
    with Progress(1200, "image") as bar:
        for done in range(1, 26):
            wait(1.0)
            bar.advance(done * 40)
    assert PLAIN_EVERY == 10.0
    assert read() == ["image 400/1,200  40 images/s  ETA 0:20", "image 800/1,200  40 images/s  ETA 0:10"]


def test_short_work_prints_nothing(wait: Wait, read: Read) -> None:
    with Progress(3, "report") as bar:
        for done in (1, 2, 3):
            wait(3.0)
            bar.advance(done)
    assert read() == []


def test_edges_print_the_first_unit_and_the_last(wait: Wait, read: Read) -> None:
    with Progress(4, "step", first=1, rate_unit="pairs", per_unit=256, edges=True) as bar:
        for done in (2, 3, 4):
            wait(1.0)
            bar.advance(done, f"train  total {done}.000" if done != 3 else "")
    assert read() == [
        "step 2/4  train  total 2.000  256 pairs/s  ETA 0:02",
        "step 4/4  train  total 4.000  256 pairs/s",
    ]


def test_an_unknown_total_and_a_note_that_stays(wait: Wait, read: Read) -> None:
    with Progress(None, "file") as bar:
        bar.advance(5, "2 unreadable")
        wait(10.0)
        bar.advance(6)
    assert read() == ["file 6  2 unreadable  0.6 files/s"]


@pytest.mark.parametrize(("per_unit", "rate"), [(9996, "1,000"), (9994, "999"), (20480, "2,048")])
def test_thousands_a_second_are_written_out(wait: Wait, read: Read, per_unit: int, rate: str) -> None:
    """It said `2e+03 images/s`."""
    with Progress(None, "step", rate_unit="images", per_unit=per_unit) as bar:
        wait(10.0)
        bar.advance(1)
    assert read() == [f"step 1  {rate} images/s"]


def test_skipped_units_count_as_done_and_not_as_work(wait: Wait, read: Read) -> None:
    with Progress(300, "image", first=100) as bar:
        wait(5.0)
        bar.skip(50)
        bar.advance(160)
        wait(5.0)
        bar.advance(170)
    assert read() == ["image 170/300  2 images/s  ETA 1:05"]


def test_a_hidden_one_is_silent(wait: Wait, read: Read) -> None:
    with Progress(2, "step", edges=True, hidden=True) as bar:
        wait(60.0)
        bar.advance(1)
        bar.say("validation")
        bar.advance(2)
    assert read() == []


def test_say_prints_at_once(wait: Wait, read: Read) -> None:
    with Progress(2, "step") as bar:
        bar.say("step 1/2  valid  total 0.250")
    assert read() == ["step 1/2  valid  total 0.250"]


def test_a_terminal_gets_a_bar(wait: Wait, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(8, "image", first=2) as bar:
        assert bar.bar is not None
        bar.advance(5, "n = 5")
        assert (bar.bar.n, bar.bar.initial, bar.bar.total, bar.bar.unit) == (5, 2, 8, "image")
        bar.say("between")
    assert bar.bar is None
    shown = "\n".join(read())
    assert "between" in shown
    assert "5/8" in shown
    assert "image 5/8" not in shown, "no plain line beside the bar"


def test_a_bar_fits_and_begins_with_rate_and_time_left(
    wait: Wait, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(1000, "step", rate_unit="pairs", per_unit=32) as bar:
        bar.bar.dynamic_ncols = lambda _: (100, 30)  # a terminal of 100 columns
        wait(50.0)
        bar.advance(100, "total 12.345  itc 3.456  itm 0.654  itg 6.543  tig 0.012  " * 3)
        shown = str(bar.bar)
    assert " 64 pairs/s  ETA 7:30  total 12.345" in shown
    assert len(shown.rstrip()) <= 100


def test_quiet_leaves_warnings_alone(wait: Wait, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TALK, QUIET)
    with Progress(2, "step", edges=True) as bar:
        bar.advance(1)
        bar.say("step 1/2  valid  total 0.250")
        bar.say("warning: nothing is learned")
    assert read() == ["warning: nothing is learned"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (65, "1:05"), (3600, "1:00:00"), (90_061, "1 d 1:01:01")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
