"""The curve of a sweep, as a picture."""

from __future__ import annotations

from pathlib import Path

from ..errors import InvalidArgument, PackageMissing
from .weights import DECIDING, Sweep, band, pair

#: Of Okabe and Ito's palette, which the colour-blind tell apart.
BLUE, VERMILION, BLACK = "#0072B2", "#D55E00", "#000000"


def check_plot(path: Path) -> None:
    """Raise now what would stop `draw` after a long evaluation."""
    if path.suffix not in {".png", ".svg"}:
        raise InvalidArgument(f"{path}: a picture is .png or .svg.", "Nothing was evaluated.")
    if not path.parent.is_dir():
        raise InvalidArgument(
            f"{path}: there is no folder {path.parent}.", "Nothing was evaluated. Make it first."
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PackageMissing(
            "--plot needs the package matplotlib.", "pip install -r requirements-dev.txt"
        ) from error


def draw(sweep: Sweep, name: str, path: Path) -> None:
    """Write the curve of `sweep` over `name` to `path`, a PNG or SVG by its suffix."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curve = sweep.curve()
    low, high = band(sweep)
    # Text as text and a fixed salt: the same sweep makes the same small file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sweep", "font.size": 11}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.fill_between(
            sweep.weights,
            low,
            high,
            color=BLUE,
            alpha=0.15,
            linewidth=0,
            label="95 % interval of the difference to the present",
        )
        axes.plot(sweep.weights, curve, color=BLUE, marker=".", label=f"mean {DECIDING}")
        axes.axhline(curve[sweep.present], color=BLACK, linewidth=0.8, linestyle=":")
        for position, marker, color, what in (
            (sweep.present, "s", BLACK, "present"),
            (sweep.best, "*", VERMILION, "best"),
        ):
            axes.plot(
                sweep.weights[position],
                curve[position],
                linestyle="none",
                marker=marker,
                markersize=13 if marker == "*" else 8,
                color=color,
                label=f"{what}: {pair(sweep.weights[position])}, {curve[position]:.3f}",
            )
        axes.set_xlabel("vector weight  (keyword weight = 1 - vector weight)")
        axes.set_ylabel(DECIDING)
        axes.set_title(f"{name}, {sweep.scores[DECIDING].shape[1]} queries")
        axes.set_xlim(0, 1)
        axes.set_xticks([tenth / 10 for tenth in range(11)])
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=10)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)
