"""What tables and pictures call each system, and its colour; the same everywhere."""

from collections.abc import Mapping, Sequence
from functools import cache

from dclip.methods.registry import METHODS, find_settings

_TITLES = {
    "clip": "CLIP, last layer as it is",
    "maskclip": "MaskCLIP, value path",
    "clip_vv": "CLIP-VV",
    "clip_surgery": "CLIP Surgery",
    "sclip": "SCLIP",
    "clearclip": "ClearCLIP",
    "naclip": "NACLIP",
}
_SHORT = {
    "clip": "frozen CLIP",
    "zero_shot": "CLIP zero-shot",
    "zero_shot_local": "CLIP, best location",
    "asl_only": "ASL only",
    "dclip": "DCLIP",
}
# readable with colour-blind eyes
_COLORS = {
    "clip": "#7f7f7f",
    "zero_shot": "#7f7f7f",
    "zero_shot_local": "#bdbdbd",
    "linear_probe": "#000000",
    "asl_only": "#e69f00",
    "dclip": "#0072b2",
}
_SPARE = ("#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#6a3d9a", "#8c510a", "#01665e", "#b8860b")
_PRESENT = "_present"  # with only those classes competing that it finds


@cache
def _titles() -> Mapping[str, str]:
    """Titles of frozen systems, of the package's methods, and of their variants."""
    titles = dict(_TITLES)
    for name in METHODS:
        settings = find_settings(name)
        titles[name] = settings.title
        titles |= {key: variant.title for key, variant in settings.variants.items()}
    return titles


def title_of(system: str) -> str:
    """What a line of a table calls a system; checkpoints with a name of their own keep it."""
    base = system.removesuffix(_PRESENT)
    if base != system and base in _titles():
        return "  ... of classes it finds"
    return _titles().get(system, system)


def heading_of(system: str) -> str:
    """What stands above a column of masks."""
    base = system.removesuffix(_PRESENT)
    return _titles().get(base, base) + (",\nof classes it finds" if base != system else "")


def short_title_of(system: str) -> str:
    """What a legend calls a system."""
    return _SHORT.get(system, system if system not in METHODS else _titles()[system].split(",")[0])


def color_of(system: str, number: int) -> str:
    """Colour of a system; others than the known ones take turns by their number."""
    return _COLORS.get(system, _SPARE[number % len(_SPARE)])


def colors_of(systems: Sequence[str]) -> dict[str, str]:
    """Colours of systems that are drawn together: no two alike before all are used."""
    others = [system for system in systems if system not in _COLORS]
    spare = [*_SPARE, *(color for name, color in _COLORS.items() if name not in systems)]
    taken = {system: spare[n % len(spare)] for n, system in enumerate(others)}
    return {system: _COLORS.get(system) or taken[system] for system in systems}
