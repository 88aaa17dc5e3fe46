"""Looking at something again and again while other work goes on."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dclip.words import told

log = logging.getLogger(__name__)


@contextmanager
def watched(
    look: Callable[[], None], what: str, *, seconds: float, at_end: bool = False
) -> Iterator[None]:
    """Call a function every few seconds, in a thread beside the block.

    What it raises does not end the watch: each reason is told once, and it is called again.

    Args:
        look: What to call.
        what: What it does, for the log: ``"train: showing epochs"``.
        seconds: Between two calls.
        at_end: Call it once more when the block has ended, however it ends.
    """
    over = threading.Event()
    reasons: set[str] = set()

    def once() -> None:
        try:
            look()
        except Exception as error:
            if (reason := told(error)) not in reasons:
                reasons.add(reason)
                log.warning("%s failed (%s); it is tried again, the work goes on", what, reason)

    def watch() -> None:
        while not over.wait(seconds):
            once()
        if at_end:
            once()

    thread = threading.Thread(target=watch, name=what, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
