r"""Segmentation without masks: every pixel takes the class whose text its features are most like.

An image goes through the frozen backbone as one square or as sliding windows
(`dclip.data.windows`). From there on:

1. `class_scores`: cosines of the local features with the texts of every class; `System` says with
   which method, if any. `surgery_scores` is CLIP Surgery's form.
   `System.present`, on request, lets only those classes compete that the method finds.
2. `min_max`: on request, each class's scores over the image become 0 to 1.
3. `label_map`: scores are drawn to the size of the image and each pixel takes the largest; on
   request, it is background where none is sure enough.

The full-size scores of all classes are never in memory at once: rows are drawn in chunks.

References:
    Rawlekar et al., "Efficiently Disentangling CLIP for Multi-Object Perception", arXiv:2502.02977,
    and ``vocper.py`` in the authors' repository; Li et al., "CLIP Surgery", arXiv:2304.05653.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Backbone, ImageFeatures
from dclip.data.windows import View, Window
from dclip.encoding import encode_batches
from dclip.fitting.batches import Batch
from dclip.logits import similarity_maps
from dclip.methods.method import Method
from dclip.precision import at_least_float32
from dclip.prompts import ClassTexts, best_phrasing

MAX_CLASSES = 255
"""Of a label map of 8 bits, background included; 255 is no class but what masks leave out."""

LabelMap: TypeAlias = UInt8[Tensor, "height width"] | Int32[Tensor, "height width"]
"""The class of every pixel: in 8 bits, or in 32 where there are more than `MAX_CLASSES`."""

BUDGET = 1 << 26
"""Bytes that the rows drawn at once may take, scores of all classes together."""

SURGERY_SHARPNESS = 2.0
"""Multiplier of the cosines in the class weights of feature surgery, as CLIP Surgery has it."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How scores become classes; one rule for all systems that are compared.

    Attributes:
        normalisation: ``"minmax"``: `min_max` over the image, as in the paper; ``"none"``: cosines.
        logit_scale: Multiplier of the normalised scores in the softmax over classes; without
            ``background`` it changes nothing.
        background: A pixel is background where its largest probability over classes lies below
            this, in (0, 1). None: every pixel takes a class.

    Raises:
        ValueError: If a value is out of range.
    """

    normalisation: Literal["minmax", "none"] = "minmax"
    logit_scale: float = 100.0
    background: float | None = None

    def __post_init__(self) -> None:
        if self.normalisation not in ("minmax", "none"):
            raise ValueError(f"normalisation must be 'minmax' or 'none': {self.normalisation!r}")
        if not self.logit_scale > 0:
            raise ValueError(f"logit_scale must be above 0, got {self.logit_scale}")
        if self.background is not None and not 0 < self.background < 1:
            raise ValueError(f"background must lie in (0, 1), got {self.background}")


@dataclass(frozen=True)
class System:
    """A way from a backbone's features to scores of classes.

    Attributes:
        kind: Kind of local features it looks at.
        texts: Frozen text features of the classes.
        method: A method that scores locations, in evaluation mode, whose task is these classes;
            None for frozen CLIP.
        surgery: Whether scores are those of `surgery_scores`; for frozen CLIP only.
        presence_kind: Kind of local features that `present` looks at: what the method was trained
            on. Where given, only the classes that `present` finds compete.

    Raises:
        ValueError: If a method is there and surgery is asked for, or the other way round with
            ``presence_kind``; the method does not score locations; or classes that it finds are to
            compete, and it gives no probabilities.
    """

    kind: str
    texts: ClassTexts
    method: Method[Any] | None = None
    surgery: bool = False
    presence_kind: str | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.surgery:
            raise ValueError("feature surgery is of frozen CLIP; leave out the method")
        if self.method is None and self.presence_kind is not None:
            raise ValueError("only methods tell which classes are present; leave out presence_kind")
        if self.method is None:
            return
        title = self.method.settings.title
        if not self.method.scores_locations:
            raise ValueError(f"{title} does not score locations")
        if self.presence_kind is not None and not self.method.finds_classes():
            raise ValueError(
                f"{title} gives no probabilities, so it does not find classes; leave out "
                "presence_kind"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of local features it needs."""
        return (self.kind,) if self.presence_kind is None else (self.kind, self.presence_kind)

    @torch.no_grad()
    def scores(
        self, features: ImageFeatures, *, has_global_token: bool
    ) -> Float[Tensor, "windows classes locations"]:
        """Scores of every class at every location.

        Args:
            features: What the backbone says of some windows.
            has_global_token: Whether their first location is the mean token, which is dropped.
        """
        local = features.local[:, 1:] if has_global_token else features.local
        if self.surgery:
            token = features.local[:, 0] if has_global_token else features.embedding
            return surgery_scores(local, self.texts, token)
        if self.method is not None:
            return self.method.location_scores(local)
        return class_scores(local, self.texts)

    @torch.no_grad()
    def present(
        self,
        local: Float[Tensor, "windows locations dim"],
        embedding: Float[Tensor, "windows dim"] | None = None,
    ) -> Int64[Tensor, " present"] | None:
        """Classes that the method finds in an image: probability above one half, or the largest.

        It is the method's own answer to the task it was trained for, over the locations of all
        windows as if they were of one.

        Args:
            local: Of one image and of `presence_kind`, the mean tokens included where there are.
            embedding: Global embeddings of the windows; their mean stands for the image. Methods
                that are not fed them need none.

        Returns:
            Positions, ascending; None if all classes compete.
        """
        if self.method is None or self.presence_kind is None:
            return None
        locations = at_least_float32(local).flatten(0, 1)[None]
        labels = torch.empty(0, 0, dtype=torch.int8)
        whole = None if embedding is None else at_least_float32(embedding).mean(0, keepdim=True)
        scores = self.method.scores(Batch(locations, labels, embedding=whole))
        return self.method.found(scores)[0].nonzero().flatten()


@dataclass(frozen=True)
class ImageSystem:
    """A method that looks at whole images at their own size, however the others see them.

    It computes in the precision of the backbone's weights.

    Attributes:
        method: One that maps images, in evaluation mode, whose task is the classes.
        only_found: Whether only those classes compete that it finds.

    Raises:
        ValueError: The method does not map images, or does not find classes and should.
    """

    method: Method[Any]
    only_found: bool = False

    def __post_init__(self) -> None:
        title = self.method.settings.title
        if not self.method.maps_images:
            raise ValueError(f"{title} makes no maps of images")
        if self.only_found and not self.method.finds_classes():
            raise ValueError(f"{title} does not find classes; leave out only_found")

    @torch.no_grad()
    def look(
        self, view: View, device: str
    ) -> tuple[Float[Tensor, "1 classes"], Float[Tensor, "1 classes rows columns"]]:
        """Scores of the classes, and their maps.

        Args:
            view: Of the image.
            device: Where the method is.

        Raises:
            ValueError: The view was made without the whole image.
        """
        if view.whole is None:
            title = self.method.settings.title
            raise ValueError(f"{title} looks at whole images; the view of this one holds none")
        labels = torch.empty(0, 0, dtype=torch.int8)
        pixels = torch.from_numpy(view.whole).to(device)
        return self.method.maps(Batch(torch.empty(0, 0, 0), labels, pixels=pixels))


def class_scores(
    local: Float[Tensor, "windows locations dim"], texts: ClassTexts
) -> Float[Tensor, "windows classes locations"]:
    """Cosine of every location with every class, the largest of the class's phrasings.

    Args:
        local: Local features without the mean token, of any length.
        texts: Text features, of any length.

    Returns:
        Cosines in [-1, 1].
    """
    return best_phrasing(similarity_maps(local, texts.features), texts.classes)


def surgery_scores(
    local: Float[Tensor, "windows locations dim"],
    texts: ClassTexts,
    token: Float[Tensor, "windows dim"],
) -> Float[Tensor, "windows classes locations"]:
    r"""Feature surgery: what all classes share at a location is taken out of each one's score.

    With unit features :math:`z_l`, :math:`t_k` of the phrasings and :math:`g` of the class token,

    .. math::
        s_{kl} = w_k \, z_l \cdot t_k - \frac{1}{K} \sum_m w_m \, z_l \cdot t_m, \qquad
        w_k = \frac{K \exp(2 \, g \cdot t_k)}{\sum_m \exp(2 \, g \cdot t_m)}

    What is subtracted is the same for all classes: without `min_max`, only the weights matter.

    Args:
        local: Local features of the kind ``vv``, without the mean token, of any length.
        texts: Text features, of any length.
        token: Class token of a ViT or mean token of a ResNet, of any length.

    References:
        Li et al., "CLIP Surgery", arXiv:2304.05653, section 3.4; ``clip_feature_surgery`` of the
        authors, written there as a sum over channels.
    """
    sharpness = SURGERY_SHARPNESS * similarity_maps(token[:, None], texts.features)
    weights = sharpness.softmax(dim=1) * len(texts.features)
    weighted = weights * similarity_maps(local, texts.features)
    return best_phrasing(weighted - weighted.mean(dim=1, keepdim=True), texts.classes)


def min_max(
    scores: Float[Tensor, "windows classes locations"],
) -> Float[Tensor, "windows classes locations"]:
    """Scores of each class over one image stretched to [0, 1], each class by itself.

    Every class then has a location of value 1, whether the image shows it or not: the class that
    wins a pixel may change. A class with equal scores everywhere has 0.

    Args:
        scores: Of all windows of one image.
    """
    lowest = scores.amin(dim=(0, 2), keepdim=True)
    span = scores.amax(dim=(0, 2), keepdim=True) - lowest
    return (scores - lowest) / span.where(span > 0, 1.0)


def label_map(
    scores: Float[Tensor, "windows classes rows columns"],
    windows: Sequence[Window],
    canvas: tuple[int, int],
    size: tuple[int, int],
    *,
    logit_scale: float = 100.0,
    background: float | None = None,
    budget: int = BUDGET,
) -> LabelMap:
    """The class of every pixel: the one of the largest score, bilinearly drawn.

    Each window's grid is drawn to the window's pixels, windows that overlap are averaged, and the
    canvas is drawn to the size wanted; ``align_corners=False`` throughout.

    Args:
        scores: Grids of scores of one image.
        windows: Where on the canvas they lie; together they cover it.
        canvas: Height and width of the canvas.
        size: Height and width wanted.
        logit_scale: Multiplier of the scores in the softmax over classes.
        background: Pixels whose largest probability is below this are background; None for none.
        budget: Bytes that the rows drawn at once may take. It decides memory, not the result.

    Returns:
        Position of the class; with ``background``, 0 for background and 1 + position otherwise.
    """
    num_classes = scores.shape[1]
    scores = at_least_float32(scores)
    # rows of the canvas and of the result, and about as much again in between
    widths = size[1] + canvas[1] * max(1.0, canvas[0] / size[0])
    step = max(1, int(budget / (2 * num_classes * widths * scores.element_size())))
    kept = label_dtype(num_classes + int(background is not None))
    result = torch.empty(size, dtype=kept, device=scores.device)
    for start in range(0, size[0], step):
        stop = min(start + step, size[0])
        drawn = _draw(scores, windows, canvas, size, start, stop)
        largest, classes = _largest(drawn)
        if background is not None:
            total = drawn.sub_(largest).mul_(logit_scale).exp_().sum(dim=0)
            classes = torch.where(1 / total < background, 0, classes + 1)
        result[start:stop] = classes
    return result


def label_dtype(num_classes: int) -> torch.dtype:
    """In what a label map of so many classes is kept, background counted as one."""
    return torch.uint8 if num_classes <= MAX_CLASSES else torch.int32


