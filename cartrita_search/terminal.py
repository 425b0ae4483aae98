"""Plain-text tables, progress and Ctrl-C for the management commands."""

from __future__ import annotations

import signal
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any, TextIO

#: What a table takes of the terminal, in columns.
WIDTH = 100

#: What a cut column keeps, in columns: a letter and the dots.
MIN_COLUMN = 4


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[int] = (),
    width: int = WIDTH,
) -> str:
    """Rows under headers, at most ``width`` columns wide as the terminal shows them.

    Columns named in ``right`` (by position) are aligned to the right. None shows
    as "-", a float with three decimals. Where the whole is too wide, the widest
    columns are cut. Control characters in stored text never reach the terminal.
    """
    lines = [[_cell(value) for value in row] for row in (headers, *rows)]
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > MIN_COLUMN:
        widths[widths.index(max(widths))] -= 1
    lines.insert(1, ["-" * column_width for column_width in widths])
    return "\n".join(
        "  ".join(
            _fit(cell, column_width, to_the_right=position in right)
            for position, (cell, column_width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


@contextmanager
def progress(total: int, label: str, stream: TextIO) -> Iterator[Callable[[int], object]]:
    """Yield ``advance(n)``, to be called as work is done, until ``total`` is reached.

    A bar on a terminal; elsewhere (a log, a pipe) one line for each tenth done.
    Both tell the rate, and the time that the rest will take at that rate.
    """
    from tqdm import tqdm

    if total and stream.isatty():
        # The size is given because a terminal that reports none would show no bar.
        with tqdm(total=total, desc=label, file=stream, ncols=80, nrows=24) as bar:
            yield bar.update
        return

    started = monotonic()
    done = tenths = 0

    def advance(n: int) -> None:
        nonlocal done, tenths
        done += n
        if total and done * 10 // total > tenths:
            tenths = done * 10 // total
            rate = done / max(monotonic() - started, 1e-3)
            left = tqdm.format_interval(max(0, total - done) / rate)
            stream.write(
                f"{label}: {done} of {total} ({tenths * 10} %), {rate:.1f}/s, {left} left\n"
            )
            stream.flush()

    yield advance


@contextmanager
def phases(stream: TextIO) -> Iterator[Callable[[str, int, int | None, str], object]]:
    """Yield ``show(name, done, total, unit)``, for work whose parts are told as they come.

    On a terminal a bar for each part, with rate and remaining time; elsewhere a line as
    each begins, and one for each tenth done. Where the total is None, as the part has
    none, that is said.
    """
    from tqdm import tqdm

    bar: Any = None
    shown: tuple[str, int | None] | None = None
    tenths = 0
    started = monotonic()

    def show(name: str, done: int, total: int | None, unit: str) -> None:
        nonlocal bar, shown, tenths, started
        if (name, total) != shown:
            shown, tenths, started = (name, total), 0, monotonic()
            name = name if total else f"{name} (no total)"
            if stream.isatty():
                if bar is not None:
                    bar.close()
                bar = tqdm(
                    total=total,
                    desc=name,
                    unit=f" {unit}" if unit else "",
                    file=stream,
                    ncols=100,
                    nrows=24,
                )
            else:
                stream.write(f"{name}: {total} {unit}\n" if total else f"{name}\n")
        if bar is not None:
            bar.update(done - bar.n)
        elif total and done * 10 // total > tenths:
            tenths = done * 10 // total
            left = tqdm.format_interval((total - done) * (monotonic() - started) / done)
            stream.write(f"{name}: {done} of {total} {unit} ({tenths * 10} %), {left} left\n")
        stream.flush()

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def stop_on_signals(stream: TextIO) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets: the work ends where it may.

    That is told on ``stream``. A second one raises KeyboardInterrupt at once. For the
    main thread only; what handled the signals before does so again afterwards.
    """
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        stream.write("Stopping after the work in hand; once more stops at once.\n")
        stream.flush()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def one_line(text: str) -> str:
    """Stored or foreign text as one line, without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return one_line(str(value))


def _columns(text: str) -> int:
    """How many columns a terminal gives ``text`` (Unicode Standard Annex 11)."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _fit(text: str, width: int, *, to_the_right: bool) -> str:
    if _columns(text) > width:
        text = text[:width]
        while _columns(text) > width - 3:
            text = text[:-1]
        text += "..."
    padding = " " * (width - _columns(text))
    return padding + text if to_the_right else text + padding
