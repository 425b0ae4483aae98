"""Tables and progress on a terminal, in a log, in a pipe."""

from __future__ import annotations

import io
import signal

import pytest

from cartrita_search import terminal
from cartrita_search.terminal import phases, progress, stop_on_signals, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_line_up() -> None:
    assert table(["name", "score"], [("a", 1.5), ("longer", None)], right=[1]).splitlines() == [
        "name    score",
        "------  -----",
        "a       1.500",
        "longer      -",
    ]


def test_headers_alone_are_a_table() -> None:
    assert table(["name", "score"], []) == "name  score\n----  -----"


def test_the_widest_columns_are_cut_to_fit() -> None:
    long = "x" * 100_000
    lines = table(["a", "b", "c"], [(1, long, long), (2, "short", "short")], width=40)
    assert lines.splitlines() == [
        "a  b                  c",
        "-  -----------------  ------------------",
        "1  xxxxxxxxxxxxxx...  xxxxxxxxxxxxxxx...",
        "2  short              short",
    ]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("日本語" * 9, "日本語..."),
        ("e\N{COMBINING ACUTE ACCENT}" * 9, "e\N{COMBINING ACUTE ACCENT}" * 9),
    ],
)
def test_width_is_what_the_terminal_shows(text: str, cut: str) -> None:
    assert table(["t"], [(text,)], width=9).splitlines()[2] == cut


def test_wide_characters_take_two_columns() -> None:
    assert table(["t", "n"], [("日本", 1), ("abcd", 2)]).splitlines()[2:] == ["日本  1", "abcd  2"]


def test_stored_text_cannot_steer_the_terminal() -> None:
    shown = table(["title"], [("\x1b[2Jgone\r\n\x07\u202ereversed",)])
    assert shown.splitlines()[2] == "[2Jgone reversed"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its one item, which stands still unless a test moves it."""
    now = [100.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_for_each_tenth() -> None:
    log = io.StringIO()
    with progress(35, "embedding", log) as advance:
        for _ in range(35):
            advance(1)
    lines = log.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("embedding: 4 of 35 (10 %), ")
    assert lines[-1].startswith("embedding: 35 of 35 (100 %), ")


def test_large_steps_skip_tenths_and_a_line_tells_rate_and_time_left(clock: list[float]) -> None:
    log = io.StringIO()
    with progress(10_000, "embedding", log) as advance:
        clock[0] += 70
        advance(7000)
        clock[0] += 20
        advance(3000)
        clock[0] += 10
        advance(1000)
    assert log.getvalue().splitlines() == [
        "embedding: 7000 of 10000 (70 %), 100.0/s, 00:30 left",
        "embedding: 10000 of 10000 (100 %), 111.1/s, 00:00 left",
        "embedding: 11000 of 10000 (110 %), 110.0/s, 00:00 left",
    ]


def test_nothing_to_do_says_nothing() -> None:
    log = io.StringIO()
    with progress(0, "embedding", log):
        pass
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    shown = Terminal()
    with progress(4, "embedding", shown) as advance:
        advance(4)
    assert "embedding: 100%|" in shown.getvalue()
    assert "4/4" in shown.getvalue()
    assert "/s" in shown.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    said = io.StringIO()
    with stop_on_signals(said) as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before
    assert said.getvalue() == "Stopping after the work in hand; once more stops at once.\n"


def test_phases_are_lines_in_a_log() -> None:
    log = io.StringIO()
    with phases(log) as show:
        show("waiting", 0, None, "transactions")
        show("waiting", 0, None, "transactions")
        show("loading", 0, 100, "blocks")
        show("loading", 25, 100, "blocks")
        show("loading", 26, 100, "blocks")
        show("loading", 100, 100, "blocks")
    assert log.getvalue().splitlines() == [
        "waiting (no total)",
        "loading: 100 blocks",
        "loading: 25 of 100 blocks (20 %), 00:00 left",
        "loading: 100 of 100 blocks (100 %), 00:00 left",
    ]


def test_phases_are_bars_on_a_terminal() -> None:
    screen = Terminal()
    with phases(screen) as show:
        show("waiting for pid 7", 3, None, "transactions")
        show("loading", 50, 100, "blocks")
    shown = screen.getvalue()
    assert "waiting for pid 7 (no total): 3 transactions" in shown
    assert "loading:  50%" in shown
    assert "50/100" in shown
