"""Prompt templates: what is said of a class, which is put in place of ``{}``."""

from functools import cache
from importlib import resources

POSITIVE_TEMPLATE = "A photo of a {}"
"""Says that a class is present; without a final period, as DCLIP was trained."""

NEGATIVE_TEMPLATE = "Not a photo of a {}"
"""Says that a class is absent."""

ZERO_SHOT_TEMPLATE = "a photo of a {}."
"""CLIP's own template, for class features without a pair."""


def check_template(template: str) -> str:
    """The template itself.

    Raises:
        ValueError: It has not exactly one place for a name.
    """
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ValueError(f"a prompt template needs exactly one '{{}}', got {template!r}")
    return template


@cache
def prompt_ensemble(*names: str) -> tuple[str, ...]:
    """Lists of prompt templates that are averaged, one list after another.

    Args:
        names: ``imagenet80``: the 80 that CLIP was tried on ImageNet with; ``scene5``: TagCLIP's
            five of things in a scene; ``tcl9``: TCL's nine, by which TIPSv2 is tried on segments.

    Example:
        >>> len(prompt_ensemble("imagenet80", "scene5")), prompt_ensemble("scene5")[0]
        (85, 'there is a {} in the scene.')
    """
    folder = resources.files("dclip") / "data" / "templates"
    lists = [(folder / f"{name}.txt").read_text("utf-8").splitlines() for name in names]
    return tuple(template for own in lists for template in own)
