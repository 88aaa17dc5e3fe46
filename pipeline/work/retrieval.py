"""Images and captions through encoders, ranked by each other, and a picture of their masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dclip.backbones import Backbone, preparation_of
from dclip.data.images import ImageError
from dclip.data.preparation import Preparation
from dclip.fitting.batches import Batch, prefetch, read_batch
from dclip.fitting.images import ImageSource
from dclip.metrics import inter_class_cosine, mask_overlap, retrieval_recall
from dclip.pictures.canvas import heading, one_line, save
from dclip.precision import computing_in
from dclip.retrieval import FrozenPairs, PairEncoder
from pipeline.cluster.device import choose_device
from pipeline.features.opened import open_backbone
from pipeline.pictures.retrieval_figures import mask_sharing
from pipeline.records.checkpoints import load_checkpoint
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress
from pipeline.work.plans import RetrievePlan

_LOOKED_AT = 1000  # captions of different images, for the cosines between them


@dataclass(frozen=True)
class Compared:
    """What came of it.

    Attributes:
        systems: Of every method its recall and what is known of its captions.
        figures: Files of the pictures.
    """

    systems: dict[str, dict[str, Any]]
    figures: list[Path]


@dataclass(frozen=True)
class _System:
    """An encoder, and the CLIP that says how its images are prepared."""

    encoder: PairEncoder
    backbone: Backbone

    @property
    def sees(self) -> tuple[int, Preparation]:
        """Side of the squares that it looks at, and how they are made."""
        return self.backbone.resolution, preparation_of(self.backbone)


def compare(config: Config, plan: RetrievePlan, folder: Path) -> Compared:
    """Encode all images and captions by every system, and rank them by each other.

    Args:
        config: Settings.
        plan: What is compared.
        folder: Of the pictures.

    Raises:
        StageError: An image cannot be read, or a checkpoint is damaged.
    """
    device, _ = choose_device(config.device)
    precision = config.retrieve.precision
    if precision == "auto":
        precision = "float16" if device == "cuda" else "float32"
    size = config.retrieve.batch_size or (128 if device == "cuda" else 32)
    systems = _open(config, plan, device)
    images = _encode_images(config, plan, systems, device, precision, size)
    captions = [caption for own in plan.texts for caption in own]
    counts = torch.tensor([len(own) for own in plan.texts])
    image_of = torch.repeat_interleave(torch.arange(len(plan.texts)), counts)
    first = torch.cumsum(counts, 0) - counts
    looked = first[:: -(-len(first) // _LOOKED_AT)]
    found: dict[str, dict[str, Any]] = {}
    figures: list[Path] = []
    for name, system in systems.items():
        texts = _encode_texts(system.encoder, captions, device, precision, size, name)
        recall = retrieval_recall(
            images[name].to(device),
            texts.features.to(device),
            image_of,
            score=config.retrieve.score,
        )
        found[name] = {
            **{way: {str(k): v for k, v in own.items()} for way, own in recall._asdict().items()},
            "cut": texts.cut,
            **_about_captions(texts.features[looked], None if texts.masks is None
                              else texts.masks[looked]),
        }  # fmt: skip
        if texts.masks is not None:
            shown = list(range(min(config.retrieve.masked_captions, len(captions))))
            title = heading(f"{plan.data} {plan.listing.split}: {name}", one_line(
                str(plan.files.get(name, "")), 90))  # fmt: skip
            path = folder / f"masks-{name.replace('/', '-')}.png"
            folder.mkdir(parents=True, exist_ok=True)
            owners = [plan.listing.key(plan.rows[int(image_of[place])]) for place in shown]
            figure = mask_sharing(
                texts.masks[shown].numpy(), [captions[place] for place in shown], owners, title
            )
            save(figure, path)
            figures.append(path)
    return Compared(found, figures)


def _open(config: Config, plan: RetrievePlan, device: str) -> dict[str, _System]:
    """Frozen CLIP and the checkpoints, each on the device."""
    frozen = open_backbone(config, device=device)
    systems = {"zero_shot": _System(FrozenPairs(frozen), frozen)}
    for name, path in plan.files.items():
        method = load_checkpoint(path)[0].on(device).eval()
        backbone = method.task.backbone
        if not isinstance(method, PairEncoder) or backbone is None:
            raise StageError(
                f"checkpoint {path} is of {method.settings.title}, which encodes no captions; it "
                "lacks embed_images and encode (dclip.retrieval.PairEncoder)"
            )
        systems[name] = _System(method, backbone)
    return systems


def _encode_images(
    config: Config,
    plan: RetrievePlan,
    systems: Mapping[str, _System],
    device: str,
    precision: str,
    size: int,
) -> dict[str, Tensor]:
    """Embeddings of all images by every system; squares that several look at are made once."""
    parts: dict[str, list[Tensor]] = {name: [] for name in systems}
    indices = np.array(plan.rows)
    labels = torch.zeros(len(indices), 0, dtype=torch.int8)
    squares = {system.sees for system in systems.values()}
    with progress("retrieve", len(indices) * len(squares), "images") as bar:
        for side, preparation in sorted(squares):
            source = ImageSource(
                plan.listing,
                indices,
                labels,
                resolution=side,
                form=config.retrieve.form,
                preparation=preparation,
                threads=config.retrieve.threads,
            )
            try:
                for batch in prefetch(_batches(source, size), torch.device(device)):
                    assert batch.pixels is not None
                    for name, system in systems.items():
                        if system.sees == (side, preparation):
                            with torch.no_grad(), computing_in(precision, device):
                                embedded = system.encoder.embed_images(batch.pixels)
                            parts[name].append(embedded.float().cpu())
                    bar.advance(len(batch.pixels))
            except ImageError as error:
                raise StageError(
                    f"{error}; a score over fewer images is another score: mend it, or take it "
                    "and its captions out"
                ) from error
            finally:
                source.close()
    return {name: torch.cat(own) for name, own in parts.items()}


def _batches(source: ImageSource, size: int) -> Iterator[Batch]:
    for start in range(0, len(source), size):
        yield read_batch(source, np.arange(start, min(start + size, len(source))), ("pixels",))


@dataclass(frozen=True)
class _Texts:
    """Features of captions on the CPU, their masks of 0 and 1, and how many were cut."""

    features: Tensor
    masks: Tensor | None
    cut: int


def _encode_texts(
    encoder: PairEncoder,
    captions: Sequence[str],
    device: str,
    precision: str,
    size: int,
    name: str,
) -> _Texts:
    features, masks, cut = [], [], 0
    with progress(f"retrieve by {name}", len(captions), "captions") as bar:
        for start in range(0, len(captions), size):
            with torch.no_grad(), computing_in(precision, device):
                part = encoder.encode(captions[start : start + size])
            features.append(part.features.float().cpu())
            if part.mask_logits is not None:
                masks.append((part.mask_logits >= 0).float().cpu())
            cut += part.cut
            bar.advance(len(part.features))
    return _Texts(torch.cat(features), torch.cat(masks) if masks else None, cut)


def _about_captions(features: Tensor, masks: Tensor | None) -> dict[str, float | None]:
    """How alike captions of different images are, as they are and behind their masks."""
    several = len(features) > 1
    found: dict[str, float | None] = {
        "caption_cosine": inter_class_cosine(features) if several else None
    }
    if masks is not None:
        found["masked_caption_cosine"] = inter_class_cosine(masks * features) if several else None
        found["mask_overlap"] = mask_overlap(masks) if several else None
        found["mask_open"] = float(masks.mean())
    return found
