"""Pretrain a small CLIP that comes with the package, from nothing, on two CPU cores.

    python -m dclip.world.pretraining --output tiny_clip.safetensors
    python -m dclip.world.pretraining --model tiny-vit --output tiny_vit_clip.safetensors

DCLIP starts from a CLIP that was trained on images of many objects with captions of one. Such a
model cannot be fetched everywhere, so this program makes one: image-caption pairs of the shapes
world (`dclip.world.shapes.photo`), whose captions name the most visible object, often with a
colour, a texture or a ground, and keep silent on everything else; CLIP's architecture by way of
``open_clip``, with a ResNet of four blocks or a ViT of six; CLIP's contrastive loss, in which pairs
of equal captions do not repel each other.

A curriculum makes this fit in minutes. Objects measure 54 to 92 pixels in all its phases, as they
do in the labelled scenes; what grows is the canvas around them:

1. ``names``: one object on a small canvas, seen at two thirds of its resolution, captions with
   nothing but the name. Told of colours as well, it takes several times as long to learn shapes
   (docs/log.md).
2. ``close-ups``: the caption's object in the middle, neighbours cut by the border, scraps of
   description in half of the captions. A quarter of the price of a scene, and the same to see for
   a location of the feature map, which looks at about a hundred pixels.
3. ``scenes``: whole canvases of 192 pixels with up to five objects, the caption's the largest.

Trained on whole scenes from the start, the same model learns nothing in this time: the loss would
have to find out which object a caption means before any object has a name. Small canvases take
random windows of the positional embedding, so that all of it has been trained when whole scenes
come.

At the end the program reports what DCLIP will find: zero-shot accuracy on single objects, mAP of
the global embedding and of a linear probe on local features, and the cosine between class names.
The packaged weights come from the commands above, on two cores of a Xeon: ``tiny`` in 29 minutes
(2026-11-22, other work beside it), ``tiny-vit`` in 44 (2026-11-28). They reported

=============================================  ======  ========
..                                             tiny    tiny-vit
=============================================  ======  ========
zero-shot top-1, 400 images of single objects   99.3 %   84.5 %
zero-shot mAP of the global embedding, test     60.0 %   55.7 %
zero-shot mAP of the best location, test        86.8 %   38.3 %
linear probe mAP on local features, test        91.5 %   51.8 %
mean cosine between class names                  0.74     0.77
=============================================  ======  ========

A ViT has to learn from images what a convolution has built in, that the same thing may stand
anywhere. In this time it learns shapes less well, and its patches know less of what they show than
its class token does.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dclip.texts import EMBEDDED


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dclip.world.pretraining",
        description="Pretrain the small CLIP on image-caption pairs of the shapes world.",
    )
    parser.add_argument("--output", type=Path, required=True, help="weights file to write")
    parser.add_argument("--model", choices=EMBEDDED, default=EMBEDDED[0], help="which one (tiny)")
    parser.add_argument("--seed", type=int, default=0, help="of world, weights and order (0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads and workers (2)")
    parser.add_argument("--device", default="cpu", help="where the model is trained (cpu)")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir() or options.output.suffix != ".safetensors":
        parser.error(f"--output {options.output}: name a .safetensors file in a folder that exists")
    if options.threads < 1:
        parser.error(f"--threads {options.threads}: at least 1 is needed")

    # torch and open_clip take seconds, which --help and a refusal should not
    import torch

    from dclip.world.clip_training import pretrain

    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        parser.error(f"--device {options.device}: {reason}")
    torch.set_num_threads(options.threads)
    start = time.perf_counter()

    def log(line: str) -> None:
        sys.stderr.write(f"{time.perf_counter() - start:6.0f} s  {line}\n")
        sys.stderr.flush()

    report = pretrain(
        options.output,
        model_name=options.model,
        seed=options.seed,
        workers=options.threads,
        device=options.device,
        log=log,
    )
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
