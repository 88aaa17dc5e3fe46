"""One search space to many trials of training: ``python -m pipeline.sweep``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Train with many settings, and compare them in MLflow: any key of the method's section (for DCLIP
lambda, alpha and the dimension, unless others are given) or of `train`, and the seed.

examples:
  python -m pipeline.sweep                                the default grid, a few minutes
  python -m pipeline.sweep --space dclip.mfi_weight=0.05,0.1,0.3 --space dclip.output_dim=32,64
  python -m pipeline.sweep --space dclip.mfi_weight=0.1,1 --space seed=0,1,2
  python -m pipeline.sweep --search optuna --trials 20 --asha --space train.lr=1e-4..1e-2
Trials are ranked by val/map, on images held out of the training split; the test split is not
looked at. Each leaves a checkpoint for pipeline.evaluate; the best becomes a registered model
in MLflow, and pipeline.segment --checkpoint with the folder of them draws mAP, mIoU and class
similarity against each other. A sweep that was stopped goes on where it was. Ray restores it with
pickle: resume only sweeps from an output folder that you trust."""

SHARED = ("dataset", "root", "backbone", "method", "output", "device")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("sweep"))
