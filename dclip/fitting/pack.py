"""A pack: trainings of one method that go through the features together, its members."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_map

from dclip.fitting.batches import Batch, FeatureSource, clean_batches
from dclip.fitting.loop import Loop
from dclip.fitting.optimizer import SGD, AdamW, Optimizer, WeightGroup
from dclip.methods.method import Method, Task, WeightRule, initial
from dclip.methods.settings import MethodSettings
from dclip.words import counted


class Pack:
    """Trainings of one method that share every step: weights, optimizer, how far they are.

    Members whose weights have the same shapes are one batched computation, by
    :func:`torch.func.vmap` over weights stacked along a first axis; each ends as it would alone, up
    to the order of summation.

    Args:
        kind: The method.
        settings: Of each member; they differ in what the method says may differ alone.
        loop: Settings of the training loop, the same for all.
        task: Classes, the same for all.
        seeds: Seed of the initial weights of each member.
        device: Where weights live.
        fresh: False leaves out what gives initial weights, for a pack whose state is loaded.

    Attributes:
        kind: As given.
        settings: As given.
        loop: As given.
        task: As given, on the device.
        terms: Names of the losses, the one that is minimised first; known from the first step on.
        epoch: Number of epochs done.
        step: Number of batches done in the epoch begun.
        diverged: Members whose loss left the finite numbers, and in which epoch and step, both from
            1. They stay in the computation, where they touch no other member, but are scored no
            more.

    Raises:
        ValueError: There is none, the numbers of settings and seeds differ, settings differ in
            fields that must be common, or the method is not trained by the loop.
    """

    def __init__(
        self,
        kind: type[Method[Any]],
        settings: Sequence[MethodSettings],
        loop: Loop,
        task: Task,
        *,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        fresh: bool = True,
    ) -> None:
        if not settings or len(settings) != len(seeds):
            raise ValueError(f"{len(settings)} settings and {len(seeds)} seeds make no pack")
        if kind.Settings.trained_by != "loop":
            raise ValueError(f"{kind.Settings.title} is not trained by the loop")
        if unlike := common_fields_that_differ(settings):
            raise ValueError(
                f"members of a pack must agree in {', '.join(unlike)}; they may differ in "
                f"{', '.join(sorted(kind.Settings.may_differ)) or 'their seeds'}"
            )
        self.kind, self.settings, self.loop = kind, tuple(settings), loop
        self.device = torch.device(device)
        models = [
            initial(kind, own, task, seed=seed, follow_task=fresh)
            for own, seed in zip(settings, seeds, strict=True)
        ]
        self.task = task.to(self.device)
        groups: dict[object, list[int]] = {}
        for member, model in enumerate(models):
            groups.setdefault(_shapes(model), []).append(member)
        self._stacks = [
            _Stack([models[member] for member in members], members, self.task, self.device)
            for members in groups.values()
        ]
        in_stacks = [member for stack in self._stacks for member in stack.members]
        self._order = torch.tensor(np.argsort(in_stacks).tolist(), device=self.device)
        self.weights = [weight for stack in self._stacks for weight in stack.weights.values()]
        rules = models[0].weight_rules()
        groups_of: dict[WeightRule, list[Tensor]] = {}
        for stack in self._stacks:
            for name, weight in stack.weights.items():
                groups_of.setdefault(rules.get(name, WeightRule()), []).append(weight)
        self.optimizer = _build_optimizer(groups_of, loop)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=loop.mixed_precision == "float16"
        )
        self.epoch = self.step = 0
        self.diverged: dict[int, tuple[int, int]] = {}
        self.terms: tuple[str, ...] = ()
        self._sums = torch.zeros(len(self), 0, device=self.device)
        self._finite = torch.zeros(len(self), dtype=torch.long, device=self.device)
        self._best_map = torch.full((len(self),), -math.inf, dtype=torch.float64)
        self._best_epoch = torch.zeros(len(self), dtype=torch.long)
        self._best = self._copy() if loop.selection == "best_on_val" else None
        self._average = self._copy() if loop.ema_decay is not None else None
        self._averaged = 0

    def __len__(self) -> int:
        return len(self.settings)

    def __repr__(self) -> str:
        members = counted(len(self), "training")
        kind = self.kind.Settings.name
        return (
            f"{type(self).__name__}({members} of {kind}, {self.num_classes} classes in "
            f"{self.task.dim} dimensions, epoch {self.epoch} of {self.loop.epochs}, preset "
            f"{self.loop.preset}, on {self.device})"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes that are told apart."""
        return len(self.task.class_names)

    @torch.no_grad()
    def prepare(self, features: FeatureSource, rows: Int64[np.ndarray, " rows"]) -> None:
        """Let every member look at the training images, if its method does so, before any step."""
        if self.kind.prepare is Method.prepare:
            return
        for stack in self._stacks:
            for position, member in enumerate(stack.members):
                own = self.method(member, selected=False)
                own.prepare(features, rows)
                for name, value in [*own.named_parameters(), *own.named_buffers()]:
                    kept = stack.weights.get(name, stack.buffers.get(name))
                    assert kept is not None
                    kept[position].copy_(value)
        for copy_of_weights in (self._best, self._average):
            if copy_of_weights is not None:
                torch._foreach_copy_(copy_of_weights, self.weights)

    def losses(self, batch: Batch, *, seed: int = 0) -> Float[Tensor, "members terms"]:
        """Losses of every member on a batch, in the order of ``terms``.

        Args:
            batch: What they are computed on.
            seed: Of what the method draws (dropout). All members draw the same, which each would
                draw alone.
        """
        parts = []
        for stack in self._stacks:
            with drawing(seed, self.device), self._computing():
                parts.append(stack.call("losses", batch, training=True))
        self.terms = tuple(parts[0])
        return self._in_order([torch.stack(list(part.values()), dim=1) for part in parts])

    def scores(self, batch: Batch) -> Float[Tensor, "members images classes"]:
        """Scores of a batch by every member's weights."""
        with self._computing():
            return self._in_order([stack.call("scores", batch) for stack in self._stacks]).float()

    def _computing(self) -> torch.autocast:
        """In the precision of the settings."""
        mixed = self.loop.mixed_precision
        kind = torch.float16 if mixed == "float16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=kind, enabled=mixed != "none")

    def set_lr(self, lr: float, *, is_warmup: bool = False) -> None:
        """Let the optimizer step by this rate, times the factor that some weights have.

        Args:
            lr: Learning rate.
            is_warmup: The rate is the same for all.
        """
        for group in self.optimizer.groups:
            group.lr = lr if is_warmup else lr * group.lr_factor

    def set_step_lr(self, lr: float, without_warmup: float) -> None:
        """The same of a schedule by steps.

        Args:
            lr: Learning rate of this step.
            without_warmup: That of weights for which no warm-up holds.
        """
        for group in self.optimizer.groups:
            group.lr = group.lr_factor * (lr if group.warms_up else without_warmup)

    def backward(self, losses: Float[Tensor, "members terms"]) -> None:
        """Add the gradients of the losses that are minimised, scaled where the settings say so."""
        self.scaler.scale(losses[:, 0].sum()).backward()  # type: ignore[no-untyped-call]

    def take_step(self) -> None:
        """Step along the gradients; not at all where scaled ones overflowed."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # type: ignore[arg-type]  # it asks for groups alone
            self.scaler.update()
        else:
            self.optimizer.step()
        self.average_in()

    @torch.no_grad()
    def derive(self) -> None:
        """Bring the buffers up to date that follow from the weights, before these are scored."""
        for stack in self._stacks:
            stack.buffers |= stack.call("derived")

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of the members of every stack, in the order of the members."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))[self._order]

    def average_in(self) -> None:
        """Take the weights into their moving average, if the settings keep one.

        Early on the average forgets faster than they say: after t steps its decay is at most
        (1 + t) / (10 + t), so that a training of few steps does not end near its initial weights.
        """
        if self._average is not None and self.loop.ema_decay is not None:
            early = (1 + self._averaged) / (10 + self._averaged)
            with torch.no_grad():
                torch._foreach_lerp_(
                    self._average, self.weights, 1 - min(self.loop.ema_decay, early)
                )
            self._averaged += 1

    def count_step(self, losses: Float[Tensor, "members terms"]) -> None:
        """Count a step as done, and add up its losses."""
        if self._sums.shape != losses.shape:  # the first step of all
            self._sums = torch.zeros_like(losses)
        self._sums += losses
        self._finite += self._sums[:, 0].isfinite()  # once a sum is not finite, it stays so
        self.step += 1

    def mean_losses(self) -> list[dict[str, float]]:
        """Means of the losses over the steps of the epoch so far; nan for members that are out.

        Members whose loss was not finite in one of these steps, or whose weights are not after the
        last, are out from now on.
        """
        means = (self._sums / self.step).tolist()
        are_finite = self._are_finite()
        for member, (loss, *_) in enumerate(means):
            is_finite = math.isfinite(loss) and are_finite[member]
            if member not in self.diverged and not is_finite:
                step = min(int(self._finite[member]) + 1, self.step)
                self.diverged[member] = (self.epoch + 1, step)
            elif member in self.diverged:
                means[member] = [math.nan] * len(self.terms)
        return [dict(zip(self.terms, own, strict=True)) for own in means]

    def _are_finite(self) -> list[bool]:
        """Whether all weights of each member are finite."""
        found = torch.empty(len(self), dtype=torch.bool)
        for stack in self._stacks:
            flat = [weight.reshape(len(weight), -1) for weight in stack.weights.values()]
            parts = [weight.isfinite().all(1) for weight in flat]
            found[stack.members] = torch.stack(parts).all(0).cpu()
        return [bool(value) for value in found]

    def end_epoch(self, val_maps: Sequence[float]) -> None:
        """Count the epoch as done, and keep what is best so far, where that is asked for."""
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
            chosen = better[stack.members].to(self.device)
            for kept, value in (next(now) for _ in stack.weights):
                kept[chosen] = value[chosen]

    def _current(self) -> list[Tensor]:
        return self.weights if self._average is None else self._average

    def _copy(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    def method(self, member: int = 0, *, selected: bool = True) -> Method[Any]:
        """The method of one member with its weights, on the pack's device, in evaluation mode.

        Args:
            member: Number of the member.
            selected: Take the epoch that ``selection`` says; otherwise the last.
        """
        source = self._current()
        if selected and self._best is not None and self._best_epoch[member] > 0:
            source = self._best
        for stack in self._stacks:
            own, source = source[: len(stack.weights)], source[len(stack.weights) :]
            if member in stack.members:
                return stack.method(stack.members.index(member), own, self.settings[member])
        raise IndexError(f"there is no member {member} of {len(self)}")

    def num_trained(self, member: int = 0) -> int:
        """How many numbers of a member are trained."""
        (own,) = (stack for stack in self._stacks if member in stack.members)
        return sum(weight[0].numel() for weight in own.weights.values())

    def best_epoch(self, member: int = 0) -> int:
        """Epoch that :meth:`method` returns the weights of."""
        best = int(self._best_epoch[member]) if self._best is not None else 0
        return best or self.epoch

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Compute with the moving average of the weights, if the settings keep one."""
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
    ) -> Float[Tensor, "members rows classes"]:
        """Scores of every class in every given row, by every member's weights."""
        none = torch.empty(len(self), 0, self.num_classes)
        size, feeds = -(-batch_size // len(self)), self.kind.Settings.feeds
        size = 1 if self.kind.Settings.image_form == "native" else size
        with self.averaged():
            self.derive()
            batches = clean_batches(features, rows, self.device, size, feeds)
            parts = [self.scores(batch).cpu() for batch in batches]
        return torch.cat([none, *parts], dim=1)

    @torch.no_grad()
    def watch(self) -> list[dict[str, float]]:
        """What the method says is worth watching, of each member."""
        return [self.method(member, selected=False).watch() for member in range(len(self))]

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
        if self.scaler.is_enabled():
            scale = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([scale["scale"], scale["_growth_tracker"]])
        for number, slots in self.optimizer.state.items():
            tensors |= {f"optimizer.{number}.{slot}": value for slot, value in slots.items()}
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}

    def _kept(self) -> dict[str, Sequence[Tensor]]:
        kept: dict[str, Sequence[Tensor] | None]
        kept = {"weight": self.weights, "average": self._average, "best": self._best}
        kept["buffer"] = [value for stack in self._stacks for value in stack.buffers.values()]
        return {kind: values for kind, values in kept.items() if values is not None}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore in place what :meth:`state_tensors` of equal members returned.

        Raises:
            ValueError: The tensors are those of other members.
        """
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, slot = rest.partition(".")
                state.setdefault(int(index), {})[slot] = value
        try:
            with torch.no_grad():
                for kind, values in self._kept().items():
                    for number, own in enumerate(values):
                        if kind == "buffer" and f"{kind}.{number}" not in tensors:
                            continue  # states of earlier versions have none
                        saved = tensors[f"{kind}.{number}"]
                        if saved.shape != own.shape:
                            raise ValueError(f"{kind}.{number} has shape {list(saved.shape)}")
                        own.copy_(saved)
            self.epoch, self.step = int(tensors["epoch"]), int(tensors["step"])
            if self._average is not None:
                self._averaged = int(tensors["averaged"])
            if self.scaler.is_enabled():
                scale, growth = tensors["scaler"].tolist()
                kept = {**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(growth)}
                self.scaler.load_state_dict(kept)
            self._sums = tensors["sums"].to(self.device)
            if "diverged" in tensors:  # states of earlier versions do not say
                said = tensors["diverged"].tolist()
                self.diverged = {n: (epoch, step) for n, (epoch, step) in enumerate(said) if step}
                self._finite.copy_(tensors["finite"])
            else:
                self.diverged = {}
                self._finite.copy_(self.step * self._sums[:, 0].isfinite())
            self._best_map.copy_(tensors["best_map"])
            self._best_epoch.copy_(tensors["best_epoch"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"the state is that of another training: {error}") from None
        self.optimizer.load(state)


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Let what a block draws follow from a seed; the generators are left as they were.

    Args:
        seed: In [0, 2^63).
        device: Where it computes; the CPU's generator is seeded, too.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def common_fields_that_differ(settings: Sequence[MethodSettings]) -> list[str]:
    """Names of the fields that keep these settings from training together."""
    common = [own.common() for own in settings]
    return [name for name in common[0] if any(one[name] != common[0][name] for one in common)]


def _shapes(model: nn.Module) -> object:
    """What has to be equal in models that are stacked."""
    state = [*model.named_parameters(), *model.named_buffers()]
    return tuple((name, value.shape, value.dtype) for name, value in state)


class _Stack:
    """Members whose weights have the same shapes, stacked along a first axis."""

    def __init__(
        self,
        models: Sequence[Method[Any]],
        members: list[int],
        task: Task,
        device: torch.device,
    ) -> None:
        self.members = members
        params, buffers = stack_module_state([*models])
        trained = {name for name, value in models[0].named_parameters() if value.requires_grad}
        params = {name: value.detach().to(device) for name, value in params.items()}
        self.weights = {name: v.requires_grad_() for name, v in params.items() if name in trained}
        # what a method freezes is no more trained than its buffers are
        frozen = {name: value for name, value in params.items() if name not in trained}
        self.buffers = frozen | {name: value.to(device) for name, value in buffers.items()}
        self._template = models[0].to(device).requires_grad_(False)
        self._template.task = task

    def call(self, name: str, *arguments: Any, training: bool = False) -> Any:
        """A method of every member on the same arguments; results have the members in front."""
        if self._template.training != training:
            self._template.train(training)

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
            return functional_call(self._template, (weights, buffers), (name, *arguments))

        if len(self.members) == 1:  # without the detour, which takes as long as a small step
            alone = one(*({n: v[0] for n, v in s.items()} for s in (self.weights, self.buffers)))
            return tree_map(lambda value: value[None], alone)
        # the same draw for all, so that each ends as it would alone; scores are not drawn
        randomness = "same" if training else "error"
        return vmap(one, randomness=randomness)(self.weights, self.buffers)

    def method(
        self, position: int, weights: Sequence[Tensor], settings: MethodSettings
    ) -> Method[Any]:
        """A method of its own with these weights, of the member at this position."""
        task = self._template.task
        own = copy.deepcopy(self._template, {id(task): task})  # which is large, and shared
        own.settings = settings
        named = {
            **dict(zip(self.weights, weights, strict=True)),
            **self.buffers,
        }
        with torch.no_grad():
            for name, value in [*own.named_parameters(), *own.named_buffers()]:
                value.copy_(named[name][position])
            buffers = dict(own.named_buffers())
            for name, value in own.derived().items():
                buffers[name].copy_(value)
        return own.eval()


def _build_optimizer(weights: Mapping[WeightRule, Sequence[Tensor]], loop: Loop) -> Optimizer:
    """The optimizer over all weights, BatchNorm's scale and shift included.

    Args:
        weights: By how they step, which their group keeps.
        loop: Settings.
    """
    groups = [
        WeightGroup(
            own,
            loop.lr,
            loop.weight_decay if rule.weight_decay is None else rule.weight_decay,
            rule.lr_factor,
            rule.warms_up,
        )
        for rule, own in weights.items()
    ]
    if loop.optimizer == "sgd":
        return SGD(groups, momentum=loop.momentum)
    return AdamW(groups, fused=True)
