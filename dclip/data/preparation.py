"""How an image becomes the square that a CLIP looks at.

CLIPs were trained with different resizes, and see a little better with their own. DCLIP and the
work before it squash every image into the square, so that nothing is cut off; that is the default
for CLIP's own models.
"""

from typing import Literal, NamedTuple, get_args

from PIL import Image

Resize = Literal["squash", "shortest", "longest"]
"""``squash``: the whole image, its aspect not kept. ``shortest``: the shorter side fills the square
and the middle is kept. ``longest``: the whole image with black bars."""

Interpolation = Literal["bilinear", "bicubic"]

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class Box(NamedTuple):
    """A part of an image, in its pixels; edges may lie between two."""

    left: float
    top: float
    right: float
    bottom: float


class Preparation(NamedTuple):
    """Resize and filter.

    Attributes:
        resize: What happens to images that are not square.
        interpolation: How pixels are weighted, always with antialiasing.
    """

    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"

    def __str__(self) -> str:
        """As it is kept beside features; the first form is that of all features so far."""
        kind = "square" if self.resize == "squash" else f"{self.resize} side"
        return f"{kind}, {self.interpolation}, antialiased"

    def __call__(self, image: Image.Image, side: int) -> Image.Image:
        """The square; the image itself where it is one of that size.

        Args:
            image: RGB.
            side: Pixels of the square's sides.

        Raises:
            ValueError: If the image is not RGB.
        """
        if image.mode != "RGB":
            raise ValueError(
                f"an image in mode {image.mode!r}; convert it to RGB, as read_image does"
            )
        return self._square(image, side, self.filter)

    @property
    def filter(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return _FILTERS[self.interpolation]

    def of_mask(self, mask: Image.Image, side: int) -> Image.Image:
        """The mask of an image as the mask of its square: no value between two, 0 in bars.

        Args:
            mask: As large as the image, of any mode.
            side: Pixels of the square's sides.
        """
        return self._square(mask, side, Image.Resampling.NEAREST)

    def _square(self, image: Image.Image, side: int, of: Image.Resampling) -> Image.Image:
        if image.size == (side, side):
            return image
        width, height = self._scaled(*image.size, side)
        scaled = image.resize((width, height), of)
        if (width, height) == (side, side):
            return scaled
        left, top = _middle(width, side), _middle(height, side)
        if self.resize == "shortest":
            return scaled.crop((left, top, left + side, top + side))
        square = Image.new(image.mode, (side, side))
        square.paste(scaled, (-left, -top))
        return square

    def shown(self, width: int, height: int, side: int) -> tuple[Box, Box]:
        """Which part of an image can be seen, and where in the square it is.

        Args:
            width: Of the image.
            height: Of the image.
            side: Of the square.

        Returns:
            The part in pixels of the image, and the same part in pixels of the square.
        """
        wide, high = self._scaled(width, height, side)
        left, top = _middle(wide, side), _middle(high, side)
        seen = Box(max(left, 0), max(top, 0), min(left + side, wide), min(top + side, high))
        across, down = width / wide, height / high
        of_image = Box(seen.left * across, seen.top * down, seen.right * across, seen.bottom * down)
        return of_image, Box(seen.left - left, seen.top - top, seen.right - left, seen.bottom - top)

    def _scaled(self, width: int, height: int, side: int) -> tuple[int, int]:
        """Width and height after the resize, before anything is cut off or added."""
        if self.resize == "squash":
            return side, side
        of = min(width, height) if self.resize == "shortest" else max(width, height)
        return max(1, round(width * side / of)), max(1, round(height * side / of))


SQUARE = Preparation()
"""That of the paper, and of all features that version 0.1 made."""


def preparation(resize: str, interpolation: str) -> Preparation:
    """A preparation by the words that tags and configurations of open_clip have for it.

    Raises:
        ValueError: If a word is not known.
    """
    if resize not in get_args(Resize) or interpolation not in get_args(Interpolation):
        raise ValueError(
            f"images resized by {resize!r}, {interpolation!r} are not known; there are"
            f" {', '.join(get_args(Resize))}, and {', '.join(get_args(Interpolation))}"
        )
    return Preparation(resize, interpolation)  # type: ignore[arg-type]  # checked above


def read_preparation(text: str) -> Preparation:
    """The preparation that is kept beside features in words, as `Preparation` writes it.

    Raises:
        ValueError: If the words are not its own.

    Example:
        >>> read_preparation("shortest side, bicubic, antialiased")
        Preparation(resize='shortest', interpolation='bicubic')
    """
    kind, *filters = text.split(", ")
    resize = "squash" if kind == "square" else kind.removesuffix(" side")
    found = preparation(resize, filters[0] if filters else "")
    if str(found) != text:
        raise ValueError(f"{text!r} says no way to resize images")
    return found


def _middle(of: int, side: int) -> int:
    """Where a square of ``side`` begins in the middle of ``of`` pixels; negative in less."""
    return round((of - side) / 2)
