"""Feature shards to a checkpoint: ``python -m pipeline.train``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Train a method on the feature shards that pipeline.extract made.

examples:
  python -m pipeline.train                                DCLIP with its usual preset
  python -m pipeline.train --mfi-weight 0                 ASL only, for comparison
  python -m pipeline.train --preset author --workers 2    the published recipe, two workers
  python -m pipeline.train --method package.module:Class  a method of your own
A run that was stopped goes on from its last checkpoint; finished settings are not trained again."""

SHARED = ("dataset", "root", "backbone", "method", "output", "device", "seed")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("train"))
