"""Projectors of one trial, or of several that train together: weights, objective, state."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from dclip.batches import FeatureSource, clean_batches
from dclip.logits import pair_logits, pool_locations, pooled_pair_logits, presence_probability
from dclip.losses import mfi_loss
from dclip.losses.asymmetric import summed_asymmetric_loss
from dclip.metrics import inter_class_cosine
from dclip.model import DCLIP, DCLIPOutput
from dclip.projectors import ProjectorSizes
from dclip.recipe import Recipe

MAY_DIFFER = frozenset({"mfi_weight", "redundancy_weight", "output_dim"})
"""Fields of the recipe in which trials that train together may differ; seeds may, too."""


RIDGE = 1e-4
"""Ridge of the aligned start, as a share of the mean square length of the texts."""


class Losses(NamedTuple):
    """The objective and its two terms, of each trial.

    Attributes:
        total: What is minimised: weighted sum of the terms.
        asl: Asymmetric loss, reduced as the recipe says.
        mfi: Mutual-feature-information loss, reduced as the recipe says.
    """

    total: Float[Tensor, "*trials"]
    asl: Float[Tensor, "*trials"]
    mfi: Float[Tensor, "*trials"]


def build_model(recipe: Recipe, embed_dim: int) -> DCLIP:
    """Projectors of the recipe's sizes for a backbone of this width, with PyTorch's weights.

    Args:
        recipe: Source of the projector sizes and of the order of pooling.
        embed_dim: Width D of the backbone's joint space.
    """
    sizes = ProjectorSizes.for_embed_dim(embed_dim, recipe.output_dim)
    if recipe.hidden_dim is not None:
        sizes = ProjectorSizes(embed_dim, recipe.hidden_dim, sizes.output_dim)
    return DCLIP(sizes, aggregation=recipe.aggregation)


def initial_model(recipe: Recipe, texts: Float[Tensor, "pairs dim"], *, seed: int) -> DCLIP:
    r"""Projectors to start training from; equal seeds give equal weights.

    With ``initial="random"``, as published, weights are PyTorch's: uniform in
    :math:`\pm 1 / \sqrt{\text{fan-in}}`. The two projectors then have nothing in common, what CLIP
    knows of images and texts is lost, and every class has to be found again; now and then one is
    not. With ``initial="aligned"`` only the text projector f is PyTorch's. The image projector is a
    random orthonormal R, which keeps CLIP's cosines up to chance, with the smallest change (by
    ridge regression) that carries every text t to where the text projector carries it,
    :math:`W t \propto f(t)`, and is as long as PyTorch's, so that steps are as bold.

    Args:
        recipe: Source of ``initial`` and of the sizes.
        texts: Text features of the prompt pairs.
        seed: Seed of the weights; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(recipe, texts.shape[1])
        if recipe.initial == "aligned":
            _align(model, texts.detach().cpu().double())
    return model


@torch.no_grad()
def _align(model: DCLIP, texts: Float64[Tensor, "pairs dim"]) -> None:
    """Let the image projector carry texts to where the text projector does."""
    weight = model.image_projector.output.weight
    projected = model.project_texts(texts.float(), statistics="running").double()
    start = torch.nn.init.orthogonal_(torch.empty_like(weight)).double()
    carried = texts @ start.T
    gram = texts @ texts.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())  # in place: it is large
    missing = projected * (carried.norm() / projected.norm()) - carried
    aligned = start + missing.T @ torch.linalg.solve(gram, texts)
    weight.copy_(aligned * (weight.norm() / aligned.norm()))


