"""DualCoOp: two learned contexts a class, one of its presence and one of its absence."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dclip.methods.method import Method, Task
from dclip.methods.pairs import ContextMethod
from dclip.methods.settings import DualCoOpSettings, MethodSettings


class DualCoOp(ContextMethod[DualCoOpSettings]):
    """Contexts of absence and of presence, the class name behind both (see `ContextMethod`).

    Args:
        settings: Hyper-parameters.
        task: Classes, with the backbone.

    References:
        Sun et al., "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations",
        NeurIPS 2022, arXiv:2206.09541.
    """

    Settings: ClassVar[type[MethodSettings]] = DualCoOpSettings

    def __init__(self, settings: DualCoOpSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.positive = self.new_context()
        self.negative = self.new_context()

    def rows(self) -> Float[Tensor, "pairs dim"]:
        """Texts of absence, then of presence."""
        return self.encode(self.negative, self.positive)

    def for_classes(self, task: Task) -> Method[Any]:
        """Any of its own classes; any others, too, where contexts are shared.

        The texts of others are encoded, so that ``task`` has to have the backbone.

        Raises:
            ValueError: There are other classes, and contexts are of each class or there is no
                backbone.
        """
        columns = zip(task.class_names, self.columns_of(task), strict=True)
        unknown = [name for name, column in columns if column is None]
        if not unknown or self.settings.contexts == "per_class":
            return super().for_classes(task)
        if task.backbone is None:
            raise ValueError(
                f"{self.settings.title} was not trained on {unknown[0]!r} and has to encode its "
                "text, for which there is no backbone here"
            )
        device = self.kept.device
        other = self._with_kept(task.to(device), self.kept)
        other._prompts = other._put_together(other.task)
        with torch.no_grad():
            return other._with_kept(other.task, other.derived()["kept"])
