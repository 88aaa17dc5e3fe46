"""Segments of an image that help CLIP to say what it shows: ``python -m pipeline.segments_mlr``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Score images by CLIP, with the help of the segments that a checkpoint finds (the paper's Table 5).

examples:
  python -m pipeline.segments_mlr                          what pipeline.run trained, on shapes
  python -m pipeline.segments_mlr --dataset voc2007 --root DIR --checkpoint FILE
  python -m pipeline.segments_mlr --weights 0.3,0.5,0.7 --area 0.005 --limit 300
Score = (1 - w) x softmax of the image + w x largest softmax among its segments' boxes. Takes any
data set with label vectors; masks are not needed. A run that was stopped goes on."""

if __name__ == "__main__":
    sys.exit(main("segments_mlr"))
