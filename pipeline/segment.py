"""Checkpoints and images to masks and mIoU: ``python -m pipeline.segment``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Segment images without mask training and compare DCLIP with frozen CLIP on true masks.

examples:
  python -m pipeline.segment                              what pipeline.run trained, on shapes
  python -m pipeline.segment --dataset voc12-seg --root DIR --checkpoint FILE
  python -m pipeline.segment --kind value --normalisation none
  python -m pipeline.segment --background threshold --threshold 0.85
  python -m pipeline.segment --window 96 --stride 48 --systems clip_vv --limit 50
miou is the field's (one confusion matrix over all images), miou_paper that of the DCLIP paper's
scripts (a mean per image); they are not comparable. A run that was stopped goes on. Pictures:
masks.png, failures.png, and of three checkpoints or more (--checkpoint A,B,C, or the folder trials
of a sweep) checkpoints.png and .csv: mIoU, held-out mAP and inter-class cosine against each
other."""

if __name__ == "__main__":
    sys.exit(main("segment"))
