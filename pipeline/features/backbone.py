"""What planning knows of the frozen CLIP without loading it, and what has to be said of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

import dclip
from dclip.clip_settings import ClipSettings
from dclip.methods.settings import MethodSettings
from dclip.store.paths import write_text
from dclip.store.shards import digest
from dclip.store.space import feature_space
from dclip.texts import EMBEDDED, context_length, too_long
from pipeline.features.splits import tested_on_train
from pipeline.settings.config import TOY_DATASETS, Config
from pipeline.terminal.errors import UsageError

log = logging.getLogger(__name__)

_TEXTS: Literal["token embeddings"] = "token embeddings"


def warnings_of(config: Config) -> list[str]:
    """What has to be known of every result of these settings, for log and report."""
    told = []
    if not config.predict.paths and tested_on_train(config):
        told.append(
            f"split {config.test_split!r} is the training images: scores on it say nothing of"
            " other images"
        )
    is_toy = config.backbone in EMBEDDED and config.pretrained is None
    if not is_toy or (config.dataset in TOY_DATASETS and not config.predict.paths):
        return told
    return [*told, tiny_warning("image files" if config.predict.paths else config.dataset)]


def tiny_warning(images: str) -> str:
    """What has to be known where the small CLIP looks at other images than the drawn ones."""
    return (
        f"backbone tiny on {images}: this small CLIP has seen nothing but the drawn scenes of the "
        "data set shapes; what it says of photographs is meaningless. Take a real CLIP, such as "
        "--backbone RN101"
    )


@cache
def _warn_once(text: str) -> None:
    log.warning("warning: %s", text)


@dataclass(frozen=True)
class BackboneInfo:
    """What planning needs to know of a backbone; kept on disk, so that none has to be loaded.

    Attributes:
        name: How reports call it.
        fingerprint: Hash of its weights and architecture.
        former: The same as version 0.1 made it, which features and checkpoints of that time have.
        embed_dim: Dimension of the joint space.
        resolution: Side of its images in pixels.
        grid: Rows and columns of locations at that resolution.
        include_global_token: Whether the mean token precedes them.
        mean: Channel means subtracted from images.
        std: Channel deviations divided by.
        preparation: How images are resized, in words.
        paths: How local features are made, by kind.
        offers: What it has for methods that look inside (`dclip.backbones.gradients`).
        text_width: Numbers in a token of its text tower; None where no context can enter it.
        logit_scale: Multiplier of its cosines.
        logit_bias: Added to them before a sigmoid; None where it was trained by a softmax.
        unsaid: What its files leave open, and what is taken for it.
    """

    name: str
    fingerprint: str
    former: str
    embed_dim: int
    resolution: int
    grid: tuple[int, int]
    include_global_token: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    preparation: str
    paths: dict[str, str]
    offers: tuple[str, ...]
    text_width: int | None
    logit_scale: float
    logit_bias: float | None
    unsaid: tuple[str, ...] = ()

    @property
    def locations(self) -> int:
        """Local features of an image, the mean token included."""
        return self.grid[0] * self.grid[1] + int(self.include_global_token)

    def require_kind(self, kind: str) -> None:
        """Refuse a kind of local features that it does not have.

        Raises:
            UsageError: It does not.
        """
        if kind not in self.paths:
            raise UsageError(
                f"backbone {self.name} has no features of kind {kind!r}; it has "
                + ", ".join(self.paths)
            )

    def space(self, kind: str) -> dict[str, Any]:
        """What gives the numbers of its features of a kind their meaning.

        Raises:
            UsageError: It has no such kind.
        """
        self.require_kind(kind)
        return feature_space(
            fingerprint=self.fingerprint,
            kind=kind,
            path=self.paths[kind],
            resolution=self.resolution,
            include_global_token=self.include_global_token,
            preparation=self.preparation,
            mean=self.mean,
            std=self.std,
        )

    def former_space(self, kind: str) -> dict[str, Any]:
        """The same in features that version 0.1 made.

        Raises:
            UsageError: It has no such kind.
        """
        return self.space(kind) | {"backbone": self.former}


def clip_of(config: Config) -> ClipSettings:
    """What of the settings tells one frozen CLIP from another."""
    own = {name: getattr(config, name) for name in ClipSettings._fields if name != "name"}
    return ClipSettings(config.backbone, **own)


def require_prompts(
    config: Config, class_names: Sequence[str], tried: Sequence[MethodSettings] = ()
) -> None:
    """Refuse, before any work, texts of a method's own that the backbone does not take.

    Args:
        config: Settings; they say which method.
        class_names: Have to fit behind its contexts.
        tried: Settings of the method, where others than those are trained.

    Raises:
        UsageError: The backbone lets no vectors into its texts, or a name or text does not fit.
    """
    own, every = config.own, tried or [config.own]
    needs = ([_TEXTS] if own.needs_gradients else []) + sorted(own.needs)
    backbone = describe_backbone(config) if needs else None
    for need in needs:
        if backbone is not None and need not in backbone.offers:
            kind = "CLIP" if need == _TEXTS else "ViT"
            raise UsageError(
                f"--method {config.method} needs {need}, which the backbone {backbone.name} does "
                f"not offer (it offers {', '.join(backbone.offers) or 'features only'}); take a "
                f"{kind} of open_clip, such as --backbone ViT-B-16"
            )
    length = context_length(config.backbone)
    if length is None:  # only its own code tells
        return
    texts = sorted({text for one in every for text in one.own_texts()})
    if found := too_long(texts, ["{}"], length):
        text, tokens = max(found, key=lambda one: one[1])
        raise UsageError(
            f"--method {config.method}: its text {text!r} has {tokens} tokens, of which "
            f"{config.backbone} reads {length}; give a shorter one"
        )
    if not own.needs_gradients:
        return
    longest = max((one.prompt_template() for one in every), key=len)
    names = [name.replace("_", " ") for name in class_names]
    if found := too_long(names, [longest], length):
        name, tokens = max(found, key=lambda one: one[1])
        raise UsageError(
            f"--method {config.method}: with its context, the text of {name!r} has {tokens} "
            f"tokens, of which {config.backbone} reads {length}; lower the context_length by "
            f"{tokens - length}, or give a shorter name"
        )


def describe_backbone(config: Config) -> BackboneInfo:
    """Facts about the backbone of the settings, from an earlier run where nothing changed since.

    Raises:
        UsageError: An unknown name, or an unusable resolution.
        OSError: Weights that are not here and cannot be fetched.
    """
    if not config.predict.paths:  # that stage may take another backbone yet, and warns by itself
        for warning in warnings_of(config):
            _warn_once(warning)
    weights = config.pretrained if config.pretrained and Path(config.pretrained).is_file() else None
    info = _describe_backbone(
        clip_of(config),
        _stamp(Path(weights)) if weights else "",
        config.output.absolute() / "backbones",
    )
    for text in info.unsaid:
        _warn_once(text)
    return info


@lru_cache(maxsize=8)
def _describe_backbone(clip: ClipSettings, stamp: str, cache: Path) -> BackboneInfo:
    package = Path(dclip.__file__).parent
    code = sorted([*package.glob("backbones/**/*.py"), *package.glob("world/tiny*_clip.*")])
    about = {
        "settings": [*clip, stamp],
        "code": [_stamp(path) for path in code],
        "libraries": [version("open_clip_torch"), version("timm")],
    }
    path = cache / f"{digest(about)[:24]}.json"
    is_own = ":" in clip.name  # code that cannot be told from a changed one
    facts = TypeAdapter(BackboneInfo)
    if not is_own:
        try:
            return facts.validate_json(path.read_bytes())
        except (OSError, ValueError):
            pass  # there is none, or none that can be used: it is made anew
    # torch takes seconds to load, and these facts are mostly on disk
    from dclip.backbones import former_fingerprint, preparation_of, require
    from dclip.logits import sigmoid_of
    from pipeline.features.opened import opened_clip

    backbone, unsaid = opened_clip(clip, "cpu")
    sigmoid = sigmoid_of(backbone)
    offers = tuple(getattr(backbone, "offers", ()))
    info = BackboneInfo(
        name=backbone.name,
        fingerprint=backbone.fingerprint(),
        former=former_fingerprint(backbone),
        embed_dim=backbone.embed_dim,
        resolution=backbone.resolution,
        grid=backbone.grid(backbone.resolution, backbone.resolution),
        include_global_token=backbone.include_global_token,
        mean=backbone.mean,
        std=backbone.std,
        preparation=str(preparation_of(backbone)),
        paths={kind: backbone.feature_path(kind) for kind in backbone.kinds},
        offers=offers,
        text_width=require(backbone, _TEXTS, for_="a method").text_tower.width
        if _TEXTS in offers
        else None,
        logit_scale=float(getattr(backbone, "logit_scale", 100.0)),
        logit_bias=None if sigmoid is None else sigmoid.bias,
        unsaid=unsaid,
    )
    if not is_own:
        cache.mkdir(parents=True, exist_ok=True)
        write_text(path, facts.dump_json(info, indent=1).decode())
    return info


def _stamp(path: Path) -> str:
    """What changes when a file does."""
    stat = path.stat()
    return f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
