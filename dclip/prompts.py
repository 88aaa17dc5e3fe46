"""Class names and prompt templates to texts, and texts to one feature per class.

A *prompt pair* asks about one class twice: once for its absence, once for its presence. All
functions that deal in pairs keep one order: rows ``0 .. N-1`` are the negative prompts, rows
``N .. 2N-1`` the positive ones, each block in the order of the class names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Backbone
from dclip.templates import (
    NEGATIVE_TEMPLATE,
    POSITIVE_TEMPLATE,
    ZERO_SHOT_TEMPLATE,
    check_template,
)
from dclip.texts import check_class_names
from dclip.texts import fold_name as fold_name
from dclip.texts import same_text as same_text


def prompt_pairs(
    class_names: Sequence[str],
    *,
    positive: str = POSITIVE_TEMPLATE,
    negative: str = NEGATIVE_TEMPLATE,
) -> list[str]:
    """Texts of the prompt pairs, all negatives before all positives.

    Args:
        class_names: Distinct, non-blank names; their order becomes the column order of logits.
        positive: Prompt template that says a class is present, with one ``{}``.
        negative: Prompt template that says a class is absent, with one ``{}``.

    Returns:
        ``2 * len(class_names)`` texts.

    Raises:
        ValueError: If the names are empty, blank or repeated, or a template has not one ``{}``.

    Example:
        >>> prompt_pairs(("dog", "horse"))[1:3]
        ['Not a photo of a horse', 'A photo of a dog']
    """
    return _fill(negative, class_names) + _fill(positive, class_names)


@torch.no_grad()
def encode_prompt_pairs(
    backbone: Backbone,
    class_names: Sequence[str],
    *,
    positive: str = POSITIVE_TEMPLATE,
    negative: str = NEGATIVE_TEMPLATE,
) -> Float[Tensor, "pairs dim"]:
    """Frozen text features of the prompt pairs, the text input of :class:`dclip.model.DCLIP`.

    They are not normalised: the text projector has learnt the scale of the raw features.

    Args:
        backbone: Frozen encoder.
        class_names: Distinct, non-blank names, N of them.
        positive: Prompt template that says a class is present, with one ``{}``.
        negative: Prompt template that says a class is absent, with one ``{}``.

    Returns:
        One row a text: rows ``0 .. N-1`` negative, rows ``N .. 2N-1`` positive; no gradient.

    Raises:
        ValueError: If the names are empty, blank or repeated, or a template has not one ``{}``.
    """
    return backbone.encode_texts(prompt_pairs(class_names, positive=positive, negative=negative))


@torch.no_grad()
def encode_class_names(
    backbone: Backbone,
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = (ZERO_SHOT_TEMPLATE,),
) -> Float[Tensor, "classes dim"]:
    """One unit text feature per class: the normalised mean over templates of unit features.

    Args:
        backbone: Frozen encoder.
        class_names: Distinct, non-blank names.
        templates: Prompt templates, at least one, each with one ``{}``.

    Returns:
        Unit rows in the order of the class names; no gradient.

    Raises:
        ValueError: If there is no template, a template has not one ``{}``, or the names are
            empty, blank or repeated.

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        ICML 2021, section 3.1.4 (prompt ensembling in embedding space).
    """
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates must be a non-empty sequence of templates, got {templates!r}")
    features = [
        F.normalize(backbone.encode_texts(_fill(template, class_names)), dim=-1)
        for template in templates
    ]
    return F.normalize(torch.stack(features).mean(dim=0), dim=-1)


@dataclass(frozen=True)
class ClassTexts:
    """What the classes are called, as features.

    Attributes:
        features: One row a phrasing.
        classes: Which class each row speaks of, from 0 without a gap.
    """

    features: Float[Tensor, "phrasings dim"]
    classes: Int64[Tensor, " phrasings"]


def encode_class_texts(
    backbone: Backbone,
    phrasings: Sequence[Sequence[str]],
    *,
    templates: Sequence[str] = (ZERO_SHOT_TEMPLATE,),
) -> ClassTexts:
    """Unit features of every phrasing of every class, as `encode_class_names`.

    Args:
        backbone: Frozen encoder.
        phrasings: For each class what it is called, at least one name; no name twice.
        templates: Prompt templates, whose unit features are averaged.

    Raises:
        ValueError: If there is no class, one has no phrasing, a phrasing is blank or there twice,
            or a template has not one ``{}``.
    """
    nameless = [position for position, names in enumerate(phrasings) if not names]
    if nameless:
        raise ValueError(f"classes {nameless} have no phrasing; give each at least one")
    names = [name for own in phrasings for name in own]
    features = encode_class_names(backbone, names, templates=templates)
    classes = [position for position, own in enumerate(phrasings) for _ in own]
    return ClassTexts(features, torch.tensor(classes, device=features.device))


def best_phrasing(
    scores: Float[Tensor, "windows phrasings locations"], classes: Int64[Tensor, " phrasings"]
) -> Float[Tensor, "windows classes locations"]:
    """The largest score among the phrasings of each class.

    Args:
        scores: Of every phrasing at every location.
        classes: Which class each phrasing speaks of, from 0 without a gap.
    """
    num_classes = int(classes.max()) + 1
    if num_classes == len(classes) and bool((classes.diff() > 0).all()):
        return scores  # one phrasing a class, in order
    return torch.stack([scores[:, classes == own].amax(1) for own in range(num_classes)], dim=1)


def _fill(template: str, class_names: Sequence[str]) -> list[str]:
    """Put each class name into the template, both checked."""
    check_template(template)
    check_class_names(class_names)
    return [template.replace("{}", name) for name in class_names]
