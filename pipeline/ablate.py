"""Rows of settings to a table of scores over seeds: ``python -m pipeline.ablate``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Take a method apart: train it with one thing taken away or changed at a time.

examples:
  python -m pipeline.ablate                                 all studies, three seeds
  python -m pipeline.ablate --studies losses,pooling --seeds 5 --epochs 10
  python -m pipeline.ablate --vary dclip.mfi_weight=0,x0.3,x1,x3
  python -m pipeline.ablate --config mine.yaml              rows of your own, as in conf/ablate.yaml
Each row is trained once a seed. Seeds vary the initial weights; shuffle and held-out images stay
those of --train.data-seed. The table gives mean and standard deviation over seeds of the test
split's mAP by the weights of the last epoch (the test split chooses nothing and is looked at once,
at the end), of val/map, and of what the method watches. Finished trainings are kept: the same
command goes on after a stop, more seeds add to it."""

SHARED = ("dataset", "root", "backbone", "method", "output", "device")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("ablate"))
