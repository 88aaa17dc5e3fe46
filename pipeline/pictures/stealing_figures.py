"""Pictures of classes that take from each other."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dclip.pictures.canvas import one_line


def stealing_map(
    differences: Mapping[str, np.ndarray], class_names: Sequence[str], title: str = ""
) -> Figure:
    """For some classes, by how much errors of one are more frequent where another is there.

    Args:
        differences: By what stands above each panel: a row for the class that is there, a column
            for the one that is scored; nan where nothing is known.
        class_names: Of the rows, and of the columns.
        title: Of the picture.
    """
    count = len(class_names)
    side = 0.36 * count + 1.8
    figure = Figure(figsize=(2 * side + 1.6, side + 1.2), layout="constrained")
    axes = figure.subplots(1, len(differences), squeeze=False)[0]
    every = np.concatenate([values.ravel() for values in differences.values()])
    top = 100 * max(0.01, float(np.nanmax(np.abs(every), initial=0.0)))
    names = [one_line(name, 16) for name in class_names]
    drawn = None
    for axis, (head, values) in zip(axes, differences.items(), strict=True):
        points = 100 * values
        drawn = axis.imshow(points, cmap="RdBu_r", vmin=-top, vmax=top)
        axis.set_title(head, fontsize=10)
        axis.set_xticks(range(count), names, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(count), names, fontsize=8)
        axis.set_xlabel("class that is scored (b)", fontsize=9)
        axis.set_ylabel("class that is there (a)", fontsize=9)
        for row, column in zip(*np.nonzero(~np.isnan(points)), strict=True):
            value = points[row, column]
            colour = "white" if abs(value) > 0.6 * top else "black"
            axis.text(column, row, f"{round(value)}", ha="center", va="center", fontsize=6,
                      color=colour)  # fmt: skip
    if drawn is not None:
        figure.colorbar(drawn, ax=axes.tolist(), shrink=0.8, label="percentage points")
    figure.suptitle(title, fontsize=9)
    return figure
