"""The systems DCLIP is compared with, one a file, on the same features."""

from dclip.methods.linear_probe import LinearProbe, fit_linear_probe

__all__ = ["LinearProbe", "fit_linear_probe"]