def objective(
    output: DCLIPOutput,
    labels: Shaped[Tensor, "images classes"],
    recipe: Recipe,
    *,
    mfi_weight: float | Float[Tensor, "*trials"] | None = None,
    redundancy_weight: float | Float[Tensor, "*trials"] | None = None,
    known: int | None = None,
    workers: int = 1,
) -> Losses:
    r""":math:`w\, L_{ASL} + \alpha\, L_{MFI}` of one batch, or of a worker's share of it.

    Args:
        output: Logits and projected texts of the batch, of one trial or of several.
        labels: 0, 1, or -1 for unknown; not checked here.
        recipe: Weights, reductions and forms of both losses.
        mfi_weight: Weight of MFI in each trial; left out: the recipe's.
        redundancy_weight: Weight of MFI's off-diagonal terms in each; left out: the recipe's.
        known: Number of known labels in the whole batch; left out: in ``labels``. Only the mean
            reduction uses it.
        workers: Number of workers that share the batch. MFI, which all of them compute, is divided
            by it, so that the *sum* of their objectives is the objective of the whole batch.

    Returns:
        The objective and its terms.
    """
    asl = summed_asymmetric_loss(
        output.pair_logits,
        labels,
        gamma_neg=recipe.gamma_neg,
        gamma_pos=recipe.gamma_pos,
        clip=recipe.clip,
    )
    if recipe.asl_reduction == "mean":
        asl = asl / max(1, int((labels >= 0).sum()) if known is None else known)
    mfi = mfi_loss(
        output.text_features,
        redundancy_weight=recipe.redundancy_weight
        if redundancy_weight is None
        else redundancy_weight,
        scope=recipe.mfi_scope,
        gram=recipe.mfi_gram,
        reduction=recipe.mfi_reduction,
    )
    mfi = mfi / workers
    weight = recipe.mfi_weight if mfi_weight is None else mfi_weight
    return Losses(recipe.asl_weight * asl + weight * mfi, asl, mfi)


