"""New thresholds for what is trained: ``python -m pipeline.calibrate``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Choose thresholds and calibrate probabilities of checkpoints that are there; no weight changes.

examples:
  python -m pipeline.calibrate --rule precision=0.9     each class is right nine times out of ten
  python -m pipeline.calibrate --rule recall=0.95 --checkpoint FILE
  python -m pipeline.calibrate --kind temperature       one scale for all classes
  python -m pipeline.calibrate --split val              by a split that was not trained on
Training does this by itself, for the best F1, on the images that it holds out (train.val_fraction).
The checkpoint keeps the result and how it was made; predict, evaluate and served models use it."""

if __name__ == "__main__":
    sys.exit(main("calibrate"))
