"""Where the documents are: beside this package, or inside it when installed."""

from pathlib import Path


def page(name: str) -> str:
    """Path of a document, for messages and help.

    Args:
        name: Its file in ``docs/`` without ``.md``.
    """
    installed = Path(__file__).parents[1] / "docs"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "docs"
    return str(folder / f"{name}.md")