class Training:
    """Projectors of trials that train together, their optimizer, and how far they are.

    Trials of one ``output_dim`` are one batched computation, on weights stacked along a first
    axis; each ends as it would alone, up to the order of summation.

    Args:
        recipes: Hyper-parameters of each trial; they differ in :data:`MAY_DIFFER` alone.
        texts: Text features of the prompt pairs, negatives first, unnormalised.
        seeds: Seed of the initial weights of each trial.
        device: Where weights live.

    Attributes:
        recipes: As given.
        texts: As given, on the device.
        recipe: What all trials have in common (and the first one's other fields).
        epoch: Number of epochs done.
        step: Number of batches done in the epoch begun.
        diverged: Trials whose objective left the finite numbers, and in which epoch and step, both
            from 1. They keep their place in the computation, where they touch no other trial, but
            are out: they are scored no more.

    Raises:
        ValueError: There is no trial, the numbers of recipes and seeds differ, or recipes differ
            in fields that must be common.

    Example:
        >>> training = Training([Recipe()], torch.randn(6, 64), seeds=[0])
        >>> training.model().sizes
        ProjectorSizes(embed_dim=64, hidden_dim=48, output_dim=32)
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        texts: Float[Tensor, "pairs dim"],
        *,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if not recipes or len(recipes) != len(seeds):
            raise ValueError(f"{len(recipes)} recipes and {len(seeds)} seeds are no set of trials")
        if unlike := common_fields_that_differ(recipes):
            raise ValueError(
                f"trials that train together must agree in {', '.join(unlike)}; they may differ in "
                + ", ".join(sorted(MAY_DIFFER))
            )
        self.recipes, self.recipe, self.device = tuple(recipes), recipes[0], torch.device(device)
        self.texts = texts.to(self.device)
        self.epoch = self.step = 0
        self.diverged: dict[int, tuple[int, int]] = {}
        self._sums = torch.zeros(len(recipes), 3, dtype=torch.float64, device=self.device)
        self._finite = torch.zeros(len(recipes), dtype=torch.int64, device=self.device)
        models = [
            initial_model(recipe, texts, seed=seed)
            for recipe, seed in zip(recipes, seeds, strict=True)
        ]
        dims = [model.sizes.output_dim for model in models]
        self._stacks = [
            _Stack(models, [trial for trial, own in enumerate(dims) if own == dim], recipes, device)
            for dim in sorted(set(dims))
        ]
        stacked = torch.tensor([trial for stack in self._stacks for trial in stack.trials])
        self._order = stacked.argsort().to(self.device)
        self.weights = [weight for stack in self._stacks for weight in stack.weights.values()]
        self.optimizer = _build_optimizer(self.weights, self.recipe)
        self._average = self._copy() if self.recipe.ema_decay is not None else None
        self._averaged = 0  # steps that are in it
        self._best = self._copy() if self.recipe.selection == "best_on_val" else None
        self._best_map = torch.full((len(recipes),), -math.inf, dtype=torch.float64)
        self._best_epoch = torch.zeros(len(recipes), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.recipes)

    def __repr__(self) -> str:
        trials = f"{len(self)} trials" if len(self) > 1 else "1 trial"
        pairs, dim = self.texts.shape
        return (
            f"Training({trials} of {pairs // 2} classes in {dim} dimensions, epoch {self.epoch} of "
            f"{self.recipe.epochs}, preset {self.recipe.preset}, on {self.device})"
        )

    def forward(
        self,
        local: Float[Tensor, "images locations dim"],
        dropped: Bool[Tensor, "images locations"] | None = None,
    ) -> list[DCLIPOutput]:
        """Output of every stack of trials, in the order of their output dimension."""
        if self.recipe.aggregation == "pool_then_project":
            pooled = pool_locations(local, self.texts, dropped=dropped)
            return [stack.forward_pooled(pooled, self.texts) for stack in self._stacks]
        return [stack.forward(local, self.texts, dropped) for stack in self._stacks]

    def objectives(
        self,
        outputs: Sequence[DCLIPOutput],
        labels: Shaped[Tensor, "images classes"],
        *,
        known: int,
        workers: int = 1,
    ) -> Losses:
        """:func:`objective` of every trial, in the order of the trials."""
        parts = [
            objective(
                output,
                labels,
                self.recipe,
                mfi_weight=stack.mfi_weight,
                redundancy_weight=stack.redundancy_weight,
                known=known,
                workers=workers,
            )
            for stack, output in zip(self._stacks, outputs, strict=True)
        ]
        return Losses(*(self._in_order([part[term] for part in parts]) for term in range(3)))

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of the trials of every stack, in the order of the trials."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))[self._order]

    def average_in(self) -> None:
        """Take the weights into their moving average, if the recipe keeps one.

        Early on the average forgets faster than the recipe says: after t steps its decay is at most
        (1 + t) / (10 + t), so that a training of few steps does not end near its initial weights.
        """
        if self._average is not None and self.recipe.ema_decay is not None:
            early = (1 + self._averaged) / (10 + self._averaged)
            with torch.no_grad():
                torch._foreach_lerp_(
                    self._average, self.weights, 1 - min(self.recipe.ema_decay, early)
                )
            self._averaged += 1

    def count_step(self, losses: Float[Tensor, "trials 3"]) -> None:
        """Count a step as done, and add up its losses: the objective and its two terms."""
        self._sums += losses
        self._finite += self._sums[:, 0].isfinite()  # once a sum is not finite, it stays so
        self.step += 1

    def mean_losses(self) -> list[list[float]]:
        """Means of the losses over the steps of the epoch so far; nan for trials that are out.

        Trials whose objective was not finite in one of these steps, or whose weights are not after
        the last, are out from now on.
        """
        means = (self._sums / self.step).tolist()
        are_finite = self._are_finite()
        for trial, (objective, _, _) in enumerate(means):
            is_finite = math.isfinite(objective) and are_finite[trial]
            if trial not in self.diverged and not is_finite:
                step = min(int(self._finite[trial]) + 1, self.step)
                self.diverged[trial] = (self.epoch + 1, step)
            elif trial in self.diverged:
                means[trial] = [math.nan] * 3
        return means

    def _are_finite(self) -> list[bool]:
        """Whether all weights of each trial are finite."""
        found = torch.empty(len(self), dtype=torch.bool)
        for stack in self._stacks:
            parts = [weight.flatten(1).isfinite().all(1) for weight in stack.weights.values()]
            found[stack.trials] = torch.stack(parts).all(0).cpu()
        return [bool(value) for value in found]

    def end_epoch(self, val_maps: Sequence[float]) -> None:
        """Count the epoch as done, and keep what is best so far, where the recipe asks for it."""
        self.epoch, self.step = self.epoch + 1, 0
        self._sums.zero_()
        self._finite.zero_()
        if self._best is None:
            return
        scores = torch.tensor([-math.inf if math.isnan(v) else v for v in val_maps]).double()
        better = scores > self._best_map
        self._best_map[better], self._best_epoch[better] = scores[better], self.epoch
        now = iter(zip(self._best, self._current(), strict=True))
        for stack in self._stacks:
            chosen = better[stack.trials].to(self.device)
            for kept, value in (next(now) for _ in stack.weights):
                kept[chosen] = value[chosen]

    def _current(self) -> list[Tensor]:
        return self.weights if self._average is None else self._average

    def _copy(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    def model(self, trial: int = 0, *, selected: bool = True) -> DCLIP:
        """Projectors of one trial, on the CPU, in evaluation mode.

        Args:
            trial: Number of the trial.
            selected: Take the epoch that the recipe's ``selection`` says; otherwise the last.
        """
        source = self._current()
        if selected and self._best is not None and self._best_epoch[trial] > 0:
            source = self._best
        for stack in self._stacks:
            own, source = source[: len(stack.weights)], source[len(stack.weights) :]
            if trial in stack.trials:
                return stack.model([weight[stack.trials.index(trial)] for weight in own])
        raise IndexError(f"there is no trial {trial} of {len(self)}")

    def best_epoch(self, trial: int = 0) -> int:
        """Epoch that :meth:`model` returns the weights of."""
        best = int(self._best_epoch[trial]) if self._best is not None else 0
        return best or self.epoch

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Compute with the moving average of the weights, if the recipe keeps one."""
        if self._average is None:
            yield
            return
        kept = self._copy()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self._average)
            try:
                yield
            finally:
                torch._foreach_copy_(self.weights, kept)

    @torch.no_grad()
    def predict(
        self,
        features: FeatureSource,
        rows: Int64[np.ndarray, " rows"],
        *,
        batch_size: int = 256,
    ) -> Float[Tensor, "trials rows classes"]:
        """Probability of presence of every class in every given row, by every trial's weights."""
        parts = [torch.empty(len(self), 0, len(self.texts) // 2)]
        with self.averaged():
            for local in clean_batches(features, rows, self.device, -(-batch_size // len(self))):
                outputs = self.forward(local)
                scores = [presence_probability(output.pair_logits) for output in outputs]
                parts.append(self._in_order(scores).cpu())
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def inter_class_cosines(self) -> list[float]:
        """Mean cosine between the projected positive texts of each trial; nan for one class."""
        classes = len(self.texts) // 2
        found = {}
        with self.averaged():
            for stack in self._stacks:
                projected = stack.project_texts(self.texts)[:, classes:]
                for trial, positives in zip(stack.trials, projected.cpu(), strict=True):
                    found[trial] = inter_class_cosine(positives) if classes > 1 else math.nan
        return [found[trial] for trial in range(len(self))]

    def state_tensors(self) -> dict[str, Tensor]:
        """All that going on needs, as one flat dictionary of CPU tensors, for safetensors."""
        tensors = {
            "epoch": torch.tensor(self.epoch),
            "step": torch.tensor(self.step),
            "sums": self._sums,
            "finite": self._finite,
            "diverged": torch.tensor([self.diverged.get(n, (0, 0)) for n in range(len(self))]),
            "best_map": self._best_map,
            "best_epoch": self._best_epoch,
        }
        if self._average is not None:
            tensors["averaged"] = torch.tensor(self._averaged)
        for kind, values in self._kept().items():
            tensors |= {f"{kind}.{number}": value for number, value in enumerate(values)}
        for number, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{number}.{slot}"] = torch.as_tensor(value)
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}

    def _kept(self) -> dict[str, Sequence[Tensor]]:
        kept = {"weight": self.weights, "average": self._average, "best": self._best}
        return {kind: values for kind, values in kept.items() if values is not None}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore in place what :meth:`state_tensors` of equal trials returned.

        Raises:
            ValueError: The tensors are those of other trials.
        """
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                place, _, slot = rest.partition(".")
                state.setdefault(int(place), {})[slot] = value
        try:
            with torch.no_grad():
                for kind, values in self._kept().items():
                    for number, own in enumerate(values):
                        saved = tensors[f"{kind}.{number}"]
                        if saved.shape != own.shape:
                            raise ValueError(f"{kind}.{number} has shape {list(saved.shape)}")
                        own.copy_(saved)
            self.epoch, self.step = int(tensors["epoch"]), int(tensors["step"])
            if self._average is not None:
                self._averaged = int(tensors["averaged"])
            self._sums.copy_(tensors["sums"])
            if "diverged" in tensors:  # states of earlier versions do not say
                places = tensors["diverged"].tolist()
                self.diverged = {n: (epoch, step) for n, (epoch, step) in enumerate(places) if step}
                self._finite.copy_(tensors["finite"])
            else:
                self.diverged = {}
                self._finite.copy_(self.step * self._sums[:, 0].isfinite())
            self._best_map.copy_(tensors["best_map"])
            self._best_epoch.copy_(tensors["best_epoch"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"the state is that of another training: {error}") from None
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def common_fields_that_differ(recipes: Sequence[Recipe]) -> list[str]:
    """Names of the fields that keep these recipes from training together."""
    common = [recipe.model_dump(exclude=set(MAY_DIFFER)) for recipe in recipes]
    return [name for name in common[0] if any(one[name] != common[0][name] for one in common)]


class _Stack:
    """Projectors of trials of one size, as weights stacked along a first axis."""

    def __init__(
        self,
        models: Sequence[DCLIP],
        trials: list[int],
        recipes: Sequence[Recipe],
        device: torch.device | str,
    ) -> None:
        self.trials = trials
        self._template = models[trials[0]]
        stacked = zip(*(models[trial].named_parameters() for trial in trials), strict=True)
        self.weights = {
            same[0][0]: torch.stack([value.detach() for _, value in same])
            .to(device)
            .requires_grad_()
            for same in stacked
        }

        def values(name: str) -> Tensor:
            chosen = [float(getattr(recipes[trial], name)) for trial in trials]
            return torch.tensor(chosen, device=device)

        self.mfi_weight, self.redundancy_weight = values("mfi_weight"), values("redundancy_weight")

    def forward(
        self,
        local: Float[Tensor, "images locations dim"],
        texts: Float[Tensor, "pairs dim"],
        dropped: Bool[Tensor, "images locations"] | None,
    ) -> DCLIPOutput:
        projected = self.project_texts(texts)
        images, locations, dim = local.shape
        flat = local.reshape(1, -1, dim).expand(len(self.trials), -1, -1)
        weight = self.weights["image_projector.output.weight"]
        features = torch.bmm(flat, weight.mT).view(
            len(self.trials), images, locations, weight.shape[1]
        )
        return DCLIPOutput(pair_logits(features, projected, dropped=dropped), projected)

    def forward_pooled(
        self, pooled: Float[Tensor, "images pairs dim"], texts: Float[Tensor, "pairs dim"]
    ) -> DCLIPOutput:
        projected = self.project_texts(texts)
        weight = self.weights["image_projector.output.weight"]
        features = torch.matmul(pooled, weight[:, None].mT)
        return DCLIPOutput(pooled_pair_logits(features, projected), projected)

    def project_texts(
        self, texts: Float[Tensor, "pairs dim"]
    ) -> Float[Tensor, "trials pairs output_dim"]:
        """TextProjector of every trial; its BatchNorm stays at mean 0 and variance 1."""
        own = {name.removeprefix("text_projector."): w for name, w in self.weights.items()}
        norm = self._template.text_projector.batch_norm
        hidden = torch.matmul(texts, own["hidden.weight"].mT) / math.sqrt(1 + norm.eps)
        hidden = torch.addcmul(
            own["batch_norm.bias"][:, None], hidden, own["batch_norm.weight"][:, None]
        )
        return torch.matmul(F.relu(hidden), own["output.weight"].mT)

    def model(self, weights: Sequence[Tensor]) -> DCLIP:
        """A model of its own with these weights, in their order."""
        model = copy.deepcopy(self._template)
        named = dict(zip(self.weights, weights, strict=True))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(named[name])
        return model.eval()


def _build_optimizer(weights: Sequence[Tensor], recipe: Recipe) -> Optimizer:
    """Optimizer of the recipe over all weights, BatchNorm's scale and shift included."""
    if recipe.optimizer == "sgd":
        return SGD(
            weights,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
