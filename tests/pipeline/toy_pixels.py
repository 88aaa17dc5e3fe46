"""A method of a user's own that looks at images through CLIP, which it trains a line on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.data.pixels import normalise
from dclip.fitting.batches import Batch
from dclip.methods.method import Method, Task, WeightRule
from dclip.methods.settings import MethodSettings


class PixelSettings(MethodSettings):
    """Settings of a line on pixels: there are none."""

    name = "pixel_line"
    title = "a line on what CLIP sees"
    feeds = frozenset({"pixels"})
    packed = False


class PixelLine(Method[PixelSettings]):
    """A linear map of the global embedding, computed as the step runs."""

    Settings = PixelSettings

    def __init__(self, settings: PixelSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.line = nn.Linear(task.dim, len(task.class_names))

    def weight_rules(self) -> dict[str, WeightRule]:
        return {"line.bias": WeightRule(lr_factor=2.0, weight_decay=0.0, warms_up=False)}

    def for_classes(self, task: Task) -> Method[PixelSettings]:
        columns = self.own_columns(task)
        other = PixelLine(self.settings, task).to(self.line.weight.device)
        with torch.no_grad():
            other.line.weight.copy_(self.line.weight[columns])
            other.line.bias.copy_(self.line.bias[columns])
        return other.eval()

    def scores(self, batch: Batch) -> Tensor:
        return self._logits(batch).sigmoid()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        wanted = (batch.labels == 1).float()
        found = F.binary_cross_entropy_with_logits(self._logits(batch), wanted, reduction="none")
        return {"loss": found.mean(1).sum() / batch.total}

    def _logits(self, batch: Batch) -> Tensor:
        backbone = self.task.backbone
        assert backbone is not None
        assert batch.pixels is not None
        with torch.no_grad():
            images = normalise(batch.pixels, backbone.mean, backbone.std)
            features = backbone.encode_images(images).embedding
        return self.line(F.normalize(features.float(), dim=-1))
