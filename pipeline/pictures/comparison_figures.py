"""Pictures of a comparison: what each method costs, and curves over less or worse data."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from dclip.pictures.canvas import heading, one_line
from pipeline.pictures.looks import colors_of, short_title_of

_MARKERS = "osD^vP*X<>pH"
_LARGE = 8  # times the smallest value: from there on an axis is logarithmic
_FREE = "#595959"


def costs(lines: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Test mAP against trained parameters and against seconds of training.

    Bars are standard deviations over seeds. What is not trained costs nothing: it is a line across.

    Args:
        lines: Rows: ``row``, ``test_map``, ``test_map_std``, ``parameters`` and ``seconds``; those
            without a score are left out.
        title: Of the picture.
    """
    kept = [line for line in lines if line["test_map"] is not None]
    figure = Figure(figsize=(11.0, 5.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    looks = _looks([line["row"] for line in lines])
    panels = (("parameters", "trained parameters"), ("seconds", "seconds of training"))
    figure.suptitle(title, fontsize=9)
    for axis, (key, across) in zip(axes, panels, strict=True):
        costly = [line for line in kept if line[key]]
        for line in costly:
            color, marker = looks[line["row"]]
            spread = 100 * (line["test_map_std"] or 0.0)
            axis.errorbar(
                line[key], 100 * line["test_map"], spread,
                fmt=marker, color=color, capsize=3, markersize=7,
            )  # fmt: skip
        _scale(axis, [line[key] for line in costly])
        axis.set_xlabel(across)
        axis.grid(linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12, y=0.1)
        for line in kept:
            if not line[key]:
                axis.axhline(100 * line["test_map"], color=_FREE, lw=1, ls="--", zorder=0)
    axes[0].set_ylabel("test mAP, %")
    for axis, (key, _) in zip(axes, panels, strict=True):
        _name_points(axis, kept, key, looks)
    return figure


def curves(
    lines: Sequence[Mapping[str, Any]], across: str, values: Sequence[Any], title: str = ""
) -> Figure:
    """Test mAP of every row over what is varied; below it, what each gains on its partner.

    Bands are standard deviations over seeds, bars 95 % intervals of paired differences.

    Args:
        lines: Rows of all points, point by point: ``row``, ``point``, ``test_map``,
            ``test_map_std``, ``difference``, ``difference_low``, ``difference_high``, ``against``.
        across: What is varied.
        values: Where on the axis each point is, in the order in which they come: numbers, or texts
            that stand side by side.
        title: Of the picture.
    """
    points = list(dict.fromkeys(line["point"] for line in lines))
    rows = list(dict.fromkeys(line["row"] for line in lines))
    looks = _looks(rows)
    has_pairs = any(line["difference"] is not None for line in lines)
    figure = Figure(figsize=(8.6, 7.4 if has_pairs else 4.8), layout="constrained")
    axes = figure.subplots(1 + has_pairs, sharex=True, squeeze=False)[:, 0]
    is_number = all(isinstance(value, int | float) for value in values)
    places = np.array(values if is_number else range(len(values)), float)
    order = np.argsort(places, kind="stable")
    for number, row in enumerate(rows):
        own = {line["point"]: line for line in lines if line["row"] == row}
        kept = [n for n in order if points[n] in own and own[points[n]]["test_map"] is not None]
        color, marker = looks[row]
        means = np.array([100 * own[points[n]]["test_map"] for n in kept])
        stds = np.array([100 * (own[points[n]]["test_map_std"] or 0.0) for n in kept])
        # beside each other, so that bars can be read
        aside = 0.012 * (number - (len(rows) - 1) / 2)
        if is_number and _is_wide(places):
            moved = places * (places.max() / places.min()) ** aside
        else:
            moved = places + aside * (places.max() - places.min() or 1.0)
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5}
        label = one_line(short_title_of(row), 40)
        if is_number:
            axes[0].plot(places[kept], means, lw=1.6, label=label, **look)
            ends = (means - stds, means + stds)
            axes[0].fill_between(places[kept], *ends, color=color, alpha=0.15, lw=0)
        else:  # nothing is between them
            axes[0].errorbar(moved[kept], means, stds, ls="none", capsize=3, label=label, **look)
        pairs = [n for n in kept if own[points[n]]["difference"] is not None]
        if not pairs:
            continue
        gains = np.array([100 * own[points[n]]["difference"] for n in pairs])
        limits = np.array(
            [
                [100 * (own[points[n]][f"difference_{end}"] or 0.0) for n in pairs]
                for end in ("low", "high")
            ]
        )
        has_ends = [own[points[n]]["difference_low"] is not None for n in pairs]
        bars = np.where(has_ends, np.abs(limits - gains), 0.0)
        partner = short_title_of(next(iter(own.values()))["against"])
        axes[1].errorbar(
            moved[pairs], gains, bars, lw=1.2, ls="-" if is_number else "none", capsize=3,
            label=one_line(f"{short_title_of(row)} - {partner}", 46), **look,
        )  # fmt: skip
    if is_number:
        _scale(axes[-1], places.tolist())
        axes[-1].xaxis.set_major_locator(FixedLocator(sorted(set(places))))
        axes[-1].xaxis.set_minor_locator(NullLocator())
        axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    else:
        names = [fill(one_line(str(value), 60), 18) for value in values]
        axes[-1].set_xticks(range(len(values)), names, fontsize=8)
        axes[-1].set_xlim(-0.5, len(values) - 0.5)
    axes[-1].set_xlabel(across)
    axes[0].set_ylabel("test mAP, %")
    for axis in axes:
        axis.grid(linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if has_pairs:
        axes[1].axhline(0, color="black", lw=0.8)
        axes[1].set_ylabel("difference of mAP, points")
    spread = f"{'bands' if is_number else 'bars above'}: standard deviation"
    pairs_told = "bars below: 95 % intervals of paired differences" if has_pairs else ""
    notes = "; ".join(filter(None, [spread, pairs_told]))
    figure.suptitle(heading(title, notes), fontsize=9)
    return figure


def accuracies(
    lines: Sequence[Mapping[str, Any]], across: str, values: Sequence[Any], title: str = ""
) -> Figure:
    """Top-1 accuracy of every row; of base classes, of new ones and their harmonic mean.

    Bars are standard deviations over seeds; the harmonic mean of averages has none.

    Args:
        lines: Rows of all points, point by point: ``row``, ``point``, ``top1``, ``top1_std``; where
            classes are parted ``top1_new`` with its deviation, too, and ``harmonic``.
        across: What is varied; empty where nothing is.
        values: Where on the axis each point is, as in `curves`; empty where nothing is varied.
        title: Of the picture.
    """
    said = {"top1": "accuracy", "top1_new": "new classes", "harmonic": "harmonic mean"}
    panels = {name: words for name, words in said.items() if name in lines[0]}
    if len(panels) > 1:
        panels["top1"] = "base classes"
    points = list(dict.fromkeys(line["point"] for line in lines))
    rows = list(dict.fromkeys(line["row"] for line in lines))
    looks = _looks(rows)
    figure = Figure(figsize=(2.6 + 3.6 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    is_number = bool(values) and all(isinstance(value, int | float) for value in values)
    for axis, (name, words) in zip(axes, panels.items(), strict=True):
        for number, row in enumerate(rows):
            own = [line for line in lines if line["row"] == row and line[name] is not None]
            at = [points.index(line["point"]) for line in own]
            places = [values[n] if is_number else float(n) for n in at]
            if not across:  # one value a row: rows stand side by side
                places = [float(number)] * len(own)
            spreads = [100 * (line.get(f"{name}_std") or 0.0) for line in own]
            bars = None if name == "harmonic" else spreads
            color, marker = looks[row]
            axis.errorbar(
                places, [100 * line[name] for line in own], bars, fmt=marker, color=color,
                ls="-" if is_number else "none", capsize=3, lw=1.4, markersize=5,
                label=one_line(short_title_of(row), 40),
            )  # fmt: skip
        axis.set_title(words, fontsize=9)
        axis.grid(linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
        if is_number:
            _scale(axis, values)
            axis.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        else:
            names = [one_line(str(value), 20) for value in values] if across else [""] * len(rows)
            axis.set_xticks(range(len(names)), names, fontsize=8)
            axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_xlabel(across)
    axes[0].set_ylabel("test top-1 accuracy, %")
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(heading(title, "bars: standard deviation over seeds"), fontsize=9)
    return figure


def _looks(rows: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every row."""
    colors = colors_of(rows)
    return {row: (colors[row], _MARKERS[n % len(_MARKERS)]) for n, row in enumerate(rows)}


def _is_wide(values: Sequence[float] | np.ndarray) -> bool:
    return len(values) > 1 and min(values) > 0 and max(values) >= _LARGE * min(values)


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where values differ by much."""
    if _is_wide(values):
        axis.set_xscale("log")
        wide = max(values) / min(values)
        subs = (1, 2, 5) if wide < 50 else (1, 3) if wide < 1000 else (1,)
        axis.xaxis.set_major_locator(LogLocator(subs=subs))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axis.xaxis.set_minor_formatter(NullFormatter())


def _name_points(
    axis: Axes,
    lines: Sequence[Mapping[str, Any]],
    key: str,
    looks: Mapping[str, tuple[str, str]],
) -> None:
    """Names beside their points, or above their lines, where nothing else is."""
    figure = axis.figure
    FigureCanvasAgg(figure)  # type: ignore[arg-type]  # a figure, as axes of subfigures are not made
    figure.draw_without_rendering()  # type: ignore[union-attr]
    inside = axis.get_window_extent()
    taken: list[Bbox] = []
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())  # what is added moves nothing
    for line in lines:
        if not line[key]:
            y = axis.transData.transform((axis.get_xlim()[0], 100 * line["test_map"]))[1]
            taken.append(Bbox([[inside.x0, y - 1], [inside.x1, y + 1]]))
        else:
            x, y = axis.transData.transform((line[key], 100 * line["test_map"]))
            spread = 100 * (line["test_map_std"] or 0.0)
            low, high = (
                axis.transData.transform((line[key], 100 * line["test_map"] + sign * spread))[1]
                for sign in (-1, 1)
            )
            taken.append(Bbox([[x - 6, min(low, y - 6)], [x + 6, max(high, y + 6)]]))
    for line in sorted(lines, key=lambda line: -line["test_map"]):
        color, _ = looks[line["row"]]
        name = one_line(short_title_of(line["row"]), 30)
        height = axis.transData.transform((axis.get_xlim()[0], 100 * line["test_map"]))[1]
        place = (
            axis.transData.transform((line[key], 100 * line["test_map"]))
            if line[key]
            else np.array([inside.x0 + 4, height])
        )
        text = axis.text(0, 0, name, fontsize=8, color=color if line[key] else _FREE, va="bottom")
        text.set_in_layout(False)
        size = text.get_window_extent()
        wide, high = size.width, size.height
        box = Bbox.null()
        for across, up in _offers(wide, high, inside.width, is_line=not line[key]):
            left, bottom = place[0] + across, place[1] + up
            box = Bbox([[left, bottom], [left + wide, bottom + high]])
            is_inside = (
                box.x0 >= inside.x0 and box.x1 <= inside.x1
                and box.y0 >= inside.y0 - high and box.y1 <= inside.y1 + high
            )  # fmt: skip
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        left, bottom = axis.transData.inverted().transform((box.x0, box.y0))
        text.set_position((float(left), float(bottom)))
        gap = max(box.x0 - place[0], place[0] - box.x1, box.y0 - place[1], place[1] - box.y1)
        if line[key] and gap > 14:  # far from its point
            nearest = np.clip(place, [box.x0, box.y0], [box.x1, box.y1])
            end = axis.transData.inverted().transform(nearest)
            axis.plot([line[key], end[0]], [100 * line["test_map"], end[1]],
                      color=color, lw=0.6, zorder=0)  # fmt: skip


def _offers(wide: float, high: float, width: float, *, is_line: bool) -> list[tuple[float, float]]:
    """Where the lower left corner of a name may be, from its point on, in pixels, best first."""
    if is_line:
        steps = np.linspace(0, max(0.0, width - wide - 8), 12)
        return [(float(step), up) for up in (2.0, -high - 2) for step in steps]
    found = [(9.0, -high / 2), (-wide - 9, -high / 2)]
    for away in np.arange(9.0, 300.0, 12.0):
        for angle in np.pi / 8 * np.array([4, 12, 2, 6, 10, 14, 1, 7, 9, 15, 3, 5, 11, 13, 0, 8]):
            middle = (away + wide / 2) * np.cos(angle), (away + high / 2) * np.sin(angle)
            found.append((float(middle[0] - wide / 2), float(middle[1] - high / 2)))
    return found
