"""Where a result comes from: the commit of the code."""

import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with ``+`` if files were changed, or None.

    Outside a checkout (an image, a Ray job) it is what ``DCLIP_COMMIT`` says.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return os.environ.get("DCLIP_COMMIT") or None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
