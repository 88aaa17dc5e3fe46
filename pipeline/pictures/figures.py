"""Pictures of a report: similarity matrices, cosine histogram, AP bars, activation maps, sweeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dclip.pictures.canvas import heading, more, one_line
from dclip.pictures.masks import show_heat
from dclip.words import counted
from pipeline.pictures.looks import color_of, short_title_of
from pipeline.settings.sections import bounds
from pipeline.settings.space import leaf, shown

_READABLE = 80  # classes with their names along both sides of a matrix
_LISTED = 150  # classes with their names along one side
_BARS = 40
_PANELS = 24


def block_order(similarity: np.ndarray) -> np.ndarray:
    """Positions in an order in which similar ones stand together, so that blocks show.

    By the second eigenvector of the graph Laplacian (Fiedler), which minimises the squared
    distance between neighbours weighted by their similarity.
    """
    if len(similarity) < 3:
        return np.arange(len(similarity))
    weights = similarity - similarity.min()
    np.fill_diagonal(weights, 0)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    vector = np.linalg.eigh(laplacian)[1][:, 1]
    return np.argsort(vector if vector[0] <= vector[-1] else -vector, kind="stable")


def similarity_matrices(
    matrices: Mapping[str, np.ndarray], names: Sequence[str], title: str = ""
) -> Figure:
    """Cosine of every class with every other, before and after projection, on one colour scale.

    Rows and columns are ordered by the first matrix so that similar classes stand together. Of more
    classes than can be read, those that it confuses most are shown.
    """
    first = next(iter(matrices.values()))
    nearest = first.max(axis=1, where=~np.eye(len(first), dtype=bool), initial=-2.0)
    most = np.sort(np.argsort(-nearest, kind="stable")[:_READABLE])
    order = most[block_order(first[np.ix_(most, most)])]
    side = max(3.2, 0.115 * len(order) + 0.4)
    longest = max(len(one_line(names[column])) for column in order)
    figure = Figure(
        figsize=((side + 0.075 * longest) * len(matrices) + 1.2, side + 0.075 * longest + 1.2),
        layout="constrained",
    )
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    low = min(0.0, *(float(matrix.min()) for matrix in matrices.values()))
    image = None
    for axis, (system, matrix) in zip(axes, matrices.items(), strict=True):
        image = axis.imshow(matrix[np.ix_(order, order)], vmin=low, vmax=1.0, cmap="viridis")
        mean = _off_diagonal(matrix).mean()
        axis.set_title(f"{short_title_of(system)}: mean {mean:.2f} off the diagonal", fontsize=10)
        labels = [one_line(names[column]) for column in order]
        axis.set_xticks(range(len(order)), labels, rotation=90, fontsize=7)
        axis.set_yticks(range(len(order)), labels, fontsize=7)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.8, label="cosine of positive prompts")
    shown = more(len(order), len(names), "classes, those most alike to frozen CLIP")
    figure.suptitle(heading(title, shown), fontsize=9)
    return figure


def cosine_histogram(matrices: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """How the cosines of all pairs of classes are distributed."""
    figure = Figure(figsize=(7.0, 4.3), layout="constrained")
    axis = figure.subplots()
    size = len(next(iter(matrices.values())))
    above = np.triu(np.ones((size, size), bool), k=1)
    low = min(float(matrix.min(where=above, initial=0.0)) for matrix in matrices.values())
    bins = np.linspace(low, 1.0, 41).tolist()
    for number, (system, matrix) in enumerate(matrices.items()):
        cosines = matrix[above]
        axis.hist(
            cosines,
            bins=bins,
            alpha=0.55,
            color=color_of(system, number),
            label=f"{short_title_of(system)} (mean {cosines.mean():.2f})",
        )
        axis.axvline(float(cosines.mean()), color=color_of(system, number), lw=1.5, ls="--")
    axis.set_xlabel("cosine between two classes (positive prompts)")
    axis.set_ylabel("pairs of classes")
    axis.legend(frameon=False, ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9)
    return figure


def ap_bars(
    systems: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    positives: Sequence[int],
    title: str = "",
) -> Figure:
    """AP of every class that occurs, by every system; sorted by the last system's AP.

    Args:
        systems: ``map``, and ``ap`` of every class, None where it occurs in no image.
        names: Of the classes.
        positives: Images of each class, shown beside its name.
        title: Of the picture.
    """
    last = list(systems.values())[-1]["ap"]
    order = [column for column in range(len(names)) if last[column] is not None]
    order.sort(key=lambda column: -last[column])
    half = _BARS // 2
    shown = order if len(order) <= _BARS else order[:half] + order[-half:]
    figure = Figure(figsize=(max(7.0, 0.62 * len(shown) + 2), 4.9), layout="constrained")
    axis = figure.subplots()
    width = 0.85 / len(systems)
    for number, (system, row) in enumerate(systems.items()):
        centres = np.arange(len(shown)) + (number - (len(systems) - 1) / 2) * width
        heights = [100 * row["ap"][column] for column in shown]
        axis.bar(
            centres,
            heights,
            width,
            color=color_of(system, number),
            label=short_title_of(system)
            if row["map"] is None
            else f"{short_title_of(system)} (mAP {100 * row['map']:.1f})",
        )
    if len(shown) < len(order):
        axis.axvline(half - 0.5, color="#7f7f7f", lw=1, ls=":")
    labels = [f"{one_line(names[column])} (n={positives[column]})" for column in shown]
    axis.set_xticks(range(len(shown)), labels, rotation=45, ha="right", fontsize=9)
    axis.set_ylabel("average precision, %")
    axis.set_ylim(0, 100)
    axis.legend(frameon=False, ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
    left_out = more(len(shown), len(order), "classes, the best and the worst of the last system")
    absent = len(names) - len(order)
    without = f"{counted(absent, 'class is', 'classes are')} in no image" if absent else ""
    figure.suptitle(heading(title, left_out, without), fontsize=9)
    return figure


@dataclass(frozen=True)
class MapLine:
    """What one system says of the locations of one image.

    Attributes:
        title: What stands above the image.
        pixels: The image, RGB.
        maps: Of each class a value for every pixel; nan where nothing was seen.
        names: Of the classes.
        has_absent: Whether the last class is one that the image does not show.
        limits: Ends of the scale of its colours.
    """

    title: str
    pixels: np.ndarray
    maps: np.ndarray
    names: Sequence[str]
    has_absent: bool
    limits: tuple[float, float]


def activation_maps(lines: Sequence[MapLine], title: str = "") -> Figure:
    """Where each class lights up, a line for every image and system.

    CLIP's map is the cosine of each location with the class; a checkpoint's is what its method
    says: the log-odds that the class is there, for one that has them. All maps of a line share one
    scale, so that a map which lights up for the wrong class shows.
    """
    columns = 1 + max((len(line.names) for line in lines), default=0)
    count = max(1, len(lines))
    figure = Figure(figsize=(1.75 * columns + 1.0, 1.95 * count + 0.7), layout="constrained")
    # ticks that nobody sees take longer than all else of the picture
    no_ticks: dict[str, list[float]] = {"xticks": [], "yticks": []}
    axes = figure.subplots(count, columns, squeeze=False, subplot_kw=no_ticks)
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(lines, axes, strict=False):
        row[0].imshow(line.pixels)
        row[0].set_title(line.title, fontsize=9)
        drawn = None
        for number, (axis, heat) in enumerate(zip(row[1:], line.maps, strict=False), start=1):
            drawn = show_heat(axis, line.pixels, heat, *line.limits)
            name = one_line(line.names[number - 1], 18)
            if line.has_absent and number == len(line.names):
                axis.set_title(f"{name}\n(absent)", fontsize=9, color="#d55e00")
            else:
                axis.set_title(name, fontsize=9)
        if drawn is not None:
            figure.colorbar(drawn, ax=row.tolist(), shrink=0.8, aspect=12).ax.tick_params(
                labelsize=7
            )
    note = "cosine with the class; checkpoints: log-odds that it is there; a scale each line"
    figure.suptitle(heading(title, note), fontsize=9)
    return figure


def sweep_trials(
    rows: Sequence[Mapping[str, Any]],
    space: Mapping[str, list[Any] | str],
    title: str = "",
    *,
    color: str | None = None,
) -> Figure:
    """Validation mAP of every trial against each swept setting, coloured by what was watched.

    Values of a list stand side by side, those of a range on a scale. The best trial is ringed and
    named. Of more than 24 settings the first are shown.
    """
    keys = list(space)[:_PANELS]
    best = max(rows, key=lambda row: row["val_map"])
    columns = min(3, len(keys))
    lines = -(-len(keys) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.2 + 3.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
    scores = [100 * row["val_map"] for row in rows]
    watched = [np.nan if not color or (c := row[color]) is None else c for row in rows]
    points = None
    for axis, key in zip(axes.flat, keys, strict=False):
        given = [row[key] for row in rows]
        values = sorted(set(given), key=lambda value: (isinstance(value, str), value or 0))
        scale = space[key]
        is_list = not isinstance(scale, str)
        points = axis.scatter(
            [values.index(value) for value in given] if is_list else given,
            scores,
            c=watched,
            plotnonfinite=True,  # a single class has no cosine
            cmap="viridis",
            s=45,
            edgecolors="black",
            linewidths=0.4,
        )
        across = values.index(best[key]) if is_list else best[key]
        axis.scatter(
            [across],
            [100 * best["val_map"]],
            s=160,
            facecolors="none",
            edgecolors="#d55e00",
            lw=1.8,
        )
        if is_list:
            names = [one_line(shown(value), 12) for value in values]
            every = -(-len(values) // 16)
            axis.set_xticks(
                range(0, len(values), every),
                names[::every],
                rotation=0 if sum(map(len, names)) < 32 else 60,
            )
            axis.set_xlim(-0.5, len(values) - 0.5)
        elif (ends := bounds(str(scale)))[1] > 10 * ends[0] > 0:
            axis.set_xscale("log")
            axis.set_xlim(0.85 * ends[0], ends[1] / 0.85)
            is_short = ends[1] < 1000 * ends[0]
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 3) if is_short else (1,)))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(leaf(key))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(keys) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("mAP on held-out images, %")
    if points is not None and color:
        label = f"{color.replace('_', ' ')} after training"
        figure.colorbar(points, ax=axes, label=label)
    settings = ", ".join(f"{leaf(key)}={shown(best[key])}" for key in keys)
    named = one_line(
        f"ringed: trial {best['trial']}, {100 * best['val_map']:.1f} %, {settings}", 110
    )
    left_out = more(len(keys), len(space), "settings")
    figure.suptitle(heading(title, left_out, named), fontsize=9)
    return figure


def ablation(lines: Sequence[Mapping[str, Any]], watched: Mapping[str, str]) -> Figure:
    """Test mAP and what was watched of every row: mean, standard deviation, and each seed.

    Args:
        lines: Rows.
        watched: Names of what was watched, with their headings.
    """
    studies = list(dict.fromkeys(line["study"] for line in lines))
    groups = [[line for line in lines if line["study"] == study] for study in studies]
    sizes = [len(group) for group in groups]
    figure = Figure(figsize=(0.6 * sum(sizes) + 0.4 * len(sizes) + 1.5, 6.4), layout="constrained")
    scores = [("test_map", 100, "test mAP, %")]
    scores += [(name, 1, name.replace("_", " ").replace("inter class", "inter-class"))
               for name in watched]  # fmt: skip
    axes = figure.subplots(
        len(scores), len(groups), sharey="row", sharex="col", squeeze=False, width_ratios=sizes
    )
    for line_of_axes, (name, scale, title) in zip(axes, scores, strict=True):
        line_of_axes[0].set_ylabel(title)
        for axis, group in zip(line_of_axes, groups, strict=True):
            for across, line in enumerate(group):
                values = [scale * value for value in line["by_seed"][name].values()]
                axis.scatter([across + 0.18] * len(values), values, s=9, color="#7f7f7f")
                if values:
                    spread = scale * (line[f"{name}_std"] or 0.0)
                    axis.errorbar(
                        across, scale * line[name], spread, fmt="o", color="#0072b2", capsize=3
                    )
            axis.grid(axis="y", linewidth=0.4)
            axis.set_xlim(-0.6, len(group) - 0.4)
            axis.set_xticks(range(len(group)), [line["row"] for line in group], rotation=60)
            axis.spines[["top", "right"]].set_visible(False)
    for axis, study in zip(axes[0], studies, strict=True):
        axis.set_title(study, fontsize=9)
    for axis in axes[-1]:
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor", fontsize=8)
    return figure


def class_histogram(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Images of every class, the most frequent first; on a logarithmic axis if they differ much.

    Of more classes than can be read, the most frequent are shown.
    """
    order = np.argsort(-counts, kind="stable")[:_LISTED]
    figure = Figure(figsize=(max(6.0, 0.17 * len(order) + 1.5), 4.8), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(order)), counts[order], color="#0072b2", width=0.8)
    if counts.max() > 30 * max(counts.min(), 1):
        axis.set_yscale("symlog", linthresh=1)  # which shows 0, too
    else:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(bottom=0)
    axis.set_xlim(-0.7, len(order) - 0.3)
    axis.set_xticks(range(len(order)), [one_line(names[i]) for i in order], rotation=90, fontsize=8)
    axis.set_ylabel("images with the class")
    shown = more(len(order), len(names), "classes, the most frequent")
    axis.set_title(heading(title, shown), fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def cooccurrence(together: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Of the images with the class of a row, the share that has the class of a column as well.

    ``together[i, j]`` counts the images with both; on the diagonal, which is left grey, those with
    the class. Classes that occur together stand together; of more than can be read, the most
    frequent are shown. Classes in no image are left out, unless all are.
    """
    occurring = np.flatnonzero(together.diagonal())
    occurring = occurring if len(occurring) else np.arange(len(names))
    most = np.sort(occurring[np.argsort(-together.diagonal()[occurring], kind="stable")[:_LISTED]])
    both = together[np.ix_(most, most)].astype(float)
    own = np.sqrt(np.maximum(both.diagonal(), 1))
    order = block_order(both / own[:, None] / own[None, :])
    both, most = both[np.ix_(order, order)], most[order]
    counts = both.diagonal()[:, None].copy()
    share = np.divide(both, counts, out=np.full(both.shape, np.nan), where=counts > 0)
    np.fill_diagonal(share, np.nan)
    side = max(5.0, 0.15 * len(most) + 2.0)
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("#d9d9d9")
    # most shares are small; the square root keeps them apart
    image = axis.imshow(share, norm=PowerNorm(0.5, vmin=0, vmax=1), cmap="viridis")
    labels = [one_line(names[column]) for column in most]
    axis.set_xticks(range(len(most)), labels, rotation=90, fontsize=8)
    axis.set_yticks(range(len(most)), labels, fontsize=8)
    axis.set_xlabel("share that also has ...")
    axis.set_ylabel("of the images with ...")
    shown = more(len(most), len(names), "classes, the most frequent")
    absent = len(names) - len(occurring)
    without = f"{counted(absent, 'class is', 'classes are')} in no image" if absent else ""
    notes = ", ".join(filter(None, [shown, without, "grey: a class with itself"]))
    axis.set_title(heading(title, notes), fontsize=10, loc="left")
    bar = figure.colorbar(
        image, ax=axis, shrink=min(0.8, 6 / side), anchor=(0, 1), label="share of the row's images"
    )
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    return figure


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]
