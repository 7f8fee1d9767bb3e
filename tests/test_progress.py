"""Progress as a person sees it: lines in a log, bars on a terminal."""

import io
import threading
import time

import pytest
from rich.console import Console

from ot_lens import progress
from ot_lens.progress import duration, rate, shown


@pytest.fixture
def log(monkeypatch):
    """A console that is no terminal, with a line every hundredth of a second."""
    monkeypatch.setattr(progress, "EVERY", 0.01)
    return Console(file=io.StringIO())


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_a_log_gets_lines_while_nothing_is_done_and_one_at_the_end(log):
    with shown(log) as stage, stage("sweep", 3) as step:
        until = time.monotonic() + 10
        while not lines(log) and time.monotonic() < until:
            time.sleep(0.005)
        step(1)
        step(2)
    first, *_, last = lines(log)
    assert first.startswith("sweep: 0/3, after ")
    assert last.startswith("sweep: 3/3, ")
    assert "/s, after " in last
    assert all(line.endswith(" GiB") for line in (first, last))


def test_a_stage_that_cannot_be_counted_says_how_long_it_has_taken(log, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 60.0)
    with shown(log) as stage, stage("loading \x1b[2J", None):
        pass
    (line,) = lines(log)
    assert line.startswith("loading \\x1b[2J: after 0.")


def test_an_error_ends_the_lines_and_adds_none(log, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 60.0)
    before = threading.enumerate()
    with pytest.raises(ZeroDivisionError), shown(log) as stage, stage("maps", 2):
        raise ZeroDivisionError
    assert threading.enumerate() == before
    assert lines(log) == []


def test_bars_fit_80_columns():
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with shown(terminal) as stage:
        with stage("choice on validation prompts", 1234) as step:
            step(1)
            time.sleep(0.01)
            step(1233)
        with stage("loading the model", None):
            pass
    drawn = [part.rstrip() for part in terminal.file.getvalue().splitlines() if "1234/1234" in part]
    assert drawn
    assert all("/s" in part and "…" not in part for part in drawn)


def test_durations_and_rates_are_for_people():
    assert [duration(s) for s in (0.04, 41.4, 59.7, 200.0, 7500.0)] == [
        "0.0 s",
        "41 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert [rate(s) for s in (None, 0.01, 1.9, 12.4, 2500.0)] == ["", "0.6/min", "1.9/s", "12/s", "2,500/s"]
