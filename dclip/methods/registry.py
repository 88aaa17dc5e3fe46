"""Methods by name: those that come with the package, and those of a user's own code."""

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

from dclip.by_name import did_you_mean, find_own, is_own
from dclip.methods.settings import MethodSettings

if TYPE_CHECKING:
    from dclip.methods.method import Method


class _Entry(NamedTuple):
    """Where a method is: its settings, which take no torch, and its work."""

    settings: str
    method: str


METHODS = {
    "dclip": _Entry("dclip.methods.settings:DCLIPSettings", "dclip.methods.dclip:DCLIPMethod"),
    "dualcoop": _Entry(
        "dclip.methods.settings:DualCoOpSettings", "dclip.methods.dualcoop:DualCoOp"
    ),
    "positivecoop": _Entry(
        "dclip.methods.settings:PositiveCoOpSettings", "dclip.methods.positivecoop:PositiveCoOp"
    ),
    "positivecoop_baseline": _Entry(
        "dclip.methods.settings:PositiveCoOpBaselineSettings",
        "dclip.methods.positivecoop:PositiveCoOpBaseline",
    ),
    "smartclip_adapter": _Entry(
        "dclip.methods.adapter_settings:SmartCLIPAdapterSettings",
        "dclip.methods.smartclip:SmartCLIPAdapter",
    ),
    "dapt_adapter": _Entry(
        "dclip.methods.adapter_settings:DAPTAdapterSettings", "dclip.methods.dapt:DAPTAdapter"
    ),
    "maple": _Entry(
        "dclip.methods.pixels.settings:MaPLeSettings", "dclip.methods.pixels.maple:MaPLe"
    ),
    "dapt": _Entry("dclip.methods.pixels.settings:DAPTSettings", "dclip.methods.pixels.dapt:DAPT"),
    "smartclip": _Entry(
        "dclip.methods.pixels.settings:SmartCLIPSettings",
        "dclip.methods.pixels.smartclip:SmartCLIP",
    ),
    "tagclip": _Entry(
        "dclip.methods.pixels.settings:TagCLIPSettings", "dclip.methods.pixels.tagclip:TagCLIP"
    ),
    "linear_probe": _Entry(
        "dclip.methods.settings:LinearProbeSettings", "dclip.methods.linear_probe:LinearProbeMethod"
    ),
    "logistic_probe": _Entry(
        "dclip.methods.head_settings:LogisticProbeSettings",
        "dclip.methods.logistic_probe:LogisticProbe",
    ),
    "tip_adapter": _Entry(
        "dclip.methods.head_settings:TipAdapterSettings", "dclip.methods.tip_adapter:TipAdapter"
    ),
    "calibrated": _Entry(
        "dclip.methods.head_settings:CalibratedSettings", "dclip.methods.calibrated:Calibrated"
    ),
    "zero_shot": _Entry(
        "dclip.methods.settings:ZeroShotSettings", "dclip.methods.zero_shot:ZeroShot"
    ),
    "zero_shot_local": _Entry(
        "dclip.methods.settings:ZeroShotLocalSettings", "dclip.methods.zero_shot:ZeroShotLocal"
    ),
    "zero_shot_pooled": _Entry(
        "dclip.methods.head_settings:ZeroShotPooledSettings",
        "dclip.methods.zero_shot:ZeroShotPooled",
    ),
}
"""The methods that come with the package."""

_own: dict[str, None] = {}  # in the order in which they were named


def find_settings(name: str) -> type[MethodSettings]:
    """Settings of a method; those of the package's own methods load no torch.

    Args:
        name: One of :data:`METHODS`, or ``package.module:Class``.

    Raises:
        ValueError: There is no such method.
    """
    if name in METHODS:
        settings: type[MethodSettings] = find_own(METHODS[name].settings, "method")
        return settings
    return find_method(name).Settings


def find_method(name: str) -> "type[Method[Any]]":
    """A method by name.

    Args:
        name: One of :data:`METHODS`, or ``package.module:Class``, a subclass of
            :class:`dclip.methods.method.Method` with settings of its own.

    Raises:
        ValueError: There is no such method.
    """
    if name not in METHODS and not is_own(name):  # before anything is loaded
        near = did_you_mean(difflib.get_close_matches(name, METHODS))
        raise ValueError(
            f"unknown method {name!r}{near or ';'} give one of {', '.join(METHODS)}, or "
            "'package.module:Class'"
        )
    from dclip.methods.method import Method

    found = find_own(METHODS[name].method if name in METHODS else name, "method")
    if not isinstance(found, type) or not issubclass(found, Method):
        raise ValueError(f"{name!r} is no method: it is no subclass of dclip.methods.method.Method")
    if not getattr(getattr(found, "Settings", None), "name", None):
        raise ValueError(f"method {name!r} has no Settings with a name")
    if name not in METHODS:
        _own[name] = None
    return found


def own_methods() -> tuple[str, ...]:
    """Methods of the user's own code that were named in this process, for one that works for it."""
    return tuple(_own)


def is_known(name: str) -> bool:
    """Whether a file may name this method: the package's, or one the user has named before.

    A checkpoint never has code imported that nobody asked for.
    """
    return name in METHODS or name in _own