def _largest(
    scores: Float[Tensor, "classes drawn width"],
) -> tuple[Float[Tensor, "drawn width"], Int64[Tensor, "drawn width"]]:
    """The largest score of every pixel, and the first class that has it; as ``scores.max(dim=0)``.

    Over the first axis that takes ten times as long as the largest score alone. So that is found
    for each block of classes, and only the best block of a pixel is looked through.
    """
    num_classes = len(scores)
    size = math.isqrt(num_classes)
    largest, block = torch.stack([own.amax(dim=0) for own in torch.split(scores, size)]).max(dim=0)
    inside = torch.arange(size, device=scores.device)[:, None, None]
    classes = (block * size + inside).clamp(max=num_classes - 1)  # the last block may be shorter
    best = scores.gather(0, classes).argmax(dim=0)
    return largest, block * size + best


def _draw(
    scores: Float[Tensor, "windows classes rows columns"],
    windows: Sequence[Window],
    canvas: tuple[int, int],
    size: tuple[int, int],
    start: int,
    stop: int,
) -> Float[Tensor, "classes drawn width"]:
    """Rows ``start`` to ``stop`` of the scores of all classes at the size wanted."""
    if canvas == size:
        return _draw_canvas(scores, windows, canvas, start, stop)
    low, high, _ = _sources(canvas[0], size[0], start, stop, scores.device)
    first, last = int(low[0]), int(high[-1]) + 1
    rows = _draw_canvas(scores, windows, canvas, first, last)
    return _stretch(rows, canvas[0], size, start, stop, first)


def _draw_canvas(
    scores: Float[Tensor, "windows classes rows columns"],
    windows: Sequence[Window],
    canvas: tuple[int, int],
    start: int,
    stop: int,
) -> Float[Tensor, "classes drawn width"]:
    """Rows of the canvas: the mean of the windows that lie there."""
    if len(windows) == 1:
        return _stretch(scores[0], scores.shape[2], canvas, start, stop)
    total = scores.new_zeros(scores.shape[1], stop - start, canvas[1])
    count = scores.new_zeros(stop - start, canvas[1])
    for own, window in zip(scores, windows, strict=True):
        above, below = max(start, window.top), min(stop, window.top + window.height)
        if above >= below:
            continue
        size = (window.height, window.width)
        part = _stretch(own, own.shape[1], size, above - window.top, below - window.top)
        rows = slice(above - start, below - start)
        columns = slice(window.left, window.left + window.width)
        total[:, rows, columns] += part
        count[rows, columns] += 1
    return total.div_(count)


def _stretch(
    rows: Float[Tensor, "classes rows columns"],
    height: int,
    size: tuple[int, int],
    start: int,
    stop: int,
    first: int = 0,
) -> Float[Tensor, "classes drawn width"]:
    """Rows ``start`` to ``stop`` of a bilinear resize to ``size``.

    Args:
        rows: Rows of the source from ``first`` on, as many as are needed.
        height: Number of rows of the whole source.
        size: Height and width after the resize.
        start: First row wanted.
        stop: End of the rows wanted.
        first: Which row of the source ``rows`` begins with.
    """
    low, high, share = _sources(height, size[0], start, stop, rows.device)
    blended = torch.lerp(rows[:, low - first], rows[:, high - first], share[:, None].to(rows))
    if rows.shape[2] == size[1]:
        return blended
    wanted = (stop - start, size[1])
    return F.interpolate(blended[None], wanted, mode="bilinear", align_corners=False)[0]


def _sources(
    source: int, target: int, start: int, stop: int, device: torch.device
) -> tuple[Int64[Tensor, " drawn"], Int64[Tensor, " drawn"], Float[Tensor, " drawn"]]:
    """Between which two source rows each target row lies, and how near to the second."""
    targets = torch.arange(start, stop, device=device, dtype=torch.float64)
    centres = ((targets + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    low = centres.long()
    return low, (low + 1).clamp(max=source - 1), centres - low


def segment_images(
    backbone: Backbone,
    views: Sequence[View],
    systems: Mapping[str, System | ImageSystem],
    rule: Rule,
    *,
    batch_size: int = 32,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "cpu",
    budget: int = BUDGET,
) -> Iterator[dict[str, LabelMap]]:
    """Label maps of images by several systems, at the images' original sizes.

    Features of a kind are computed once for all systems that look at it.

    Args:
        backbone: Frozen, on the device.
        views: The images, all windows of one size.
        systems: By name; their texts and methods on the device. Those of one method that looks at
            whole images share a look.
        rule: How scores become classes.
        batch_size: Windows a forward pass; images whose windows fit together share one.
        precision: In which the backbone computes.
        device: ``"cpu"`` or ``"cuda"``.
        budget: As for `label_map`.

    Yields:
        For each image, in order, the label map of each system, on the device.

    Raises:
        ValueError: If a system's kind is not the backbone's, windows do not fit its stride, or a
            view lacks the whole image that a system looks at.
    """
    of_features = {name: own for name, own in systems.items() if isinstance(own, System)}
    kinds = dict.fromkeys(kind for system in of_features.values() for kind in system.kinds)
    for batch in _batches(views, batch_size):
        pixels = torch.from_numpy(np.concatenate([view.pixels for view in batch]))
        features = {}
        for kind in kinds:
            chunks = torch.split(pixels, batch_size)
            parts = encode_batches(backbone, chunks, kind=kind, precision=precision, device=device)
            features[kind] = ImageFeatures(*map(torch.cat, zip(*parts, strict=True)))
        scores = {
            name: system.scores(
                features[system.kind], has_global_token=backbone.include_global_token
            )
            for name, system in of_features.items()
        }
        start = 0
        for view in batch:
            windows = slice(start, start + len(view.windows))
            start = windows.stop
            grid = backbone.grid(*view.pixels.shape[1:3])
            whole = view._replace(windows=(Window(0, 0, *view.size),), canvas=view.size)
            looks: dict[Method[Any], tuple[Tensor, Tensor]] = {}
            maps = {}
            for name, system in systems.items():
                classes = None
                if isinstance(system, ImageSystem):
                    if system.method not in looks:
                        looks[system.method] = system.look(view, device)
                    said, own = looks[system.method]
                    if system.only_found:
                        classes = system.method.found(said)[0].nonzero().flatten()
                    maps[name] = _decide(own, classes, whole, rule, budget)
                    continue
                if system.presence_kind is not None:
                    looked = features[system.presence_kind]
                    classes = system.present(looked.local[windows], looked.embedding[windows])
                own = scores[name][windows]
                own = own.reshape(*own.shape[:2], *grid)
                maps[name] = _decide(own, classes, view, rule, budget)
            yield maps


def _decide(
    scores: Float[Tensor, "windows classes rows columns"],
    classes: Int64[Tensor, " present"] | None,
    view: View,
    rule: Rule,
    budget: int,
) -> LabelMap:
    """Scores of one image to its label map, as the rule says; of some classes if they are named."""
    num_classes = scores.shape[1] + int(rule.background is not None)
    if classes is not None:
        scores = scores[:, classes]
    if rule.normalisation == "minmax":
        scores = min_max(scores.flatten(2)).reshape(scores.shape)
    labels = label_map(
        scores,
        view.windows,
        view.canvas,
        view.size,
        logit_scale=rule.logit_scale,
        background=rule.background,
        budget=budget,
    )
    if classes is None:
        return labels
    if rule.background is not None:
        classes = F.pad(classes + 1, (1, 0))
    return classes.to(label_dtype(num_classes))[labels.long()]


def _batches(views: Sequence[View], batch_size: int) -> Iterator[list[View]]:
    """Images whose windows fit one batch together; one that has more is by itself."""
    batch: list[View] = []
    for view in views:
        if batch and sum(len(one.windows) for one in batch) + len(view.windows) > batch_size:
            yield batch
            batch = []
        batch.append(view)
    if batch:
        yield batch
