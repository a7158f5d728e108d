"""A report's bars as an SVG file."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from _common import Report

mpl.use("svg")

from matplotlib import pyplot

_OURS, _OTHERS, _INK = "#2f6f9f", "#b8c4cc", "#1f2933"


def plot(report: Report, path: Path) -> None:
    """Draw each bar up to its median, and a line from quartile to quartile."""
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": path.stem,  # the same figures make the same file
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _OTHERS,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    labels, spreads = list(report.bars), list(report.bars.values())
    medians = [spread.median for spread in spreads]
    ours = [label.startswith(("pgstore", "import pgstore")) for label in labels]
    with mpl.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(7.2, 0.9 + 0.36 * len(labels)))
        bars = axes.barh(
            labels,
            medians,
            height=0.62,
            color=[_OURS if mine or not any(ours) else _OTHERS for mine in ours],
            xerr=[
                [spread.median - spread.low for spread in spreads],
                [spread.high - spread.median for spread in spreads],
            ],
            error_kw={"ecolor": _INK, "elinewidth": 1},
        )
        numbers = [f"{value:,.0f}" if value >= 10 else f"{value:.2f}" for value in medians]
        axes.bar_label(bars, numbers, padding=4)
        axes.invert_yaxis()
        axes.set_title(report.title, loc="left", fontsize=10)
        axes.set_xlabel(report.unit)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.1)
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
