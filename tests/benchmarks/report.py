"""One way to print a measurement beside what it should reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cartrita_search.terminal import table


@dataclass(frozen=True)
class Measurement:
    """A figure and its bound; ``at_least`` and ``at_most`` are None for mere information."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure keeps to its bound."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def target(self) -> str:
        """The bound, in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


def show(measurements: Iterable[Measurement]) -> bool:
    """Print them as a table; True when every bound is kept."""
    listed = list(measurements)
    print(
        table(
            ["", "measured", "target", ""],
            [
                [m.what, m.value, m.target, "" if not m.target else "met" if m.met else "MISSED"]
                for m in listed
            ],
            right=(1, 2),
        )
    )
    return all(m.met for m in listed)
