"""What several checkpoints gain and lose, each measure against each."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from dclip.pictures.canvas import one_line
from dclip.pictures.masks import PALETTE

_MOST_NAMED = 12  # points with their names


def checkpoint_tradeoff(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Held-out mAP, mIoU and inter-class cosine of several checkpoints, each against each.

    Args:
        rows: ``name``, ``method``, ``val_map``, ``miou`` and ``inter_class_cosine`` of each;
            ``val_map`` is None where nothing was held out. As many as can be told apart have
            their names.
        title: Of the picture.
    """
    labels = {
        "inter_class_cosine": "inter-class cosine after training",
        "val_map": "mAP on held-out images, %",
        "miou": "mIoU, %",
    }
    pairs = [("inter_class_cosine", "val_map"), ("inter_class_cosine", "miou"), ("val_map", "miou")]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(12.0, 3.9), layout="constrained")
    axes = figure.subplots(1, len(pairs))
    for axis, (across, up) in zip(axes, pairs, strict=True):
        for number, method in enumerate(methods):
            points = [
                [row[key] * (1 if key == "inter_class_cosine" else 100) for key in (across, up)]
                for row in rows
                if row["method"] == method and None not in (row[across], row[up])
            ]
            axis.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                s=55,
                marker="osD^vPX*"[number % 8],
                color=PALETTE[(4, 0, 2, 5, 6, 1)[number % 6]],
                edgecolors="black",
                linewidths=0.5,
                label=f"{method} ({sum(row['method'] == method for row in rows)})",
            )
        for row in rows if len(rows) <= _MOST_NAMED else ():
            if None not in (row[across], row[up]):
                point = [
                    row[key] * (1 if key == "inter_class_cosine" else 100) for key in (across, up)
                ]
                axis.annotate(
                    one_line(row["name"], 20),
                    point,
                    xytext=(5, 4),
                    textcoords="offset points",
                    fontsize=7,
                )
        axis.set_xlabel(labels[across])
        axis.set_ylabel(labels[up])
        axis.margins(0.12)
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure
