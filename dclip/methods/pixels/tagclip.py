"""TagCLIP: classes by patches that listen to each other, and a second look at what they found."""

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import ImageGradients, require
from dclip.backbones.gradients import Positions, logit_scale_of
from dclip.data.pixels import normalise
from dclip.fitting.batches import Batch
from dclip.methods.method import Method, Task
from dclip.methods.pixels.settings import TagCLIPSettings
from dclip.methods.settings import MethodSettings
from dclip.precision import at_least_float32
from dclip.prompts import encode_class_names
from dclip.texts import words_beside

CROPS = 16
"""Second looks that go through CLIP together."""

TEXT_PATCHES = 76
"""Patches of an image that has, with its class token, as many tokens as a text of CLIP's."""

_INSIDE = 0.5  # where a stretched map is above this, its class is looked at again
_UNSEEN = -1000.0  # added to the logit of a patch that the class token must not see


class Look(NamedTuple):
    """What the first look at an image says.

    Attributes:
        image: Normalised, as it went through CLIP.
        grid: Rows and columns of its patches.
        coarse: Probability of every text at every patch, from the last block's own values.
        affinity: How much each patch (row) takes over of each other.
        refined: The same after both refinements; no probability any more.
    """

    image: Float[Tensor, "1 3 height width"]
    grid: tuple[int, int]
    coarse: Float[Tensor, "patches texts"]
    affinity: Float[Tensor, "patches patches"]
    refined: Float[Tensor, "patches texts"]


class SecondLook(NamedTuple):
    """What is looked at again for some classes.

    Attributes:
        classes: Which, ascending.
        crops: The box of each, stretched to CLIP's size.
        allowed: Patches of these that the class token may see, row by row.
    """

    classes: list[int]
    crops: list[Float[Tensor, "1 3 side side"]]
    allowed: list[Bool[Tensor, " patches"]]


