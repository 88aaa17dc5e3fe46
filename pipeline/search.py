"""Extracted images that are like a text or an image: ``python -m pipeline.search``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Find the images nearest to a text or to an image, in features that pipeline.extract made.

examples:
  python -m pipeline.search "a red star"                 in the features of shapes
  python -m pipeline.search photo.jpg "a bicycle" --dataset folder:DIR
  python -m pipeline.search "a bicycle" --split train --count 100 --no-locations
Two rankings of each query, both by cosine: of the whole image (CLIP's global embedding), and of the
location that is most alike, which is drawn as a box. One pass over the shards serves all queries.
Writes a picture and a table (CSV) of each query, and a report (JSON); images that cannot be read
any more are grey."""

if __name__ == "__main__":
    sys.exit(main("search"))
