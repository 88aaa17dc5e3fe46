"""Code in a process of its own, which has loaded nothing yet."""

import subprocess
import sys


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    """Run code that has to end well; its outcome, with what it printed."""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done
