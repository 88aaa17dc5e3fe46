"""The version of this package and of what results depend on; none of them is imported."""

from importlib.metadata import version

_LIBRARIES = ("torch", "open_clip_torch", "ray", "mlflow")


def versions() -> str:
    """All in a line."""
    return f"dclip {version('dclip')}, " + ", ".join(f"{n} {version(n)}" for n in _LIBRARIES)
