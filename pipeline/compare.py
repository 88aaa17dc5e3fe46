"""Methods to one table of scores over seeds: ``python -m pipeline.compare``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Compare methods: train what is missing, score all on the same test split, over seeds.

examples:
  python -m pipeline.compare                              all methods, five seeds
  python -m pipeline.compare --methods dclip,asl_only,dualcoop,zero_shot --seeds 3
  python -m pipeline.compare --methods dclip,linear_probe --label-fraction 0.1,0.5,1
  python -m pipeline.compare --methods dclip,asl_only --num-images 50,100,all
  python -m pipeline.compare --methods dclip,asl_only --vary train.lr=x0.3,x1,x3
  python -m pipeline.compare --methods maple,zero_shot --shots 1,4,16 --protocol base_to_new
  python -m pipeline.compare --config mine.yaml           rows of your own, as conf/compare.yaml
Each method is trained with the defaults of its preset, once a seed; what --train.* is given holds
for all that the loop trains. The section of --method counts for that method alone: to change
others, write rows (method, label, set: {dualcoop.mfi_weight: 0.1}). The test split chooses nothing:
scores are of the last epoch. The others are compared with the first row, seed by seed; against:
LABEL names another. With --label-fraction, --shots, --num-images or --vary the table has every row
at every value, and pictures are curves; each seed draws its own part of the data. Finished
trainings are kept, those of pipeline.ablate count too: the same command goes on after a stop, and
more seeds or rows add to what is there."""

SHARED = ("dataset", "root", "backbone", "output", "device")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("compare"))
