"""The method of `toy_method`, made to rank: its scores are log-odds, no probabilities."""

from torch import Tensor
from toy_method import MaskedCosine, MaskedSettings

from dclip.fitting.batches import Batch


class RankingSettings(MaskedSettings):
    """Settings of a ranking."""

    name = "ranking"
    title = "a ranking"


class Ranking(MaskedCosine):
    """Scores without a threshold."""

    Settings = RankingSettings
    gives_probabilities = False

    def scores(self, batch: Batch) -> Tensor:
        return self.location_logits(batch.local).amax(-1)