class TagCLIP(Method[TagCLIPSettings]):
    r"""Local to global, training-free, with class-wise re-identification.

    An image goes through CLIP at its own size, with bilinear positions; in the last block every
    token keeps its own value. With texts :math:`t` of the classes and of background words,

    .. math::
        P_{it} = \mathrm{softmax}_t(s \cos(v_i, t)), \qquad
        R = A (B \odot P), \qquad \ell_c = \max_i R_{ic}

    :math:`A` is the mean attention of some blocks between patches, kept where enough blocks agree
    that it is high (:func:`agreed_attention`); :math:`B_c` the boxes around the parts of the map
    :math:`(A P)_c` (:func:`class_boxes`). Classes that stand out are cut out of the image and
    looked at again by the class token: their score is the mean of :math:`\ell_c` and its softmax.

    Args:
        settings: Hyper-parameters.
        task: Classes, with the backbone. Display names are what they are called.

    Raises:
        ValueError: There is no backbone, its image tower is no ViT of two blocks or more, or there
            is one class with nothing to compare it with.

    References:
        Lin et al., "TagCLIP: A Local-to-Global Framework to Enhance Open-Vocabulary Multi-Label
        Classification of CLIP Without Training", AAAI 2024, arXiv:2312.12828.
    """

    Settings: ClassVar[type[MethodSettings]] = TagCLIPSettings
    gives_probabilities = False
    maps_images = True

    def __init__(self, settings: TagCLIPSettings, task: Task) -> None:
        super().__init__(settings, task)
        tower = self.tower.image_tower
        assert tower is not None  # as it offers attention
        if tower.blocks < 2:
            raise ValueError(
                f"{settings.title} needs an image tower of two blocks or more: the attention of "
                "those before the last says which patches belong together"
            )
        if settings.votes is not None and settings.votes > tower.blocks:
            raise ValueError(
                f"{settings.title}: {settings.votes} votes were asked for of the {tower.blocks} "
                "blocks of the image tower; ask for as many at most"
            )
        self._blocks = tower.blocks
        self._crop_size()  # which may not fit the patches
        self._texts: Tensor | None = None  # encoded when they are first asked for
        if len(self.words()) == 1:
            raise ValueError(
                f"{settings.title} compares texts with each other, and there is one class without "
                "background_words: give some, or a second class"
            )

    @property
    def tower(self) -> ImageGradients:
        """The frozen CLIP.

        Raises:
            ValueError: The task has none, or it does not give its attention.
        """
        title = self.settings.title
        if self.task.backbone is None:
            raise ValueError(
                f"{title} looks into CLIP: give it a task that has the backbone, as Task.of makes "
                "it"
            )
        return require(self.task.backbone, "attention", for_=title)

    def words(self) -> tuple[str, ...]:
        """Names of the classes, then the background words that are none of them."""
        names = self.task.class_names
        return (*names, *words_beside(self.settings.background_words, names))

    def texts(self) -> Float[Tensor, "texts dim"]:
        """Unit features of :meth:`words`."""
        backbone = self.task.backbone
        assert backbone is not None
        device = self.task.pairs.device
        if self._texts is None:
            templates = self.settings.all_templates()
            found = encode_class_names(backbone, self.words(), templates=templates)
            self._texts = at_least_float32(found)
        if self._texts.device != device:
            self._texts = self._texts.to(device)
        return self._texts

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """Texts of the classes."""
        return self.texts()[: len(self.task.class_names)]

    def with_task(self, task: Task) -> Method[TagCLIPSettings]:
        """The same with other classes, whose texts are encoded when they are asked for."""
        backbone = task.backbone if task.backbone is not None else self.task.backbone
        return TagCLIP(self.settings, replace(task, backbone=backbone)).eval()

    @torch.no_grad()
    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Scores in [0, 1], of classes that were looked at twice the mean of both."""
        return torch.stack([self.score(self.look(image)) for image in self._images(batch)])

    @torch.no_grad()
    def maps(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "images classes"], Float[Tensor, "images classes rows columns"]]:
        """Scores, and the refined maps of the classes on the patches of the images."""
        looks = [self.look(image) for image in self._images(batch)]
        count = len(self.task.class_names)
        maps = [own.refined[:, :count].T.reshape(count, *own.grid) for own in looks]
        return torch.stack([self.score(own) for own in looks]), torch.stack(maps)

    def found(self, scores: Float[Tensor, "images classes"]) -> Bool[Tensor, "images classes"]:
        """Classes above a share of the way from an image's lowest score to its highest, or that."""
        low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
        found = scores > low + self.settings.threshold * (high - low)
        return found.scatter(1, scores.argmax(1, keepdim=True), True)

    def _images(self, batch: Batch) -> list[Float[Tensor, "1 3 height width"]]:
        """The images of a batch as CLIP takes them, one by one, none with too many patches."""
        backbone = self.task.backbone
        assert backbone is not None
        assert batch.pixels is not None  # as it is what is fed
        images = normalise(batch.pixels, backbone.mean, backbone.std)
        rows, columns = backbone.grid(*images.shape[-2:])
        most = self.settings.most_patches
        if rows * columns > most:
            share = (most / (rows * columns)) ** 0.5
            rows = max(1, int(rows * share))
            columns = min(max(1, int(columns * share)), most // rows)
            size = (rows * backbone.stride, columns * backbone.stride)
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return [image[None] for image in images]

    @torch.no_grad()
    def look(self, image: Float[Tensor, "1 3 height width"]) -> Look:
        """The first look: coarse probabilities of the patches, and both refinements.

        Args:
            image: Normalised, of any size that the backbone's grid takes.
        """
        own, backbone = self.settings, self.task.backbone
        assert backbone is not None
        grid = backbone.grid(*image.shape[-2:])
        is_text = own.as_text_at_76 and grid[0] * grid[1] == TEXT_PATCHES
        features = self.tower.encode_with_prompts(
            image,
            attention=self._blocks,
            heads="mean",
            own_values=not is_text,
            positions=self._positions(),
        )
        coarse = self._chances(features.local[0])
        attention = [at_least_float32(each[0, 1:, 1:]) for each in features.attention]
        votes = own.votes or -(-self._blocks // 3)
        affinity = agreed_attention(attention, mean_of=own.affinity_blocks, votes=votes)
        inside = class_boxes(
            (affinity @ coarse).T.reshape(-1, *grid), drop_last=own.drop_last_row_col
        )
        refined = affinity @ (inside.flatten(1).T * coarse)
        return Look(image, grid, coarse, affinity, refined)

    def _chances(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows texts"]:
        """Softmax over all texts of scaled cosines."""
        scale = logit_scale_of(self.task.backbone)
        unit, texts = F.normalize(at_least_float32(features), dim=-1), self.texts()
        return (scale * (unit @ texts.to(unit).T)).softmax(-1)

    @torch.no_grad()
    def score(self, look: Look) -> Float[Tensor, " classes"]:
        """Scores of the classes after the second look at those that stand out."""
        local = self.local(look)
        again = self.second_look(look, (local > self.bound(look)).nonzero().flatten())
        if again.classes:
            classes = torch.tensor(again.classes, device=local.device)
            seen = self._chances(self.reidentify(again))
            chances = seen.gather(1, classes[:, None])[:, 0]
            local[classes] = torch.lerp(local[classes], chances, self.settings.crop_weight)
        return local

    def local(self, look: Look) -> Float[Tensor, " classes"]:
        """What the patch that shows a class most says of it."""
        return look.refined[:, : len(self.task.class_names)].amax(0)

    def bound(self, look: Look) -> Float[Tensor, ""]:
        """Above which classes are looked at again: between the extremes of all texts."""
        low, high = look.refined.min(), look.refined.max()
        return low + self.settings.threshold * (high - low)

    def second_look(self, look: Look, candidates: Int64[Tensor, " some"]) -> SecondLook:
        """The boxes of some classes, cut from the image.

        Args:
            look: The first look.
            candidates: Classes, ascending. One whose box is empty is left out; by ``early_return``
                those that follow, too.
        """
        own, (rows, columns) = self.settings, look.grid
        side, stride = self._crop_size(), look.image.shape[-1] // columns
        grid = (side // stride, side // stride)
        maps = look.refined[:, candidates].T.reshape(-1, rows, columns)
        again = SecondLook([], [], [])
        for candidate, inside in zip(
            candidates.tolist(), (_stretched(maps) > _INSIDE).cpu(), strict=True
        ):
            used_rows = inside.any(1).nonzero().flatten()
            used_columns = inside.any(0).nonzero().flatten()
            top, bottom = int(used_rows[0]), int(used_rows[-1]) + 1
            left, right = int(used_columns[0]), int(used_columns[-1]) + 1
            if own.drop_last_row_col:
                bottom, right = min(bottom, rows - 1), min(right, columns - 1)
            if top == bottom or left == right:
                if own.early_return:
                    break
                continue
            shown = inside[top:bottom, left:right].float()[None, None]
            again.allowed.append(F.interpolate(shown, grid, mode="nearest").flatten() > 0)
            box = look.image[..., top * stride : bottom * stride, left * stride : right * stride]
            again.crops.append(
                F.interpolate(box, (side, side), mode="bilinear", align_corners=False)
            )
            again.classes.append(candidate)
        return again

    def reidentify(self, again: SecondLook) -> Float[Tensor, "crops dim"]:
        """What the class token makes of each crop by the patches it may see; not normalised."""
        parts = []
        for start in range(0, len(again.crops), CROPS):
            crops = torch.cat(again.crops[start : start + CROPS])
            seen = torch.stack(again.allowed[start : start + CROPS]).to(crops.device)
            tokens = 1 + seen.shape[1]
            mask = crops.new_zeros(len(crops), tokens, tokens)
            mask[:, 0, 1:].masked_fill_(~seen, _UNSEEN)
            features = self.tower.encode_with_prompts(crops, mask=mask, positions=self._positions())
            parts.append(features.embedding)
        return torch.cat(parts)

    def _positions(self) -> Positions:
        """How positions are resized."""
        return "bilinear float16" if self.settings.float16_positions else "bilinear"

    def _crop_size(self) -> int:
        """Side of a crop in pixels."""
        backbone = self.task.backbone
        assert backbone is not None
        built_for = getattr(backbone, "native_grid", None)
        usual = backbone.resolution if built_for is None else built_for[0] * backbone.stride
        side = self.settings.crop_size or usual
        backbone.grid(side, side)
        return side


def agreed_attention(
    attention: list[Float[Tensor, "patches patches"]], *, mean_of: int | None, votes: int
) -> Float[Tensor, "patches patches"]:
    """The mean attention of blocks before the last, where enough of all blocks say it is high.

    A block votes for what is above its own mean; one whose attention is the same everywhere, as
    that of a single patch, tells nothing apart and votes for all.

    Args:
        attention: Of all blocks, first to last; a mean over heads, without the class token, and not
            made to sum to 1 again.
        mean_of: Of how many blocks before the last to take the mean, or as many as there are; None
            for all of them.
        votes: How many blocks have to agree.
    """
    count = torch.zeros_like(attention[0])
    for own in attention:
        count += (own > own.mean()) | (own.min() == own.max())
    used = attention[:-1] if mean_of is None else attention[:-1][-mean_of:]
    return torch.stack(used).mean(0) * (count >= votes)


def class_boxes(
    maps: Float[Tensor, "classes rows columns"], *, drop_last: bool = False
) -> Bool[Tensor, "classes rows columns"]:
    """Where the boxes lie around the parts of each map that are above its mean.

    A map is stretched to 0..1 and cut to 256 steps, as its mean is; parts are connected across
    corners, too. A map that is the same everywhere is one part.

    Args:
        maps: Of each class.
        drop_last: Let boxes end before the last row and the last column.
    """
    stretched = _stretched(maps)
    level = (255 * stretched.mean((1, 2), keepdim=True)).floor()
    is_constant = maps.amax((1, 2), keepdim=True) == maps.amin((1, 2), keepdim=True)
    return boxes_around_parts(
        ((255 * stretched).floor() > level) | is_constant, drop_last=drop_last
    )


def boxes_around_parts(
    active: Bool[Tensor, "maps rows columns"], *, drop_last: bool = False
) -> Bool[Tensor, "maps rows columns"]:
    """All cells of the boxes around the connected parts of each map, corners being connected.

    Args:
        active: Cells of the parts.
        drop_last: Let boxes end before the last row and the last column.

    Example:
        >>> cells = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
        >>> boxes_around_parts(cells[None])[0].int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 1],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    count, rows, columns = active.shape
    which, row, column = active.nonzero(as_tuple=True)
    top, left, bottom, right = part_boxes(active)[which, row, column].T
    if drop_last:
        bottom, right = bottom.clamp(max=rows - 1), right.clamp(max=columns - 1)
    # a box is the double sum over its four corners
    corners = torch.zeros(count, rows + 1, columns + 1, dtype=torch.int32, device=active.device)
    for first, second, sign in (
        (top, left, 1),
        (top, right, -1),
        (bottom, left, -1),
        (bottom, right, 1),
    ):
        signs = torch.full_like(first, sign, dtype=torch.int32)
        corners.index_put_((which, first, second), signs, accumulate=True)
    return corners.cumsum(1).cumsum(2)[:, :rows, :columns] > 0


def part_boxes(active: Bool[Tensor, "maps rows columns"]) -> Int64[Tensor, "maps rows columns 4"]:
    """The box around the connected part that each cell belongs to: top, left, bottom, right.

    The last two are outside. Cells that are not active have -1 throughout. What a cell knows of its
    part grows by its neighbours until nothing changes.

    Args:
        active: Cells of the parts; corners connect.
    """
    _, rows, columns = active.shape
    row = torch.arange(rows, device=active.device, dtype=torch.float32)[:, None]
    column = torch.arange(columns, device=active.device, dtype=torch.float32)
    own = torch.stack([each.expand(rows, columns) for each in (-row, -column, row + 1, column + 1)])
    outside = ~active[:, None]
    known = own.expand(len(active), -1, -1, -1).masked_fill(outside, -torch.inf)
    while True:
        grown = F.max_pool2d(known, 3, stride=1, padding=1).masked_fill(outside, -torch.inf)
        if torch.equal(grown, known):
            break
        known = grown
    signs = known.new_tensor([-1.0, -1.0, 1.0, 1.0])[:, None, None]
    return (known * signs).masked_fill(outside, -1).long().permute(0, 2, 3, 1)


def _stretched(maps: Float[Tensor, "maps rows columns"]) -> Float[Tensor, "maps rows columns"]:
    """Each map from 0 to 1; one that is the same everywhere is 1."""
    low = maps.amin((1, 2), keepdim=True)
    span = maps.amax((1, 2), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span, 1.0)
