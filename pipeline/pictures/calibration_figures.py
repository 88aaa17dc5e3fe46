"""Whether probabilities can be believed, and what a threshold costs."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from dclip.pictures.canvas import heading, more, one_line
from pipeline.pictures.looks import colors_of, short_title_of

_PANELS = 12
_PALE = "#9a9a9a"


def reliability_diagrams(curves: Mapping[str, Mapping[str, Any]], title: str = "") -> Figure:
    """Of each method, how often classes are there that it gives a probability, before and after.

    Below each diagram stands how many pairs of an image and a class have that probability, on a
    logarithmic scale.

    Args:
        curves: By method: ``as_it_is`` and ``calibrated``, as of `dclip.metrics.reliability`.
        title: Of the picture.
    """
    told = {
        name: [
            (label, curve[key], colour, style)
            for label, key, colour, style in (
                ("as it is", "as_it_is", _PALE, "o--"),
                ("calibrated", "calibrated", "#0072b2", "o-"),
            )
            if key in curve
        ]
        for name, curve in curves.items()
    }
    shown = {name: lines for name, lines in told.items() if lines}
    names = list(shown)[:_PANELS]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 3.9 * rows + 0.4), layout="constrained")
    axes = figure.subplots(
        2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3, 1] * rows}
    )
    for axis in axes.flatten():
        axis.axis("off")
    for number, name in enumerate(names):
        upper, lower = (axes[2 * (number // columns) + k][number % columns] for k in (0, 1))
        upper.axis("on")
        lower.axis("on")
        upper.plot([0, 1], [0, 1], color="black", linewidth=0.7)
        for label, curve, colour, style in shown[name]:
            points = [
                (p, share)
                for p, share in zip(curve["probabilities"], curve["shares"], strict=True)
                if p is not None and share is not None
            ]
            upper.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
            bins = len(curve["counts"])
            ends = [number / bins for number in range(bins + 1)]
            lower.stairs([max(count, 0.5) for count in curve["counts"]], ends, color=colour)
        upper.set_title(one_line(short_title_of(name), 30), fontsize=10)
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1)
        upper.set_ylabel("share that is there", fontsize=8)
        upper.legend(frameon=False, fontsize=8, loc="upper left")
        lower.set_yscale("log")
        lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        lower.yaxis.set_minor_formatter(NullFormatter())
        lower.set_ylabel("pairs", fontsize=8)
        lower.set_xlabel("probability", fontsize=8)
        for axis in (upper, lower):
            axis.tick_params(labelsize=7, labelbottom=True)
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(heading(title, more(len(names), len(shown), "methods")), fontsize=9)
    return figure


def precision_recall_curves(curves: Mapping[str, Mapping[str, Any]], title: str = "") -> Figure:
    """Precision over recall of all classes together, with the point of the chosen thresholds.

    Args:
        curves: By method: ``recall``, ``precision`` and, where thresholds were chosen, ``chosen``.
        title: Of the picture.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.subplots()
    has_points, colours = False, colors_of(list(curves))
    for name, curve in curves.items():
        if not curve["recall"]:
            continue
        colour = colours[name]
        axis.plot(
            curve["recall"], curve["precision"], color=colour, linewidth=1.6,
            label=one_line(short_title_of(name), 34),
        )  # fmt: skip
        if "chosen" in curve:
            has_points = True
            point = curve["chosen"]
            axis.plot(
                point["recall"], point["precision"], "o", color=colour, markersize=8,
                markeredgecolor="black",
            )  # fmt: skip
    axis.set_xlim(0, 1.01)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("recall, all classes together")
    axis.set_ylabel("precision")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    note = "dots: at the thresholds that a checkpoint keeps, one a class" if has_points else ""
    figure.suptitle(heading(title, note), fontsize=9)
    return figure
