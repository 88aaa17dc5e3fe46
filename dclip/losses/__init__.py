"""Objectives, one a file, each a pure function of logits or features."""

from dclip.losses.asymmetric import asymmetric_loss
from dclip.losses.mfi import check_mfi_stability, mfi_loss

__all__ = ["asymmetric_loss", "check_mfi_stability", "mfi_loss"]
