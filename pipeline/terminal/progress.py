"""A progress bar on a terminal, a plain line every few seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts finished units of a long piece of work.

    Args:
        label: What is being done.
        total: Number of units.
        unit: What is counted.
        done: Units that were finished before.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self._label, self._total, self._unit, self._done = label, total, unit, done
        self._started: float | None = None
        self._last_line = 0.0
        self._first = done
        self._shown = 0
        self._bar = (
            tqdm(desc=label, total=total, unit=f" {unit}", initial=done, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def show(self, done: int, note: str = "") -> None:
        """Set the number of units finished in this run, if it is more than before."""
        self.advance(max(0, done - self._shown), note)

    def advance(self, units: int, note: str = "") -> None:
        """Add finished units, and show a short note beside the count.

        The clock starts as the first are done: what came before is start-up, not work.
        """
        if self._started is None and not units:
            return
        self._done += units
        self._shown += units
        now = time.monotonic()
        is_first = self._started is None
        if is_first:
            self._started = self._last_line = now
            self._first = self._done
        if self._bar is not None:
            if is_first:
                self._bar.unpause()
                self._bar.initial = self._done
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif not is_first and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            log.info("%s", self._line(now - (self._started or now), note))

    def _line(self, seconds: float, note: str) -> str:
        """How far it is, how fast, how long it will take, and the note."""
        rate = (self._done - self._first) / seconds
        left = (self._total - self._done) / max(rate, 1e-9)
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s each"
        counted = f"{self._label}: {self._done}/{self._total} {self._unit}"
        return f"{counted}, {speed}, about {left:.0f} s left{f'; {note}' if note else ''}"

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Progress that is closed at the end of the block, whatever happens in it."""
    bar = Progress(label, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()
