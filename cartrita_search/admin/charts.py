"""Charts as SVG made on the server: they need no script, and follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from django.utils.safestring import SafeString, mark_safe

_PLAIN: dict[str, Any] = {
    # Of a column of the page; on a phone the letters are two thirds as large.
    "width": 480,
    "height": 240,
    "margin": 8,
    "max_scale": 8,
    "js": [],
    "legend_at_bottom": True,
    "disable_xml_declaration": True,
}

#: The bounds below and above the mean, the mean on top of them, the present weight, the best.
_OF_CURVE = ("body-quiet-color", "body-quiet-color", "button-bg", "body-fg", "error-fg")


@cache
def _style(*colors: str) -> Any:
    """The admin's own colours, which change with its theme: one for each series."""
    from pygal.style import Style

    return Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--body-fg)",
        foreground_strong="var(--body-fg)",
        foreground_subtle="var(--body-quiet-color)",
        guide_stroke_color="var(--border-color)",
        major_guide_stroke_color="var(--border-color)",
        stroke_width="2",
        colors=tuple(f"var(--{color})" for color in colors),
        font_family="inherit",
        opacity=".85",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=14,
    )


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], every: int) -> SafeString:
    """Up to three series of stacked bars; of the labels each `every`-th is written out."""
    import pygal

    chart = pygal.StackedBar(
        style=_style("button-bg", "accent", "body-quiet-color"), **_options(labels, every)
    )
    return _drawn(chart, series)


def lines(
    labels: Sequence[str], series: Mapping[str, Sequence[float | None]], every: int
) -> SafeString:
    """Up to two lines; None leaves a gap."""
    import pygal

    chart = pygal.Line(
        style=_style("button-bg", "error-fg"), dots_size=2, **_options(labels, every)
    )
    return _drawn(chart, series)


def curve(series: Mapping[str, Sequence[tuple[float, float]]], marks: Sequence[str]) -> SafeString:
    """Up to five lines through points; those named in `marks` are points, drawn large."""
    import pygal

    chart = pygal.XY(style=_style(*_OF_CURVE), xrange=(0, 1), **_PLAIN)
    for name, points in series.items():
        is_mark = name in marks
        chart.add(name, list(points), dots_size=7, show_dots=is_mark, stroke=not is_mark)
    return _rendered(chart)


def _options(labels: Sequence[str], every: int) -> dict[str, Any]:
    return {
        "x_labels": list(labels),
        "x_labels_major_every": every,
        "show_minor_x_labels": False,
        "truncate_label": -1,
        "no_data_text": "No searches",
        **_PLAIN,
    }


def _drawn(chart: Any, series: Mapping[str, Sequence[float | None]]) -> SafeString:
    for name, values in series.items():
        chart.add(name, list(values))
    return _rendered(chart)


def _without_scripts(root: Any) -> Any:
    """pygal's configuration of its tooltips, which the page does not have."""
    for parent in list(root.iter()):
        for child in list(parent):
            if isinstance(child.tag, str) and child.tag.endswith("script"):
                parent.remove(child)
    return root


def _rendered(chart: Any) -> SafeString:
    chart.add_xml_filter(_without_scripts)
    svg: str = chart.render(is_unicode=True)
    return mark_safe(svg)  # noqa: S308 - pygal writes it with an XML library, which escapes
