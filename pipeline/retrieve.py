"""Images by their captions and captions by their images: ``python -m pipeline.retrieve``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Find images by their captions and captions by their images: recall at 1, 5 and 10, both ways.

examples:
  python -m pipeline.retrieve                              frozen CLIP, the captions of shapes
  python -m pipeline.retrieve --checkpoint FILE --only 2   beside SmartCLIP, the second captions
  python -m pipeline.retrieve --protocol coco_val2017 --root DIR --backbone ViT-B-16
  python -m pipeline.retrieve --captions FILE.csv --image-folder DIR --backbone ViT-B-16
Ranked by the cosine in float32, without a mask; ties count at their mean. Writes a report (JSON),
and of a method with masks a picture of them; both are recorded in MLflow. A report that stands is
shown again; --anew makes it again. Published numbers are of images of 224 pixels, so that they take
--resolution 224."""

SHARED = ("dataset", "root", "backbone", "resolution", "output", "device")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("retrieve"))
