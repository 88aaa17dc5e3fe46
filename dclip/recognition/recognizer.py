"""A model in three lines: load or fit it, ask it of photographs, keep it."""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from dclip.architectures import facts, unknown_name
from dclip.backbones import Backbone, load_backbone
from dclip.checkpoints.calibration import Calibration, Kind
from dclip.checkpoints.files import load_checkpoint, write_checkpoint
from dclip.checkpoints.origin import About, CheckpointError
from dclip.clip_settings import ClipSettings
from dclip.data.given import GivenImage, name_of, open_image
from dclip.data.images import ImageError, is_image_name
from dclip.devices import find_device
from dclip.methods.method import Method
from dclip.metrics import mean_average_precision
from dclip.prediction import Prediction, UntrainedWarning
from dclip.recognition.card import model_card, summary
from dclip.recognition.features import cache_folder
from dclip.recognition.looking import Looker, Trained, kind_of
from dclip.recognition.places import MODEL_FILE, NoModelError, Which, find_model
from dclip.recognition.result import Result, result_of
from dclip.recognition.training import Labels, Wanted, labels_of, listing_of, train, wanted_of
from dclip.store.paths import write_text
from dclip.templates import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE
from dclip.texts import context_length, name_problem, too_long
from dclip.words import short

_TEMPLATES = (NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE)
_BAR_FROM = 20  # images
_LOOKERS = 4  # lists of class names whose texts are kept
_BATCH = {"cpu": 8, "cuda": 64, "mps": 16}


