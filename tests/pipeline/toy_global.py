"""A method of a user's own that is fed global embeddings, with a list and a path as settings."""

from itertools import pairwise
from pathlib import Path

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.fitting.batches import Batch
from dclip.methods.method import Method, Task
from dclip.methods.settings import MethodSettings


class GlobalSettings(MethodSettings):
    name = "global_head"
    title = "a head on the global embedding"
    feeds = frozenset({"embedding"})
    may_differ = frozenset({"sizes"})

    sizes: list[int] = Field([4], description="widths of the layers")
    words: Path = Field(Path("words.txt"), description="a file")


class GlobalHead(Method[GlobalSettings]):
    Settings = GlobalSettings

    def __init__(self, settings: GlobalSettings, task: Task) -> None:
        super().__init__(settings, task)
        widths = [task.dim, *settings.sizes, len(task.class_names)]
        layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
        self.head = nn.Sequential(*layers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.head(batch.embedding)
        return {"loss": F.binary_cross_entropy_with_logits(logits, (batch.labels == 1).float())}

    def scores(self, batch: Batch) -> Tensor:
        return self.head(batch.embedding).sigmoid()
