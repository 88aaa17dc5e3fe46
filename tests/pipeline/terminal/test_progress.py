"""Bars: the clock starts with the work, and a message never lands on one."""

import io
import logging
import re
import sys

import pytest

from pipeline.terminal import cli, progress


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_a_message_stands_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    cli.show_log()
    with progress.progress("extract", 10, "images") as bar:
        bar.advance(3)
        logging.getLogger("pipeline.test").warning("a message")
        bar.advance(1)
    before, message, after = terminal.getvalue().partition("a message\n")
    assert message
    assert before.rpartition("\r")[2] == ""  # the bar is wiped out before it
    assert "\r" in after  # and drawn again
    assert "4/10" in after


def test_the_rate_leaves_out_what_came_before_the_first_unit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    with (
        caplog.at_level(logging.INFO, "pipeline"),
        progress.progress("train", 101, "epochs") as bar,
    ):
        clock.now += 500  # Ray starts
        bar.advance(0)
        bar.advance(1)
        clock.now += 20
        bar.advance(40, "loss 0.5")
    assert [record.getMessage() for record in caplog.records] == [
        "train: 41/101 epochs, 2.0/s, about 30 s left; loss 0.5"
    ]


def test_slow_work_has_seconds_in_place_of_a_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    with (
        caplog.at_level(logging.INFO, "pipeline"),
        progress.progress("train", 4, "epochs", done=1) as bar,
    ):
        bar.advance(1)
        clock.now += 50
        bar.advance(1)
    assert caplog.messages == ["train: 3/4 epochs, 50.0 s each, about 50 s left"]


def test_the_bar_of_a_terminal_starts_its_clock_with_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress("train", 100, "epochs") as bar:
        tqdm = bar._bar
        assert tqdm is not None
        tqdm.start_t = tqdm.last_print_t = tqdm.start_t - 3600  # an hour until Ray stood
        bar.advance(1, "loss 0.5")
        assert tqdm.format_dict["elapsed"] < 60
        assert tqdm.format_dict["initial"] == 1
        bar.advance(1, "loss 0.4")
    assert re.search(r"2/100 .*, loss 0\.4\]", terminal.getvalue())
