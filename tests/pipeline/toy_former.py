"""The toy backbone as a later version tells of it: the same features, another fingerprint."""

import torch
from toy_backbone import ToyBackbone


class Renamed(ToyBackbone):
    """Knows what version 0.1 called it."""

    def fingerprint(self) -> str:
        return f"v2 {super().fingerprint()}"

    def former_fingerprint(self) -> str:
        return super().fingerprint()


class Twin(Renamed):
    """What version 0.1 could not tell from the former."""

    def fingerprint(self) -> str:
        return f"twin {super().fingerprint()}"


def make(*, resolution: int | None, device: torch.device | str) -> Renamed:
    return Renamed(resolution)


def twin(*, resolution: int | None, device: torch.device | str) -> Twin:
    return Twin(resolution)


def foreign(*, resolution: int | None, device: torch.device | str) -> Renamed:
    return Renamed(resolution, seed=1)
