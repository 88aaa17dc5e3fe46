r"""Local features to scores and maps, with all that the class names decide made beforehand.

DCLIP's text projector, BatchNorm in it, sees nothing but the class texts, so its output is a
constant. With unit projected texts :math:`t^+_c, t^-_c`, the image projector :math:`P`, unit
locations :math:`z_l = P x_l / |P x_l|` and the scales :math:`a, b`, both of its forms are

.. math::
    p_c = \sigma\big(s(t^+_c) - \rho \, s(t^-_c) + o_c\big), \qquad
    s(t) = b \sum_l \mathrm{softmax}_l(a \, z_l \cdot t) \, a \, z_l \cdot t

and at a single location :math:`p_{cl} = \sigma(a b \, z_l \cdot (t^+_c - \rho \, t^-_c) + o_c)`.
Where the checkpoint is calibrated (`dclip.calibration`), the log-odds of :math:`p_c` are first
scaled and shifted, those of :math:`p_{cl}` are not. Pairs have :math:`\rho = 1, o = 0`; anchored
projectors have one :math:`t^-` for all classes and :math:`o_c = \rho m - b_c`
(`dclip.model.DCLIP`).
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.calibration import scaling_of
from dclip.checkpoints.calibration import Calibration
from dclip.exports.description import ExportError
from dclip.fitting.batches import Batch
from dclip.logits import Sigmoid, sigmoid_scores, similarity_maps, zero_shot_scores
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Method
from dclip.prompts import ClassTexts

Said = tuple[Float[Tensor, "images classes"], Float[Tensor, "images classes rows columns"]]
"""Scores, and maps."""


class Head(nn.Module):
    """Base of all heads.

    Args:
        grid: Rows and columns of the locations.
        has_mean_token: Whether the mean of the locations precedes them: it counts for scores, and
            is in no map.

    Attributes:
        form: Name of what it computes; empty where only a graph of it can be kept.
        needs_embedding: Whether it is fed CLIP's global embedding beside the local features.
        is_calibrated: Whether scores are calibrated probabilities.
        scores: As in `dclip.exports.description.Description`.
        maps: Likewise.
    """

    form: str = ""
    needs_embedding: bool = False
    is_calibrated: bool = False
    scores: Literal["probability", "share", "score"] = "probability"
    maps: Literal["probability", "cosine"] = "probability"

    def __init__(self, grid: tuple[int, int], *, has_mean_token: bool) -> None:
        super().__init__()
        self.grid, self.has_mean_token = grid, has_mean_token

    def places(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images places dim"]:
        """Locations of the grid."""
        return local[:, 1:] if self.has_mean_token else local

    def calibrate(self, known: Calibration | None) -> None:
        """Let scores be calibrated probabilities; maps stay as they are.

        Args:
            known: Of these classes; None leaves scores as they are.
        """
        if known is None:
            return
        scaling = scaling_of(known)
        self.gain: Tensor
        self.shift: Tensor
        self.register_buffer("gain", torch.tensor(scaling.scale, dtype=torch.float32))
        self.register_buffer("shift", (scaling.class_offsets + scaling.offset).float())
        self.scores, self.is_calibrated = "probability", True

    def on_grid(
        self, values: Float[Tensor, "images classes places"]
    ) -> Float[Tensor, "images classes rows columns"]:
        """Values of the locations in rows and columns."""
        placed: Tensor = values.unflatten(2, self.grid)  # type: ignore[no-untyped-call]
        return placed


class FoldedHead(Head):
    """DCLIP without texts: the image projector, and what the text projector made of them.

    Args:
        image_projector: From CLIP's space to ours.
        presence: Unit projected text of each class.
        absence: The same of its absence; one for all classes, or one each.
        share: How much absence counts.
        offset: Added to the logit of each class.
        local_scale: Multiplier of the cosine at each location.
        pooled_scale: Multiplier of the pooled cosine.
        grid: Rows and columns of the locations.
        has_mean_token: Whether the mean token precedes them.
    """

    form = "dclip"

    def __init__(
        self,
        image_projector: Float[Tensor, "output_dim dim"],
        presence: Float[Tensor, "classes output_dim"],
        absence: Float[Tensor, "absences output_dim"],
        share: Float[Tensor, ""],
        offset: Float[Tensor, " classes"],
        *,
        local_scale: float,
        pooled_scale: float,
        grid: tuple[int, int],
        has_mean_token: bool,
    ) -> None:
        super().__init__(grid, has_mean_token=has_mean_token)
        self.local_scale, self.pooled_scale = local_scale, pooled_scale
        self.image_projector: Tensor
        self.presence: Tensor
        self.absence: Tensor
        self.share: Tensor
        self.offset: Tensor
        kept = {
            "image_projector": image_projector,
            "presence": presence,
            "absence": absence,
            "share": share,
            "offset": offset,
        }
        for name, value in kept.items():
            self.register_buffer(name, value.detach().float().cpu().clone())

    @classmethod
    def of(
        cls, method: DCLIPMethod, grid: tuple[int, int], *, has_mean_token: bool
    ) -> "FoldedHead":
        """That of trained projectors, asked of the classes of their task.

        Args:
            method: Of the aggregation ``project_then_pool``.
            grid: Rows and columns of the locations.
            has_mean_token: Whether the mean token precedes them.
        """
        model, pairs = method.model, method.task.pairs.float()
        negatives, positives = pairs.chunk(2)
        with torch.no_grad():
            presence = F.normalize(model.project_texts(positives, statistics="running"), dim=-1)
            if model.is_anchored:
                absence, share = F.normalize(model.absent[None], dim=-1), model.absent_share
                offset = share * model.absent_mean - model.bias
            else:
                absence = F.normalize(model.project_texts(negatives, statistics="running"), dim=-1)
                share, offset = torch.ones(()), torch.zeros(len(presence))
        return cls(
            model.image_projector.output.weight,
            presence,
            absence,
            share,
            offset,
            local_scale=model.local_scale,
            pooled_scale=model.pooled_scale,
            grid=grid,
            has_mean_token=has_mean_token,
        )

    def forward(
        self,
        local: Float[Tensor, "images locations dim"],
        embedding: Float[Tensor, "images dim"] | None = None,  # noqa: ARG002 - as all heads
    ) -> Said:
        """Probability of each class, and of each class at each place."""
        unit = F.normalize(local @ self.image_projector.mT, dim=-1)
        similarity = self.local_scale * (unit @ torch.cat([self.presence, self.absence]).mT)
        pooled = self.pooled_scale * (similarity.softmax(dim=1) * similarity).sum(dim=1)
        count = len(self.presence)
        present, absent = pooled[:, :count], pooled[:, count:]
        evidence = present - self.share * absent + self.offset
        if self.is_calibrated:
            evidence = self.gain * evidence + self.shift
        scores = torch.sigmoid(evidence)
        both = self.presence - self.share * self.absence
        odds = self.local_scale * self.pooled_scale * (self.places(unit) @ both.mT) + self.offset
        return scores, self.on_grid(odds.sigmoid().mT)


class FrozenHead(Head):
    """CLIP alone, for class names of any choice.

    Args:
        texts: Unit text of each class.
        sigmoid: Of the CLIP, where it was trained by one.
        grid: Rows and columns of the locations.
        has_mean_token: Whether the mean token precedes them.
    """

    form = "clip"
    needs_embedding = True
    maps = "cosine"

    def __init__(
        self,
        texts: Float[Tensor, "classes dim"],
        sigmoid: Sigmoid | None,
        *,
        grid: tuple[int, int],
        has_mean_token: bool,
    ) -> None:
        super().__init__(grid, has_mean_token=has_mean_token)
        self.sigmoid = sigmoid
        self.scores = "share" if sigmoid is None else "probability"
        self.texts: Tensor
        self.register_buffer("texts", F.normalize(texts.detach().float().cpu(), dim=-1))

    def forward(
        self, local: Float[Tensor, "images locations dim"], embedding: Float[Tensor, "images dim"]
    ) -> Said:
        """Share or probability of each class, and the cosine of each place with its text."""
        if self.sigmoid is None:
            scores = zero_shot_scores(embedding, self.texts).softmax(dim=1)
        else:
            scores = sigmoid_scores(embedding, self.texts, self.sigmoid)
        return scores, self.on_grid(similarity_maps(self.places(local), self.texts))


class MethodHead(Head):
    """Any method that is fed features, as it is.

    Where it does not tell probabilities of locations, maps are cosines with CLIP's texts.

    Args:
        method: Trained, in evaluation mode.
        grid: Rows and columns of the locations.
        has_mean_token: Whether the mean token precedes them.

    Raises:
        ExportError: It looks at images itself.
    """

    def __init__(self, method: Method[Any], grid: tuple[int, int], *, has_mean_token: bool) -> None:
        super().__init__(grid, has_mean_token=has_mean_token)
        require_features(method)
        self.method = method
        self.needs_embedding = "embedding" in method.settings.scoring_feeds()
        self.scores = "probability" if method.tells_probabilities() else "score"
        self.maps = "probability" if method.locates() else "cosine"
        self.pairs: Tensor
        self.texts: Tensor
        # buffers, so that they are kept with the weights
        self.register_buffer("pairs", method.task.pairs.float())
        self.register_buffer("texts", method.task.texts.features.float())
        owners = method.task.texts.classes.tolist()
        # phrasings of each class, as numbers: values of tensors decide nothing in a graph
        self.phrasings = [
            [row for row, owner in enumerate(owners) if owner == column]
            for column in range(len(method.task.class_names))
        ]

    def forward(
        self,
        local: Float[Tensor, "images locations dim"],
        embedding: Float[Tensor, "images dim"] | None = None,
    ) -> Said:
        """What the method says of each class, and what it or CLIP says of each place."""
        task = self.method.task
        texts = ClassTexts(self.texts, task.texts.classes)
        method = self.method.with_task(replace(task, pairs=self.pairs, texts=texts))
        labels = torch.empty(0, 0, dtype=torch.int8)
        batch = Batch(local, labels, embedding=embedding)
        if self.is_calibrated:
            scores = torch.sigmoid(self.gain * method.evidence(batch) + self.shift)
        else:
            scores = method.scores(batch)
        places = self.places(local)
        odds = method.location_logits(places) if self.maps == "probability" else None
        if odds is not None:
            return scores, self.on_grid(odds.sigmoid())
        cosines = similarity_maps(places, self.texts)
        best = [cosines[:, rows].amax(dim=1) for rows in self.phrasings]
        return scores, self.on_grid(torch.stack(best, dim=1))


def require_features(method: Method[Any]) -> None:
    """Refuse a method that cannot do with features of images.

    Raises:
        ExportError: It looks at images itself.
    """
    if method.settings.sees_images():
        raise ExportError(
            f"{method.settings.name} looks at images itself, through its own pass of CLIP, and "
            "cannot be exported; a method on local features can, such as dclip"
        )


def head_of(
    method: Method[Any], grid: tuple[int, int], *, has_mean_token: bool
) -> FoldedHead | MethodHead:
    """A trained method as a head: folded where it is DCLIP, else as it is.

    Args:
        method: In evaluation mode, on the CPU.
        grid: Rows and columns of the locations.
        has_mean_token: Whether the mean token precedes them.

    Raises:
        ExportError: It looks at images itself.
    """
    if type(method) is DCLIPMethod and method.model.aggregation == "project_then_pool":
        return FoldedHead.of(method, grid, has_mean_token=has_mean_token)
    return MethodHead(method, grid, has_mean_token=has_mean_token)
