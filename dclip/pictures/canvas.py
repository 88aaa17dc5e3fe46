"""What all pictures share: bounded size, text drawn as it is, in whatever script it is."""

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from dclip.store.paths import atomic_write
from dclip.words import short

log = logging.getLogger(__name__)

MAX_PIXELS = 4000
"""No side of a picture is longer."""

MAX_INCHES = 33.0
"""Side of a figure that is still drawn in full resolution."""

_DPI = 120
_FONT = "DejaVu Sans"  # comes with matplotlib; Latin, Greek, Cyrillic, Arabic, Hebrew and more
# fonts that people have for what it lacks, by family name
_OTHER_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans JP",
    "Noto Sans SC", "Noto Sans KR", "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "Hiragino Sans", "PingFang SC", "PingFang HK", "Apple SD Gothic Neo",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "MS Gothic", "SimHei", "Arial Unicode MS",
    "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Unifont",
    "Noto Sans Symbols", "Noto Sans Symbols2", "Noto Emoji", "Symbola",
)  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; no side has more than 4,000 pixels.

    Text is drawn letter by letter: ``$`` begins no formula. Characters that no installed font has
    are boxes; a note names them, once.
    """
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    families = _families("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily(families)
    dpi = min(_DPI, *(MAX_PIXELS / inches for inches in figure.get_size_inches()))
    FigureCanvasAgg(figure)
    with (
        # tick labels come into being as the figure is drawn
        rc_context({"text.parse_math": False, "font.family": families}),
        warnings.catch_warnings(),
        atomic_write(path) as temporary,
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.set_dpi(dpi)
        layout = figure.get_layout_engine()
        if layout is not None:  # here, as savefig would draw all of it for that, and then again
            layout.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(temporary, format="png", dpi=dpi, pil_kwargs={"compress_level": 2})


def one_line(text: str, most: int = 24) -> str:
    """A text on one line of at most so many characters; what is left out is an ellipsis."""
    return short(" ".join(text.split()), most)


def heading(*parts: str) -> str:
    """A title of some lines; empty ones are left out."""
    return "\n".join(filter(None, parts))


def more(shown: int, total: int, what: str) -> str:
    """``"80 of 1,203 classes"`` where something is left out, else nothing."""
    return f"{shown:,} of {total:,} {what}" if shown < total else ""


def _families(text: str) -> list[str]:
    """Families that have all characters of a text between them, as far as they are installed."""
    missing = {ord(c) for c in text if c.isprintable()} - _characters(_FONT)
    families = [_FONT]
    for family in _installed():
        if not missing:
            break
        if missing & _characters(family):
            missing -= _characters(family)
            families.append(family)
    if missing:
        _tell_missing("".join(map(chr, sorted(missing)[:5])))
    return families


@cache
def _tell_missing(examples: str) -> None:
    log.warning(
        "figures: no installed font has %s; they are drawn as boxes (Noto Sans CJK has the scripts "
        "of East Asia)",
        ", ".join(examples),
    )


@cache
def _installed() -> Sequence[str]:
    names = {font.name for font in fontManager.ttflist}
    return [family for family in _OTHER_FONTS if family in names]


@cache
def _characters(family: str) -> frozenset[int]:
    """Code points that a family has."""
    return frozenset(get_font(findfont(FontProperties(family=[family]))).get_charmap())
