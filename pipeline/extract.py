"""Images to feature shards: ``python -m pipeline.extract``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Compute frozen local features once and keep them as WebDataset tar shards.

examples:
  python -m pipeline.extract                              the embedded dataset, nothing to download
  python -m pipeline.extract --dataset coco --root DIR --backbone RN101
  python -m pipeline.extract --split test --workers 2
  python -m pipeline.extract --features s3://bucket/features --storage int8
  python -m pipeline.extract --verify                     compare every shard with its checksum
A second run does nothing; a run that was stopped goes on with the next shard. On a cluster the
same command runs everywhere: set RAY_ADDRESS."""

SHARED = ("dataset", "root", "backbone", "pretrained", "features", "output", "device")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("extract"))
