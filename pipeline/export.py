"""A trained model as one file that others run: ``python -m pipeline.export``."""

import sys

from pipeline.terminal.start import main

DESCRIPTION = """\
Write a trained model as one file that runs without this package: ONNX, torch.export, safetensors.

examples:
  python -m pipeline.export                                  what pipeline.run trained, as ONNX
  python -m pipeline.export --checkpoint FILE --format pt2
  python -m pipeline.export --checkpoint FILE --what head --format safetensors
  python -m pipeline.export --zero-shot --classes "dog, horse" --backbone RN50
Pixels go in ([images, 3, side, side], normalised as the file says); out come `scores` of each class
and `maps` of each class over the places of the image. Texts are folded into tensors: no text tower
and no text projector is left. The head alone takes local features instead.
The file is read again and compared with the model on a few images; more than 1e-4 apart, it is not
kept. Beside it are model.json, which says the same as the file does of itself, and example.py."""

if __name__ == "__main__":
    sys.exit(main("export"))
