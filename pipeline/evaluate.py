"""Checkpoints and shards to a report: ``python -m pipeline.evaluate``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Score a checkpoint on the test split, beside frozen CLIP and a linear probe on the same shards.

examples:
  python -m pipeline.evaluate                             the checkpoint these settings train
  python -m pipeline.evaluate --checkpoint FILE --test-split val2014
  python -m pipeline.evaluate --checkpoint FILE,FILE      several beside each other
  python -m pipeline.evaluate --no-linear-probe --json
Writes a report (JSON) and figures (PNG), and records both in MLflow. A report that stands is shown
again; --anew makes it again."""

SHARED = ("dataset", "root", "test_split", "backbone", "method", "output", "device")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("evaluate"))
