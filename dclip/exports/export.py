"""A model put together for a file, written, read again and compared with what it was made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor, nn

from dclip.backbones import Backbone, preparation_of
from dclip.checkpoints.calibration import Calibration
from dclip.data.pixels import image_to_tensor
from dclip.exports.description import FORMATS, Description, ExportError, What, missing_packages
from dclip.exports.heads import FrozenHead, Head, MethodHead, head_of
from dclip.exports.towers import encoder_of
from dclip.logits import sigmoid_of
from dclip.methods.method import Method, Task
from dclip.store.paths import atomic_write
from dclip.words import first_line
from dclip.world import shapes

TOLERANCE = 1e-4
"""Largest difference from eager that a file may have."""

Arrays = Mapping[str, Float32[np.ndarray, "..."]]
Runner = Callable[[Arrays], Arrays]
"""Inputs by name to outputs by name."""

_SCENES, _NOISE = 3, 2


class ImageModel(nn.Module):
    """Pixels to scores and maps.

    Args:
        encoder: Pixels to features.
        head: Features to scores and maps.
    """

    def __init__(self, encoder: nn.Module, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and maps of normalised images."""
        features = self.encoder(images)
        said: tuple[Tensor, Tensor] = self.head(features.local, features.embedding)
        return said


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        module: What is traced.
        head: The end of it.
        eager: The backbone and the method as they are, which a file has to equal.
        inputs: A few inputs by name, to trace and to compare with.
        description: What a file says of itself.
    """

    module: nn.Module
    head: Head
    eager: Runner
    inputs: Arrays
    description: Description


class Written(NamedTuple):
    """A file that was written, read again and compared.

    Attributes:
        path: Of the file.
        size: Bytes of it, with what lies beside it.
        difference: Largest one from eager.
    """

    path: Path
    size: int
    difference: float


def export_of(
    backbone: Backbone,
    method: Method[Any] | None = None,
    *,
    task: Task | None = None,
    what: What = "image",
    kind: str = "value",
    calibration: Calibration | None = None,
    feature_space: str | None = None,
    checkpoint: str | None = None,
    commit: str | None = None,
) -> Export:
    """A frozen CLIP and a trained method, ready to be written.

    Args:
        backbone: On the CPU.
        method: In evaluation mode, on the CPU; asked of the classes of its task. None for frozen
            CLIP.
        task: Classes of frozen CLIP, one text each.
        what: What goes in.
        kind: Of local features: that the method was trained on.
        calibration: Of the classes: scores are calibrated by it, and its thresholds are told.
        feature_space: Hash of what gives the local features their meaning.
        checkpoint: SHA-256 of the file of the method.
        commit: Of the code.

    Raises:
        ExportError: The method looks at images itself, or frozen CLIP has no classes.
    """
    grid = backbone.grid(backbone.resolution, backbone.resolution)
    has_mean_token = backbone.include_global_token
    head: Head
    plain: Head
    if method is not None:
        task = method.task
        head = head_of(method, grid, has_mean_token=has_mean_token)
        plain = MethodHead(method, grid, has_mean_token=has_mean_token)
        for one in (head, plain):
            one.calibrate(calibration)
    else:
        if task is None or len(task.texts.features) != len(task.class_names):
            raise ExportError("frozen CLIP is exported for classes of one text each; give a task")
        head = plain = FrozenHead(
            task.texts.features, sigmoid_of(backbone), grid=grid, has_mean_token=has_mean_token
        )
    images = samples(backbone)
    with torch.no_grad():
        features = backbone.encode_images(images, kind=kind)
    names = ["local", "embedding"][: 1 + head.needs_embedding]
    fed = {name: getattr(features, name).float().numpy() for name in names}

    def of_features(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            return _named(plain(*(torch.from_numpy(arrays[name]) for name in names)))

    def of_images(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            found = backbone.encode_images(torch.from_numpy(arrays["images"]), kind=kind)
            return _named(plain(found.local.float(), found.embedding.float()))

    is_image = what == "image"
    inputs = {"images": images.numpy()} if is_image else fed
    classes, preparation = len(task.class_names), preparation_of(backbone)
    description = Description(
        what=what,
        class_names=tuple(task.class_names),
        inputs={name: ["batch", *array.shape[1:]] for name, array in inputs.items()},
        outputs={"scores": ["batch", classes], "maps": ["batch", classes, *grid]},
        scores=head.scores,
        maps=head.maps,
        resolution=backbone.resolution,
        resize=preparation.resize,
        interpolation=preparation.interpolation,
        mean=backbone.mean,
        std=backbone.std,
        backbone=backbone.name,
        kind=kind,
        include_global_token=backbone.include_global_token,
        method="clip" if method is None else method.settings.own_name(),
        thresholds=None if calibration is None else tuple(calibration.thresholds),
        feature_space=feature_space,
        checkpoint=checkpoint,
        commit=commit,
    )
    module = ImageModel(encoder_of(backbone, kind), head) if is_image else head
    eager = of_images if is_image else of_features
    return Export(module.eval(), head.eval(), eager, inputs, description)


def samples(backbone: Backbone) -> Tensor:
    """A few images to compare by: drawn scenes, and pixels at random."""
    side, preparation = backbone.resolution, preparation_of(backbone)
    drawn = [
        image_to_tensor(
            Image.fromarray(shapes.scene("test", number).image),
            side,
            backbone.mean,
            backbone.std,
            preparation,
        )
        for number in range(_SCENES)
    ]
    noise = torch.randn(_NOISE, 3, side, side, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.stack(drawn), noise])


def write(export: Export, path: Path, form: str) -> Written:
    """Write a file, read it again, and compare what it says with eager.

    Nothing is left at the path unless both agree.

    Args:
        export: What is written.
        path: Of the file; its folder is there.
        form: One of `FORMATS`.

    Raises:
        ExportError: The format is unknown or its package is not installed, the model cannot be
            traced, or the file says something else than the model.
        OSError: The file cannot be written.
    """
    if form not in FORMATS:
        raise ExportError(f"unknown format {form!r}; there are {', '.join(FORMATS)}")
    if missing := missing_packages(form):
        raise ExportError(missing)
    files = import_module(f"dclip.exports.{form}_file")
    with atomic_write(path) as temporary:
        files.write(export, temporary, path.name)
        difference = difference_from_eager(export, files.read(temporary, export))
        if not difference <= TOLERANCE:  # nan is refused, too
            raise ExportError(
                f"the {form} file says something else than the model: the largest difference is "
                f"{difference:.2g}, {TOLERANCE:g} is allowed; nothing was kept"
            )
    beside = path.with_name(f"{path.name}.data")
    size = sum(one.stat().st_size for one in (path, beside) if one.exists())
    return Written(path, size, difference)


def difference_from_eager(export: Export, run: Runner) -> float:
    """The largest difference of any output, of batches of several sizes.

    Of scores that are larger than 1 it is a share of the largest.

    Args:
        export: What was written.
        run: The file, read again.
    """
    most = 0.0
    every = len(next(iter(export.inputs.values())))
    for number in (every, 2, 1):
        inputs = {name: array[:number] for name, array in export.inputs.items()}
        wanted, found = export.eager(inputs), run(inputs)
        for name, array in wanted.items():
            if found[name].shape != array.shape:
                return float("nan")
            unit = max(1.0, float(np.abs(array).max()))
            off = float(np.abs(found[name] - array).max()) / unit
            most = off if np.isnan(off) else max(most, off)
            if np.isnan(most):
                return most
    return most


def traced(export: Export) -> torch.export.ExportedProgram:
    """The model as a graph for any number of images; it says nothing of the files it came from.

    Raises:
        ExportError: It cannot be traced.
    """
    example = tuple(torch.from_numpy(array[:3]) for array in export.inputs.values())
    batch = torch.export.Dim("batch", min=1)
    shapes_ = tuple({0: batch} for _ in example)
    try:
        with torch.no_grad():
            program = torch.export.export(export.module, example, dynamic_shapes=shapes_)
    except Exception as error:  # of any kind: it traces what a user may have written
        raise ExportError(
            f"{export.description.method} on {export.description.backbone} cannot be traced by "
            f"torch.export: {first_line(error)}"
        ) from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None  # of which a file would keep the images
    return program


def _named(said: Sequence[Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in zip(("scores", "maps"), said, strict=True)}
