"""The end of an extraction: text features, the table of samples, and last the manifest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dclip.backbones import Backbone
from dclip.backbones.gradients import logit_scale_of
from dclip.logits import sigmoid_of
from dclip.prompts import encode_class_names, encode_prompt_pairs
from dclip.store import shards
from dclip.store.paths import AnyPath, write_text
from dclip.store.reader import write_text_features
from dclip.templates import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE


class Identity(NamedTuple):
    """What tells features from others, as the manifest keeps it.

    Attributes:
        space: See :func:`dclip.store.space.feature_space`.
        source: What was read and how it is kept.
        feature_space: Hash of ``space``.
        formerly: What version 0.1 had for it.
        fingerprint: Hash of both.
        view: 0 for images as they are, else which augmented view.
        storage: How features are kept.
    """

    space: Mapping[str, Any]
    source: Mapping[str, Any]
    feature_space: str
    formerly: str
    fingerprint: str
    view: int = 0
    storage: shards.Storage = "float16"


def write_failures(folder: AnyPath, failures: Sequence[shards.Failure]) -> AnyPath:
    """Write which images were left out, one a line; the file."""
    listed = folder / shards.FAILURES
    write_text(listed, "".join(failure.model_dump_json() + "\n" for failure in failures))
    return listed


def finish(
    folder: AnyPath,
    sidecars: Sequence[shards.Sidecar],
    backbone: Backbone,
    identity: Identity,
    *,
    dataset: str,
    root: str,
    split: str,
    class_names: Sequence[str],
    images: str = "",
    notes: Sequence[str] = (),
    commit: str | None = None,
) -> shards.Manifest:
    """Write all that stands beside finished shards; where the manifest is, the folder is complete.

    Args:
        folder: Of the shards, with the list of failures (`write_failures`).
        sidecars: Of all shards, in order.
        backbone: That made them; it encodes the texts of the classes.
        identity: Of the features.
        dataset: Name or place of the data.
        root: Where the images lie; empty if the name says it.
        split: Which part of the data.
        class_names: In column order.
        images: Hash of their keys and files, whatever their labels.
        notes: How the data were read.
        commit: Of the code.
    """
    failures = [failure for sidecar in sidecars for failure in sidecar.failures]
    write_text_features(
        folder / shards.TEXT,
        encode_prompt_pairs(backbone, class_names).float().cpu(),
        encode_class_names(backbone, class_names).float().cpu(),
        {
            "class_names": list(class_names),
            "positive": POSITIVE_TEMPLATE,
            "negative": NEGATIVE_TEMPLATE,
            "zero_shot": [ZERO_SHOT_TEMPLATE],
        },
    )
    shards.write_samples(folder / shards.SAMPLES, sidecars)
    sigmoid = sigmoid_of(backbone)
    grid = backbone.grid(backbone.resolution, backbone.resolution)
    seconds: Counter[str] = Counter()
    for sidecar in sidecars:
        seconds.update(sidecar.seconds)
    manifest = shards.Manifest(
        format=shards.FORMAT,
        fingerprint=identity.fingerprint,
        feature_space=identity.feature_space,
        dataset=dataset,
        root=root,
        split=split,
        class_names=list(class_names),
        num_images=sum(sidecar.count for sidecar in sidecars),
        kind=identity.space["kind"],
        view=identity.view,
        storage=identity.storage,
        locations=grid[0] * grid[1] + int(backbone.include_global_token),
        dim=backbone.embed_dim,
        grid=grid,
        include_global_token=backbone.include_global_token,
        spec={
            "backbone_name": backbone.name,
            "formerly": identity.formerly,
            "logit_scale": float(logit_scale_of(backbone)),
            "logit_bias": None if sigmoid is None else sigmoid.bias,
            **identity.space,
            **identity.source,
        },
        compute=sorted({sidecar.compute for sidecar in sidecars}),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        shards=[
            shards.ShardEntry(
                name=shards.shard_name(n),
                count=s.count,
                bytes=s.bytes,
                sha256=s.sha256,
                sidecar=shards.sidecar_digest(s),
            )
            for n, s in enumerate(sidecars)
        ],
        failures=failures,
        files={
            name: shards.file_digest(folder / name)
            for name in (shards.TEXT, shards.SAMPLES, shards.FAILURES)
        },
        commit=commit,
        images=images,
        notes=list(notes),
    )
    write_text(folder / shards.MANIFEST, manifest.model_dump_json(indent=1))
    return manifest
