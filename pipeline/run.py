"""The whole study: ``python -m pipeline.run``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Extract features, train DCLIP and its ASL-only ablation, and compare both with frozen CLIP.

examples:
  python -m pipeline.run                                  the embedded dataset, a few minutes
  python -m pipeline.run --dclip.mfi-weight 0.3 --seed 1
  python -m pipeline.run --dataset coco --root DIR --backbone RN101 --train.preset author
Stages whose result stands are skipped; whatever was stopped goes on."""

SHARED = (
    *("dataset", "root", "test_fraction", "backbone", "pretrained", "method", "output", "device"),
    *("seed", "extract.limit", "train.preset", "train.epochs", "evaluate.linear_probe"),
)
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("run"))
