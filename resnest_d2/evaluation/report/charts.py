"""Charts of a report, as inline SVG."""

from __future__ import annotations

import html
import io
import re
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..labels import label, plain_text
from .measure import SCORE_THRESHOLD, Task

# Distinguishable with any colour vision (Okabe and Ito), darkened to be legible as thin lines on white.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b5599a", "#a8741a", "#56708a"]
_MOST_LINES = 16  # per chart
_MOST_POINTS = 3000  # per line; a chart is 600 pixels wide
RIGHT, WRONG, MISSED = COLOURS[2], COLOURS[1], COLOURS[3]
_STYLE = {
    "svg.fonttype": "none",  # text stays text: crisp, small and selectable
    "svg.hashsalt": "resnest_d2",  # the same data give the same page
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888",
    "axes.labelcolor": "#444",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#444",
    "ytick.color": "#444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}


def chart(draw: Callable[[Axes], Any], title: str, size: Tuple[float, float] = (4.6, 3.1)) -> str:
    """Draw an SVG image of that size in inches, which scales to the width that it is given."""
    file = _saved(lambda figure: draw(figure.subplots()), size, format="svg", metadata={"Date": None})
    svg = file.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def raster(draw: Callable[[Figure], Any], size: Tuple[float, float]) -> bytes:
    """Draw a PNG image of that size in inches, 150 pixels each, in the style of the charts."""
    return _saved(draw, size, format="png", dpi=150).getvalue()


def _saved(draw: Callable[[Figure], Any], size: Tuple[float, float], **options: Any) -> io.BytesIO:
    with matplotlib.rc_context(_STYLE), plain_text():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, **options)
    return file


def in_legend(name: str) -> str:
    """Shorten a name to leave space for lines. matplotlib omits names that begin with an underscore."""
    text = label(name, 24)
    return f" {text}" if text.startswith("_") else text


def precision_recall(curves: Mapping[str, np.ndarray], title: str) -> str:
    """Plot precision in percent at 101 recalls from 0 to 1."""

    def draw(axes: Axes) -> None:
        for name, precision in curves.items():
            axes.plot(np.linspace(0, 100, len(precision)), precision, label=in_legend(name))
        axes.set(xlim=(0, 101), ylim=(0, 102), xlabel="recall (%)", ylabel="precision (%)")
        if curves:
            axes.legend(loc="best")

    return chart(draw, title)


def scores(task: Task) -> str:
    """Draw a histogram of the scores of right and wrong detections."""

    def draw(axes: Axes) -> None:
        axes.hist(
            [task.right, task.wrong],
            bins=np.linspace(0, 1, 21),
            histtype="stepfilled",
            alpha=0.6,
            color=[RIGHT, WRONG],
            label=["found an object", "did not"],
        )
        axes.axvline(SCORE_THRESHOLD, color="#444", linestyle=":", linewidth=1)
        axes.set(xlim=(0, 1), xlabel="score", ylabel="detections", yscale="symlog")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(0, 3 * axes.get_ylim()[1])  # space for the legend
        axes.legend(loc="upper center", ncols=2)

    return chart(draw, "scores of right and wrong detections")


def trade_off(task: Task, objects: int) -> str:
    """Plot precision and recall over all classes at each score threshold."""
    thresholds = np.linspace(0, 1, 101)

    def at_least(values: np.ndarray) -> np.ndarray:
        return len(values) - np.searchsorted(np.sort(values), thresholds)

    right, wrong = at_least(task.right), at_least(task.wrong)

    def draw(axes: Axes) -> None:
        precision = np.divide(
            100.0 * right, right + wrong, out=np.full(len(right), np.nan), where=right + wrong > 0
        )
        axes.plot(thresholds, precision, label="precision")
        axes.plot(thresholds, 100 * right / max(objects, 1), label="recall")
        axes.set(xlim=(0, 1), ylim=(0, 102), xlabel="score threshold", ylabel="%")
        axes.legend(loc="best")

    return chart(draw, "precision and recall by score threshold")


