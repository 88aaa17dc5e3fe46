"""Images of any kind to classes and masks: ``python -m pipeline.predict``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Say which classes images show, and where: any images, any class names.

examples:
  python -m pipeline.predict photo.jpg                    the newest training of outputs/
  python -m pipeline.predict photo.jpg --classes "dog, horse, person"
  python -m pipeline.predict folder https://host/a.jpg --classes "dog, horse" --checkpoint FILE
  python -m pipeline.predict photo.jpg --classes "dog, horse" --zero-shot
Prints a table and writes it as CSV and JSON, with pictures of each image: -heat.png (a map a
class), -mask.png (0 background, then the classes as given; the size is the image's; a palette PNG,
or 16-bit grey where there are more than 254 classes) and -overlay.png (the mask over the image).
The checkpoint is that of --checkpoint, or the newest of --output, or that of these settings where
they say what is trained; without one, frozen CLIP answers alone. One line says what was taken.
Class names need not be those that a checkpoint was trained on. Those that are not are scored by
CLIP itself, on its own scale, and the table says so.
Results are written as they come; the same command goes on after a stop. An image that cannot be
read or drawn is named at the end, with exit code 1, and costs no other."""

SHARED = ("backbone", "output", "device")
"""Settings of all stages that --help shows here."""

if __name__ == "__main__":
    sys.exit(main("predict"))
