"""The fenced examples of a Markdown page, taken out and run as they stand."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One fenced block, and the ``text`` block after it: what it prints."""

    language: str
    code: str
    #: The page's line of the fence.
    line: int
    expected: str | None = None


def examples(page: str) -> list[Example]:
    """All of them, in the page's order."""
    found: list[Example] = []
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        language, code = block.groups()
        if language == "text":
            last = found.pop()
            assert last.expected is None
            found.append(Example(last.language, last.code, last.line, code))
        else:
            found.append(Example(language, code, page.count("\n", 0, block.start()) + 1))
    return found


def run_python(example: Example, page: str, namespace: dict[str, Any]) -> str:
    """Run the block in `namespace`; what it printed. A traceback has the page's lines."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * example.line + example.code, page, "exec"), namespace)
    return printed.getvalue()


def statements(code: str) -> list[str]:
    """The SQL statements of a block; each ends with a semicolon at the end of a line."""
    return [part for part in re.split(r";$", code, flags=re.MULTILINE) if part.strip()]


def is_as_expected(printed: str, expected: str) -> bool:
    """Whether they are equal, "…" standing for anything, white space at line ends for none."""
    printed, expected = (
        "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))
        for text in (printed, expected)
    )
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, printed, flags=re.DOTALL) is not None
