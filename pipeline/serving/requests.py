"""What a request says, read with care: it comes from anywhere."""

import json
import math
from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass
from typing import Any, NoReturn

from dclip.texts import name_problem
from dclip.words import short
from pipeline.settings.serving import Limits

_KEYS = ("images", "classes", "masks", "threshold")
_SOURCES = ("base64", "url")
_MOST_SHOWN = 60  # characters of what was sent, in an answer

WRONG, FORBIDDEN, LATE, TOO_LARGE, NO_IMAGE, UNFIT = 400, 403, 408, 413, 415, 422
"""Of HTTP: wrong form, a URL that is not allowed, too slow, too large, not an image, unusable."""


class RefusedError(ValueError):
    """A request that is not answered; the message is one line and names the fault.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, str(self))


@dataclass(frozen=True)
class Asked:
    """A request of the right form.

    Attributes:
        images: Bytes of each image, or its URL.
        classes: What is looked for; None for the classes of the training.
        masks: Whether masks are wanted.
        threshold: In (0, 1), in place of those of the classes; None for these.
    """

    images: tuple[bytes | str, ...]
    classes: tuple[str, ...] | None = None
    masks: bool = False
    threshold: float | None = None


def parse(body: bytes, limits: Limits) -> Asked:
    """A request as JSON.

    Args:
        body: What was sent.
        limits: What it may hold.

    Raises:
        RefusedError: It is no request, or holds more than it may.
    """
    if len(body) > limits.max_request_bytes:
        raise RefusedError(
            TOO_LARGE, f"a request has at most {limits.max_request_bytes} bytes, got {len(body)}"
        )
    if not body:
        raise RefusedError(
            WRONG, 'the request is empty; send JSON: {"images": [{"base64": "..."}]}'
        )
    try:
        content = json.loads(body.decode(), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise RefusedError(WRONG, "the request is not JSON: it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else short(
            str(error), _MOST_SHOWN
        )  # fmt: skip
        raise RefusedError(WRONG, f"the request is not JSON: {why}") from None
    return check(content, limits)


def check(content: Any, limits: Limits) -> Asked:
    """A request of JSON's types; an image may also be ``{"content": bytes}``.

    Raises:
        RefusedError: It is no request, or holds more than it may.
    """
    if not isinstance(content, dict):
        raise RefusedError(WRONG, f"a request is an object with images, got {_kind(content)}")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise RefusedError(WRONG, f"{_shown(unknown[0])} is no key; there are {', '.join(_KEYS)}")
    given = content.get("images")
    if not isinstance(given, list) or not given:
        raise RefusedError(
            WRONG, 'images must be a list such as [{"base64": "..."}], with one or more'
        )
    if len(given) > limits.max_images:
        raise RefusedError(
            TOO_LARGE, f"a request has at most {limits.max_images} images, got {len(given)}"
        )
    masks = content.get("masks", False)
    if not isinstance(masks, bool):
        raise RefusedError(WRONG, f"masks must be true or false, got {_kind(masks)}")
    return Asked(
        images=tuple(_image(one, number, limits) for number, one in enumerate(given)),
        classes=_classes(content.get("classes"), limits),
        masks=masks,
        threshold=_threshold(content.get("threshold")),
    )


def _image(given: Any, number: int, limits: Limits) -> bytes | str:
    """Bytes of an image, or its URL."""
    name = f"images[{number}]"
    if not isinstance(given, dict) or len(given) != 1:
        raise RefusedError(WRONG, f'{name} must be {{"base64": "..."}} or {{"url": "https://..."}}')
    ((kind, value),) = given.items()
    if kind == "content" and isinstance(value, bytes):
        data = value
    elif kind not in _SOURCES:
        raise RefusedError(
            WRONG, f"{name}: {_shown(kind)} is no key; there are {', '.join(_SOURCES)}"
        )
    elif not isinstance(value, str):
        raise RefusedError(WRONG, f"{name}.{kind} must be text, got {_kind(value)}")
    elif kind == "url":
        return value
    else:
        if len(value) > 4 * (limits.max_image_bytes // 3 + 1):
            raise _too_many(name, limits)
        try:
            data = a2b_base64(value, strict_mode=True)
        except (Base64Error, ValueError):  # the second: not ASCII
            raise RefusedError(
                UNFIT, f"{name}.base64 is not base64 (RFC 4648, no line breaks, no data: before it)"
            ) from None
    if not data:
        raise RefusedError(UNFIT, f"{name} is empty")
    if len(data) > limits.max_image_bytes:
        raise _too_many(name, limits)
    return data


def _too_many(name: str, limits: Limits) -> RefusedError:
    return RefusedError(TOO_LARGE, f"{name} has more than {limits.max_image_bytes} bytes")


def _classes(given: Any, limits: Limits) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise RefusedError(
            WRONG, "classes must be a list of names, with one or more, or be left out"
        )
    if len(given) > limits.max_classes:
        raise RefusedError(
            TOO_LARGE, f"a request has at most {limits.max_classes} classes, got {len(given)}"
        )
    for number, name in enumerate(given):
        if not isinstance(name, str):
            raise RefusedError(WRONG, f"classes[{number}] must be text, got {_kind(name)}")
        if len(name) > limits.max_class_chars:
            raise RefusedError(
                TOO_LARGE,
                f"classes[{number}] has {len(name)} characters, at most {limits.max_class_chars}",
            )
        if not name.strip():
            raise RefusedError(UNFIT, f"classes[{number}] is empty")
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise RefusedError(UNFIT, f"classes[{number}] is no text: it has half a character")
        if problem := name_problem(name):
            raise RefusedError(UNFIT, f"classes[{number}] {problem}")
    return tuple(given)


def _threshold(given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise RefusedError(WRONG, f"threshold must be a number, got {_kind(given)}")
    # as it is: an integer of JSON may be too large for a float
    if not 0 < given < 1 or not math.isfinite(given):
        raise RefusedError(UNFIT, "threshold must lie between 0 and 1")
    return float(given)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {
        dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number",
        float: "a number", bytes: "bytes",
    }  # fmt: skip
    return kinds.get(type(value), "null" if value is None else "something else")


def _shown(text: Any) -> str:
    return ascii(short(str(text), _MOST_SHOWN))
