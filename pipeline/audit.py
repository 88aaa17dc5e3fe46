"""Labels that are likely wrong, copies, classes that take from each other: one command."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Look labels and splits over: wrong and missing labels, copies of images, classes that steal.

examples:
  python -m pipeline.audit                                    the features of shapes
  python -m pipeline.audit --dataset folder:DIR --split train
  python -m pipeline.audit --dataset folder:DIR --write-labels DIR/corrected.csv
Every image is scored by a method that was trained on other images; labels whose opposite these
scores are sure of are listed, the surest first. Copies are found within the split and in the other
one, where they let a test score lie. A class steals where another is scored wrongly more often if
it is there. Writes CSV, pictures and a report (JSON). What is found is a hint: look before you
change a label. A report that stands is shown again; --anew makes it again."""

if __name__ == "__main__":
    sys.exit(main("audit"))
