"""A trained model together with what made it, in one safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dclip.logits import presence_probability
from dclip.model import DCLIP
from dclip.paths import atomic_write
from dclip.shards import Manifest
from dclip.trials import Training, build_model
from pipeline.errors import StageError, told
from pipeline.origin import About, bad_checkpoint, read_about

_TEXT = "text_features.pairs"


def write_state(path: Path, training: Training) -> None:
    """Write all that a training needs to go on from where it stands."""
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(training.state_tensors(), temporary)


def read_state(path: Path, training: Training) -> None:
    """Restore in place what :func:`write_state` wrote of an equal training.

    Raises:
        StageError: The file is damaged, or of another training.
    """
    try:
        training.load_state_tensors(safetensors.torch.load_file(path))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StageError(
            f"cannot go on from {path}: {told(error)}; delete it to train from the start"
        ) from None


def read_place(path: Path) -> tuple[int, int]:
    """Epochs, and steps of the one begun, that a kept state has done; none where there is none."""
    try:
        with safetensors.safe_open(path, "pt") as state:
            return int(state.get_tensor("epoch")), int(state.get_tensor("step"))
    except (OSError, safetensors.SafetensorError):
        return 0, 0


def write_checkpoint(
    path: Path, model: DCLIP, texts: Float32[Tensor, "pairs dim"], about: About
) -> None:
    """Write projectors, the text features they were trained with, and their origin."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors[_TEXT] = texts
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            temporary,
            metadata=about.metadata(),
        )


def load_checkpoint(path: Path) -> tuple[DCLIP, Float32[Tensor, "pairs dim"], About]:
    """Projectors in evaluation mode, their text features, and their origin.

    Raises:
        StageError: The file is missing, damaged, or of another format.
    """
    about = read_about(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise bad_checkpoint(path, told(error)) from None
    try:
        with torch.device("meta"):  # a width that is wrong takes no memory
            sizes = build_model(about.recipe, about.embed_dim).state_dict()
            pairs = torch.empty(2 * len(about.class_names), about.embed_dim)
    except (RuntimeError, TypeError, ValueError):  # of numbers that are too large for torch
        raise bad_checkpoint(path, "no projectors have the widths that it tells of") from None
    expected = {f"model.{name}": value for name, value in sizes.items()}
    _require_alike(path, tensors, {**expected, _TEXT: pairs})
    texts = tensors.pop(_TEXT)
    model = build_model(about.recipe, about.embed_dim)
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items()}, strict=True
    )
    return model.eval(), texts, about


def _require_alike(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are not those of the training that a checkpoint tells of.

    Raises:
        StageError: One is missing, too many, of another shape or type, or not finite.
    """
    for name in sorted({*tensors, *expected}):
        if name not in tensors:
            raise bad_checkpoint(path, f"{name} is missing")
        if name not in expected:
            raise bad_checkpoint(path, f"it has {name}, which projectors have not")
        found, wanted = (f"{list(t.shape)} {t.dtype}" for t in (tensors[name], expected[name]))
        if found != wanted:
            raise bad_checkpoint(path, f"{name} is {found}, its training makes {wanted}")
        if not tensors[name].isfinite().all():
            raise bad_checkpoint(path, f"{name} has values that are not finite")


class Scorer(nn.Module):
    """A checkpoint as one function: local features to the probability of each of its classes.

    Args:
        model: Its projectors.
        texts: The text features they were trained with.
    """

    def __init__(self, model: DCLIP, texts: Float32[Tensor, "pairs dim"]) -> None:
        super().__init__()
        self.model = model
        self.texts: Tensor
        self.register_buffer("texts", texts)

    def forward(self, local: Float32[Tensor, "images locations dim"]) -> Tensor:
        """Probability of presence of every class in every image."""
        return presence_probability(self.model(local, self.texts).pair_logits)


def check_features(path: Path, about: About, manifest: Manifest) -> None:
    """Refuse features that the checkpoint was not made for.

    Raises:
        StageError: They come from another backbone, resolution or preprocessing, or the classes
            differ.
    """
    if about.feature_space != manifest.feature_space:
        raise StageError(
            f"checkpoint {path} was trained on features of {about.made_on} "
            f"({about.feature_space[:12]}), these are of {manifest.spec.get('backbone_name')} "
            f"at {manifest.spec.get('resolution', 'unknown')} px, kind "
            f"{manifest.spec.get('kind', 'unknown')} ({manifest.feature_space[:12]}); use the "
            "same backbone, weights and resolution"
        )
    if about.class_names != manifest.class_names:
        raise StageError(
            f"checkpoint {path} knows {len(about.class_names)} classes ({about.class_names[0]}, "
            f"...), the features are labelled with {len(manifest.class_names)} others "
            f"({manifest.class_names[0]}, ...); evaluate on a split with the same classes"
        )
