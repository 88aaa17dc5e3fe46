"""Pictures of captions' masks: which dimensions each leaves open, and which they share."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dclip.pictures.canvas import one_line

_LABEL = 60  # characters of a caption


def mask_sharing(
    masks: np.ndarray, captions: Sequence[str], owners: Sequence[str], title: str = ""
) -> Figure:
    """Masks of some captions, how many share each dimension, and what every two have in common.

    Dimensions are ordered by the number of captions that leave them open.

    Args:
        masks: Of 0 and 1, a row for each caption.
        captions: Their texts.
        owners: Keys of their images.
        title: Of the picture.
    """
    count, dim = masks.shape
    shared = masks.sum(axis=0)
    order = np.lexsort((np.arange(dim), -shared))
    common = np.minimum(masks[:, None], masks[None]).sum(-1)
    either = np.maximum(masks[:, None], masks[None]).sum(-1)
    overlap = np.divide(common, either, out=np.zeros_like(common), where=either > 0)
    high = 0.28 * count + 1.4
    figure = Figure(figsize=(16.0, high + 2.0), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 1), height_ratios=(high, 1.4))
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    below, legend = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    left.imshow(
        masks[:, order], aspect="auto", cmap="Greys", vmin=0, vmax=1.4, interpolation="none"
    )
    labels = [
        f"{one_line(caption, _LABEL)}  [{one_line(owner, 16)}]"
        for caption, owner in zip(captions, owners, strict=True)
    ]
    left.set_yticks(range(count), labels, fontsize=8)
    left.set_xticks([])
    left.set_title(f"open dimensions of each caption, of {dim}", fontsize=10)
    for row, own in enumerate(masks.sum(axis=1).astype(int)):
        left.text(dim + 0.01 * dim, row, str(own), fontsize=8, va="center")
    image = right.imshow(overlap, vmin=0, vmax=1, cmap="viridis")
    right.set_title("shared of what either has open", fontsize=10)
    right.set_xticks([])
    right.set_yticks([])
    figure.colorbar(image, ax=right, shrink=0.8)
    below.bar(np.arange(dim), shared[order], width=1.0, color="#0072b2")
    below.set_xlim(-0.5, dim - 0.5)
    below.set_ylim(0, count)
    below.set_ylabel("captions", fontsize=9)
    below.set_xlabel("dimensions, those of most captions first", fontsize=9)
    legend.axis("off")
    said = (
        f"{int((shared == count).sum())} dimensions open for all of these captions",
        f"{int((shared == 0).sum())} for none",
        f"{int((shared == 1).sum())} for one alone",
    )
    legend.text(0, 0.5, "\n".join(said), fontsize=9, va="center")
    figure.suptitle(title, fontsize=9)
    return figure