class Recognizer:
    """A frozen CLIP and a method trained over it, that say which classes photographs show.

    It keeps to scikit-learn's manners: parameters are given here, `fit` trains, `predict_proba` and
    `score` ask, `get_params` and `set_params` tell and change. `predict` says more than an array.

    Args:
        backbone: Name of a frozen CLIP (``RN101``, ``ViT-B-16``, ``tiny``, ...).
        method: Name of the method that is trained.
        pretrained: Tag or file of the CLIP's weights; left out: the usual ones.
        resolution: Side of its images in pixels; left out: 448, or what the CLIP has.
        kind: Of local features.
        preset: Defaults of the method's settings, by name.
        seed: Of the weights, and of which images are held out.
        val_fraction: Share of the images that is held out, in [0, 1): thresholds, calibration and
            the mAP that is told come from them.
        thresholds: What they are chosen for: ``"f1"``, ``"precision=0.9"``, ``"recall=0.9"``.
        calibration: How probabilities are made: ``"platt"``, ``"temperature"`` or ``"none"``.
        device: ``"auto"`` (CUDA, else MPS, else CPU) or a device of torch.
        cache: Folder that keeps features; left out: ``~/.cache/dclip``.
        batch_size: Images a forward pass; left out: by the device.
        settings: Any settings of the method or of its training, such as ``epochs=5``.

    Raises:
        ValueError: A name is unknown, or a value does not fit.

    Example:
        >>> Recognizer("tiny", epochs=2).get_params()["epochs"]
        2
    """

    def __init__(
        self,
        backbone: str = "RN101",
        method: str = "dclip",
        *,
        pretrained: str | None = None,
        resolution: int | None = None,
        kind: str = "value",
        preset: str | None = None,
        seed: int = 0,
        val_fraction: float = 0.1,
        thresholds: str = "f1",
        calibration: Kind = "platt",
        device: str = "auto",
        cache: str | Path | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        self._params: dict[str, Any] = {
            "backbone": backbone,
            "method": method,
            "pretrained": pretrained,
            "resolution": resolution,
            "kind": kind,
            "preset": preset,
            "seed": seed,
            "val_fraction": val_fraction,
            "thresholds": thresholds,
            "calibration": calibration,
            "device": device,
            "cache": cache,
            "batch_size": batch_size,
            **settings,
        }
        self._wanted()
        self._clip: Backbone | None = None
        self._given: ClipSettings | None = None
        self._trained: Trained | None = None
        self._kind = kind
        self._lookers: dict[Any, Looker] = {}

    # -- what it is ------------------------------------------------------------------------------

    @property
    def backbone(self) -> Backbone:
        """The frozen CLIP; it is opened when it is asked for."""
        if self._clip is None:
            self._clip = load_backbone(**self._settings()._asdict(), device=str(self.device))
        return self._clip

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return find_device(self._params["device"])

    @property
    def kind(self) -> str:
        """Of local features."""
        return self._kind

    @property
    def method(self) -> Method[Any] | None:
        """The trained method; None for frozen CLIP alone."""
        return self._trained.method if self._trained else None

    @property
    def about(self) -> About | None:
        """Where the method comes from; None for frozen CLIP alone."""
        return self._trained.about if self._trained else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes it was trained on; none for frozen CLIP alone."""
        return tuple(self._trained.about.class_names) if self._trained else ()

    @property
    def classes_(self) -> np.ndarray:
        """The same, as scikit-learn has it."""
        return np.array(self.class_names)

    @property
    def calibration(self) -> Calibration | None:
        """Probabilities and thresholds by held-out images; None where there were none."""
        return self._trained.about.calibration if self._trained else None

    @property
    def thresholds(self) -> Float[np.ndarray, " classes"]:
        """Probability of each class of the training above which it counts as present."""
        known = self.calibration
        own = [0.5] * len(self.class_names) if known is None else known.thresholds
        return np.array(own, dtype=np.float64)

    def __repr__(self) -> str:
        if self._trained is None:
            return f"Recognizer({self._params['backbone']!r}, nothing trained)"
        about = self._trained.about
        return (
            f"Recognizer({about.name} on {about.made_on}, {len(about.class_names)} classes"
            f"{'' if about.calibration is None else ', calibrated'})"
        )

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - sklearn's
        """Parameters by name."""
        return dict(self._params)

    def set_params(self, **params: Any) -> "Recognizer":
        """Change parameters; what was trained is forgotten.

        Raises:
            ValueError: A name is unknown, or a value does not fit.
        """
        self.__dict__ = type(self)(**{**self._params, **params}).__dict__
        return self

    # -- training --------------------------------------------------------------------------------

    def fit(
        self,
        images: str | Path | Sequence[GivenImage],
        labels: Labels | None = None,
        class_names: Sequence[str] | None = None,
        *,
        progress: bool = True,
    ) -> "Recognizer":
        """Train on images and what is in them.

        The frozen CLIP looks at each image once; its features are kept in the cache folder, so that
        another training on the same images, or on corrected labels, does not wait for them.

        Args:
            images: A folder, or the images one by one (see `dclip.data.given.GivenImage`).
            labels: Names of classes in each image; or a table of images x classes; of a folder the
                path of its table, or nothing where it has one table, or is a tree of YOLO, Label
                Studio and the like. Of a folder with splits, ``train`` is taken.
            class_names: Of the columns, or all names there are.
            progress: Show bars.

        Raises:
            ValueError: Images, labels and method do not go together.
            ImageError: No image can be read.
            OSError: Weights of the CLIP cannot be had.
        """
        wanted, listing = self._wanted(), listing_of(images, labels, class_names)
        self._require_names(listing.class_names)
        cache = self._params["cache"]
        self._trained = train(
            listing,
            self.backbone,
            self._settings(),
            wanted,
            cache=cache_folder() if cache is None else Path(cache).expanduser(),
            device=self.device.type,
            batch_size=self._params["batch_size"],
            progress=progress,
        )
        self._lookers.clear()
        return self

    # -- asking ----------------------------------------------------------------------------------

    def predict(
        self,
        images: GivenImage | Sequence[GivenImage],
        classes: Sequence[str] | None = None,
        *,
        threshold: float | None = None,
        masks: bool = True,
        batch_size: int | None = None,
        progress: bool | None = None,
        errors: Literal["raise", "skip"] = "raise",
    ) -> list[Result]:
        """What images show.

        Args:
            images: One or several: paths, URLs, bytes, PIL images, arrays, tensors; or the path of
                a folder of images.
            classes: What is looked for; left out: the classes of the training. Names that it was
                not trained on are scored by CLIP itself, which a warning tells.
            threshold: In (0, 1), in place of the threshold of each class that was trained on.
            masks: Whether pixels get classes, too.
            batch_size: Images a forward pass.
            progress: Show a bar; left out: from 20 images on, on a terminal.
            errors: ``"skip"`` leaves out images that cannot be read, with a warning each.

        Raises:
            ImageError: An image cannot be read.
            ValueError: Names are missing, unfit or unknown to a method that is bound to its
                classes, or the threshold lies outside (0, 1).

        Warns:
            UntrainedWarning: If the method was not trained on some of the classes.
        """
        return list(
            self.stream(
                images, classes, threshold=threshold, masks=masks, batch_size=batch_size,
                progress=progress, errors=errors,
            )
        )  # fmt: skip

    def stream(
        self,
        images: GivenImage | Sequence[GivenImage],
        classes: Sequence[str] | None = None,
        *,
        threshold: float | None = None,
        masks: bool = True,
        batch_size: int | None = None,
        progress: bool | None = None,
        errors: Literal["raise", "skip"] = "raise",
        keep_images: bool = True,
    ) -> Iterator[Result]:
        """As `predict`, one result after the other: of any number of images, few are in memory.

        Args:
            images: As of `predict`.
            classes: As of `predict`.
            threshold: As of `predict`.
            masks: As of `predict`.
            batch_size: As of `predict`.
            progress: As of `predict`.
            errors: As of `predict`.
            keep_images: Whether results hold their image, for `Result.plot`.
        """
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
        looker = self.looker(classes)
        self._warn_of_untrained(looker)
        given = _listed(images)
        size = batch_size or self._params["batch_size"] or _BATCH.get(looker.device.type, 8)
        is_shown = len(given) >= _BAR_FROM and sys.stderr.isatty() if progress is None else progress
        with (
            tqdm(total=len(given), unit="image", desc="predict", disable=not is_shown) as bar,
            _readers(size) as read,
        ):
            batches = [
                range(start, min(start + size, len(given))) for start in range(0, len(given), size)
            ]
            coming = [read(given, batch) for batch in batches[:1]]
            for number, batch in enumerate(batches):
                coming += [read(given, each) for each in batches[number + 1 : number + 2]]
                opened = list(coming.pop(0))  # while the network is at work, the next are read
                good = []
                for place, image in zip(batch, opened, strict=True):
                    if isinstance(image, ImageError):
                        if errors == "raise":
                            raise image
                        warnings.warn(f"left out: {image}", stacklevel=2)
                    else:
                        good.append((place, image))
                said = looker.look([image for _, image in good], masks=masks) if good else []
                for (place, image), one in zip(good, said, strict=True):
                    source = name_of(given[place], place)
                    kept = image if keep_images else None
                    yield self.result(looker, one, source, threshold=threshold, image=kept)
                bar.update(len(batch))

    def predict_proba(
        self, images: GivenImage | Sequence[GivenImage], classes: Sequence[str] | None = None
    ) -> Float[np.ndarray, "images classes"]:
        """Scores of every class in every image: probabilities, where a method gives them.

        Args:
            images: As of `predict`.
            classes: As of `predict`.
        """
        results = self.predict(images, classes, masks=False)
        return np.array([list(result.scores.values()) for result in results], dtype=np.float64)

    def score(self, images: GivenImage | Sequence[GivenImage], labels: Labels) -> float:
        """Mean average precision on images that it was not trained on, in [0, 1].

        Args:
            images: As of `predict`.
            labels: As of `fit`, of the classes of the training.
        """
        _, marks = labels_of(labels, self._own_names())
        return mean_average_precision(
            torch.from_numpy(self.predict_proba(images)), torch.from_numpy(marks)
        )

    def looker(self, classes: Sequence[str] | None = None) -> Looker:
        """What asks the network of some classes; the last four are kept.

        Args:
            classes: Their names; left out: those of the training.

        Raises:
            ValueError: See `Looker`.
        """
        if isinstance(classes, str):
            raise ValueError(f"classes must be a list of names, got the text {classes!r}")
        names = self._own_names() if classes is None else tuple(classes)
        if names not in self._lookers:
            self._require_names(names)
            made = Looker(self.backbone, names, self._trained, kind=self._kind, device=self.device)
            while len(self._lookers) >= _LOOKERS:
                del self._lookers[next(iter(self._lookers))]
            self._lookers[names] = made
        return self._lookers[names]

    # -- keeping ---------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `dclip.load` reads, as the Hugging Face Hub has them.

        ``model.safetensors`` is what was trained, a checkpoint like any other; ``config.json`` says
        in short what it is, ``README.md`` is its model card. The weights of the frozen CLIP are
        not in it: they are named.

        Args:
            folder: Is made if it is not there.

        Returns:
            The folder.

        Raises:
            ValueError: Nothing was trained.
            OSError: It cannot be written.
        """
        if self._trained is None:
            raise ValueError("nothing was trained, so there is nothing to save; call fit first")
        place = Path(folder).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        write_checkpoint(place / MODEL_FILE, self._trained.method, self._trained.about)
        write_text(place / "config.json", summary(self._trained.about))
        write_text(place / "README.md", model_card(self._trained.about))
        return place

    save_pretrained = save

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None
    ) -> str:
        """Put it on the Hugging Face Hub.

        Args:
            repository: ``user/name``; it is made if it is not there.
            private: Whether others do not see it, if it is made.
            token: Of the user; left out: that of ``hf auth login``.

        Returns:
            Its address.

        Raises:
            ValueError: Nothing was trained.
            OSError: The Hub cannot be reached, or refuses.
        """
        import huggingface_hub  # a quarter of a second, which nothing else here needs

        hub = huggingface_hub.HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            hub.create_repo(repository, private=private, exist_ok=True)
            done = hub.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Upload a DCLIP model"
            )
        return str(done.repo_url)

    # -- inside ----------------------------------------------------------------------------------

    @classmethod
    def of(
        cls,
        trained: Trained | None,
        clip: ClipSettings | Backbone,
        *,
        kind: str | None = None,
        device: str = "auto",
        what: str = "the checkpoint",
    ) -> "Recognizer":
        """One of parts that are at hand.

        Args:
            trained: A method; None for frozen CLIP alone.
            clip: How its CLIP is opened, or the CLIP itself.
            kind: Of local features; left out: what the method was trained on.
            device: As of the class.
            what: How messages call the checkpoint.

        Raises:
            CheckpointError: The method was trained on another CLIP.
        """
        params: dict[str, Any] = {"device": device}
        if isinstance(clip, ClipSettings):
            fields = clip._asdict()
            params |= {"backbone": fields.pop("name")}
            params |= {name: fields[name] for name in ("pretrained", "resolution")}
        made = cls(**params)
        if isinstance(clip, ClipSettings):
            made._given = clip
        else:
            made._clip = clip.to(made.device)
        if trained is not None:
            made._trained = trained
            made._params["method"] = trained.about.method
            made._kind = kind or kind_of(trained.about, made.backbone, what)
        elif kind is not None:
            made._kind = kind
        return made

    def _settings(self) -> ClipSettings:
        """How its CLIP is opened."""
        if self._given is not None:
            return self._given
        own = self._params
        return ClipSettings(own["backbone"], own["pretrained"], own["resolution"])

    def _wanted(self) -> Wanted:
        own = dict(self._params)
        for name in ("backbone", "pretrained", "resolution", "device", "cache", "batch_size"):
            del own[name]
        asked = {
            name: own.pop(name)
            for name in ("kind", "preset", "seed", "val_fraction", "thresholds", "calibration")
        }
        return wanted_of(own.pop("method"), own, **asked)

    def _own_names(self) -> tuple[str, ...]:
        if not self.class_names:
            raise ValueError('frozen CLIP was trained on no classes; name some: classes=["dog"]')
        return self.class_names

    def _require_names(self, names: Sequence[str]) -> None:
        """Refuse names that the text encoder cannot read whole."""
        for name in names:
            if problem := name_problem(str(name)):
                raise ValueError(f"class name {name!r} {problem}")
        length = context_length(self._settings().name)
        if length is None:
            return
        plain = [str(name).replace("_", " ") for name in names]
        if found := too_long(plain, _TEMPLATES, length):
            name, tokens = found[0]
            raise ValueError(
                f"class name {short(name, 60)!r} makes a text of {tokens} tokens, of which "
                f"{self._settings().name} reads {length}; give a shorter one"
            )

    def _warn_of_untrained(self, looker: Looker) -> None:
        new = [
            name
            for name, old in zip(looker.class_names, looker.trained_as, strict=True)
            if old is None
        ]
        if self._trained is not None and new:
            warnings.warn(
                f"{len(new)} of {len(looker.class_names)} classes were not trained on, such as "
                f"{new[0]!r}: CLIP itself scores them, on a scale of its own (Result.measures)",
                UntrainedWarning,
                stacklevel=4,
            )

    def result(
        self,
        looker: Looker,
        said: Prediction,
        source: str,
        *,
        threshold: float | None = None,
        image: Image.Image | None = None,
    ) -> Result:
        """A prediction by the names of its classes, with the thresholds of this model.

        Args:
            looker: That said it, of `looker`.
            said: Of one image.
            source: What the image is called.
            threshold: As of `predict`.
            image: To be kept, for `Result.plot`.
        """
        known = looker.calibration
        limits = None if known is None else known.thresholds
        if threshold is not None:
            limits = [threshold] * len(looker.class_names)
            said = _at(said, threshold)
        return result_of(
            said,
            looker.class_names,
            limits,
            source=source,
            untrained_cosine=None if known is None else known.untrained_cosine,
            image=image,
            placed=looker.maps_on,
        )