def bars(rows: Sequence[Mapping[str, Any]], value: str, text: Callable[[Mapping], str], unit: str) -> str:
    """Draw horizontal bars: ``label`` and ``value`` of each row, with a text at the end."""

    def draw(axes: Axes) -> None:
        values = [0 if np.isnan(row[value]) else row[value] for row in rows]
        axes.barh(range(len(rows)), values, color=COLOURS[0], height=0.62)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=unit, xlim=(0, 1.5 * max([*values, 1])))
        for y, row in enumerate(rows):
            axes.annotate(
                text(row), (values[y], y), (4, 0), textcoords="offset points", va="center", size=8.5
            )

    return chart(draw, unit)


def groups(values: Mapping[str, Sequence[float]], unit: str) -> str:
    """Draw a row for each group: a dot for each value, a line at their mean."""

    def draw(axes: Axes) -> None:
        for y, group in enumerate(values.values()):
            mean = float(np.mean(group))
            axes.plot(group, [y] * len(group), "o", color=COLOURS[0], alpha=0.55, markersize=7)
            axes.plot([mean] * 2, [y - 0.28, y + 0.28], color=COLOURS[1])
            axes.annotate(
                f"{mean:.1f}", (mean, y - 0.28), (0, 3), textcoords="offset points", ha="center", size=8.5
            )
        axes.set_yticks(range(len(values)), map(in_legend, values))
        axes.set(xlabel=unit, ylim=(len(values) - 0.4, -0.75))
        axes.margins(x=0.08)

    return chart(draw, unit, (4.6, 0.8 + 0.5 * len(values)))


def confusion(counts: np.ndarray, names: Sequence[str], shown: np.ndarray) -> str:
    """Draw a matrix by true and predicted class, in percent of all that is of the true class.

    Args:
        counts: (classes, classes); rows are true classes.
        names: of all classes.
        shown: indices of the classes that are drawn.
    """
    share = (100 * counts / np.maximum(counts.sum(1, keepdims=True), 1))[shown][:, shown]
    names = [names[i] for i in shown]
    few = len(names) <= 12

    def draw(axes: Axes) -> None:
        axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=10)  # the root shows rare confusions, too
        axes.grid(visible=False)
        axes.set_xticks(
            range(len(names)), map(in_legend, names), rotation=60, ha="right", size=8 if few else 5
        )
        axes.set_yticks(range(len(names)), map(in_legend, names), size=8 if few else 5)
        axes.set(xlabel="predicted", ylabel="true")
        for y, x in np.argwhere(share >= (0.05 if few else 1)):
            colour = "white" if share[y, x] > 40 else "black"
            axes.annotate(
                f"{share[y, x]:.0f}", (x, y), ha="center", va="center", color=colour, size=8 if few else 4
            )

    return chart(draw, "confusion of classes", (7, 5.6))


def training(metrics: Sequence[Dict[str, Any]]) -> List[Dict[str, str]]:
    """Plot the losses, learning rate and AP in the metrics by iteration. Returns titles and images."""
    losses = sorted({k for line in metrics for k in line if "loss" in k and "/" not in k})
    losses = [k for k in losses if k != "total_loss"][:_MOST_LINES]
    ap = sorted({k for line in metrics for k in line if k.split("/")[-1] in ("AP", "PQ", "mIoU", "top1")})[
        :_MOST_LINES
    ]
    groups = [
        ("Total loss", ["total_loss"], "loss"),
        ("Parts of the loss", losses, "loss"),
        ("AP, IoU or accuracy during training", ap, "%"),
        ("Learning rate", ["lr"], "learning rate"),
    ]
    charts = []
    for title, keys, unit in groups:
        series = {
            key: [(line["iteration"], line[key]) for line in metrics if line.get(key) is not None]
            for key in keys
        }
        series = {key: points[:: -(-len(points) // _MOST_POINTS)] for key, points in series.items() if points}
        if any(len(points) > 1 for points in series.values()):
            charts.append({"title": title, "svg": chart(partial(_lines, series, unit), title)})
    return charts


def _lines(series: Mapping[str, Sequence], unit: str, axes: Axes) -> None:
    for i, (name, points) in enumerate(series.items()):
        style = "-" if i < len(COLOURS) else "--"
        axes.plot(
            *zip(*points),
            style,
            label=in_legend(name),
            marker="o" if len(points) < 8 else None,
            markersize=4,
        )
    axes.set(xlabel="iteration", ylabel=unit)
    axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(loc="best", ncols=1 + (len(series) > 6))