def _at(said: Any, threshold: float) -> Any:
    """A prediction whose trained classes are there above one threshold."""
    if said.presence is None or said.trained is None:
        return said
    present = torch.where(said.trained, said.presence > threshold, said.present)
    return replace(said, present=present)


def _listed(images: GivenImage | Sequence[GivenImage]) -> list[GivenImage]:
    """Images one by one; of a folder those that are directly in it.

    Raises:
        ValueError: A folder has none.
    """
    if isinstance(images, str | Path) and Path(images).is_dir():
        folder = Path(images)
        found = sorted(path for path in folder.iterdir() if is_image_name(path.name))
        if not found:
            raise ValueError(f"folder {folder} has no image directly in it")
        return list(found)
    if isinstance(images, list | tuple):
        return list(images)
    if not isinstance(images, str | bytes) and not hasattr(images, "shape"):
        try:
            return list(images)
        except TypeError:
            return [images]
    is_stack = getattr(images, "ndim", 0) == 4
    return list(images) if is_stack else [images]


@contextmanager
def _readers(size: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Threads that open the images of a batch."""
    with ThreadPoolExecutor(min(size, 8), thread_name_prefix="read") as pool:

        def one(given: GivenImage) -> Any:
            try:
                return open_image(given)
            except ImageError as error:
                return error

        yield lambda given, batch: pool.map(one, [given[number] for number in batch])


def load(
    place: str | Path,
    *,
    which: Which = "newest",
    device: str = "auto",
    backbone: str | Backbone | None = None,
    pretrained: str | None = None,
    resolution: int | None = None,
) -> Recognizer:
    """A model, ready to be asked.

    Args:
        place: An output folder of the stages; a checkpoint; a folder that `Recognizer.save` made;
            an MLflow model URI; a name of the Hugging Face Hub; or the name of a CLIP, such as
            ``RN101`` or ``tiny``, for frozen CLIP alone.
        which: Of an output folder, the ``"newest"`` checkpoint, or the ``"best"`` on held-out
            images.
        device: ``"auto"`` (CUDA, else MPS, else CPU) or a device of torch.
        backbone: The CLIP itself, or its name, where a checkpoint does not say it or code of your
            own makes it.
        pretrained: Tag or file of the CLIP's weights, in place of what the checkpoint says: where
            they lie elsewhere on this machine.
        resolution: Of frozen CLIP alone: side of its images.

    Returns:
        A model with the classes of its training.

    Raises:
        NoModelError: There is none at that place.
        CheckpointError: The file is damaged, or of another CLIP.
        ValueError: A name or argument is unknown or does not fit.
        OSError: Weights are not here and cannot be fetched.

    Example:
        >>> model = load("tiny")
        >>> model
        Recognizer('tiny', nothing trained)
    """
    if isinstance(place, str) and not Path(place).exists() and context_length(place) is not None:
        return Recognizer(place, pretrained=pretrained, resolution=resolution, device=device)
    try:
        path = find_model(place, which)
    except NoModelError as error:
        text = str(place)
        if "/" in text or "." in text or "\\" in text:
            raise
        raise NoModelError(f"{error}. {unknown_name(text, facts().architectures)}") from None
    where = find_device(device)
    opened: list[Backbone] = []

    def open_clip(clip: ClipSettings) -> Backbone:
        if isinstance(backbone, Backbone):
            return backbone.to(where)
        if not opened:
            changes: dict[str, Any] = {} if pretrained is None else {"pretrained": pretrained}
            changes |= {} if backbone is None else {"name": backbone}
            clip = clip._replace(**changes)
            if ":" in clip.name and backbone is None:
                raise CheckpointError(
                    f"{path} was trained on a backbone of somebody's own, {clip.name!r}; to run "
                    f"that code, say so: backbone={clip.name!r}"
                )
            opened.append(load_backbone(**clip._asdict(), device=str(where)))
        return opened[0]

    method, about = load_checkpoint(path, open_clip=open_clip)
    if about.encoder is None and backbone is None:
        raise CheckpointError(
            f"{path} does not say of which CLIP it is; name it: backbone=..., such as "
            f"{about.backbone_name.partition('/')[0]!r}"
        )
    clip = about.encoder.clip if about.encoder else ClipSettings(_name_of(backbone))
    made = Recognizer.of(
        Trained(method, about), open_clip(clip), device=device, what=f"checkpoint {path}"
    )
    made._given = clip
    made._params |= {"backbone": clip.name, "pretrained": clip.pretrained}
    return made


def _name_of(backbone: str | Backbone | None) -> str:
    return backbone if isinstance(backbone, str) else str(getattr(backbone, "name", "unknown"))


def fit(
    images: str | Path | Sequence[GivenImage],
    labels: Labels | None = None,
    *,
    backbone: str = "RN101",
    method: str = "dclip",
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    **params: Any,
) -> Recognizer:
    """Train a method on your images; no Ray, no MLflow, no settings file.

    Args:
        images: A folder, or images one by one; see `Recognizer.fit`.
        labels: What is in them; see `Recognizer.fit`.
        backbone: Name of a frozen CLIP.
        method: Name of the method.
        class_names: Of the columns of a table, or all names there are.
        progress: Show bars.
        params: Any other parameter of `Recognizer`, such as ``epochs=5`` or ``device="cpu"``.

    Returns:
        The model.

    Raises:
        ValueError: Images, labels and settings do not go together.
        ImageError: No image can be read.
        OSError: Weights of the CLIP cannot be had.
    """
    model = Recognizer(backbone, method, **params)
    return model.fit(images, labels, class_names, progress=progress)
