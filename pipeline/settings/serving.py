"""The section of what is served: what a request may hold, and how many are answered at once."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_settings import NoDecode

from dclip.data.bounds import MAX_PIXELS


def _split(value: object) -> object:
    """Several prefixes with commas between, or a list."""
    if isinstance(value, str):
        return [one.strip() for one in value.split(",") if one.strip()]
    return value


class Limits(BaseModel):
    """What a request may hold; all else is refused with an answer that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_request_bytes: int = Field(
        32 << 20, ge=1024, description="bytes of a request, base64 included"
    )
    max_images: int = Field(32, ge=1, description="images of a request")
    max_image_bytes: int = Field(16 << 20, ge=1024, description="bytes of an image file")
    max_pixels: int = Field(
        32_000_000, ge=1, le=MAX_PIXELS, description="pixels of an image, by its header"
    )
    max_mask_pixels: int = Field(
        4_000_000, ge=1, description="pixels of an image of which masks are asked for"
    )
    max_classes: int = Field(1000, ge=1, description="class names of a request")
    max_class_chars: int = Field(200, ge=1, description="characters of a class name")
    allow_url: Annotated[list[str], NoDecode, BeforeValidator(_split)] = Field(
        [],
        description="what URLs of images may begin with, such as https://host/photos/; repeat the "
        "flag for more; left out: no URL is fetched",
    )
    allow_private: bool = Field(
        False,
        description="let host names of allow-url be of a private network; an address that is named "
        "itself needs no leave",
    )
    url_seconds: float = Field(10.0, gt=0, description="seconds in which an image must arrive")

    @field_validator("allow_url")
    @classmethod
    def _are_prefixes(cls, given: list[str]) -> list[str]:
        for one in given:
            try:
                parts = urlsplit(one)
                is_good = bool(parts.hostname) and parts.port != 0
            except ValueError:
                is_good = False
            extra = parts.query or parts.fragment or "@" in parts.netloc if is_good else ""
            if not is_good or parts.scheme not in ("http", "https") or extra:
                raise ValueError(f"{one!r} is no beginning of a URL, such as https://host/photos/")
        return given


class ServeConfig(Limits):
    """Which model answers photographs, where, and how many at once."""

    model: str | None = Field(
        None,
        description="what dclip.load takes: a checkpoint, a model folder, models:/NAME@best, "
        "user/name of the Hub, the name of a CLIP; left out: the output folder",
    )
    which: Literal["newest", "best"] = Field(
        "newest", description="checkpoint of an output folder: written last, or of the highest mAP"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all of this machine")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    replicas: int = Field(1, ge=1, description="copies of the model, at least")
    max_replicas: int | None = Field(
        None, ge=1, description="copies under load, as Ray has room; left out: replicas, always"
    )
    threads: int | None = Field(
        None, ge=1, description="CPUs of a copy; left out: those of the machine, shared evenly"
    )
    max_batch_size: int = Field(16, ge=1, description="images of a forward pass")
    batch_wait_ms: float = Field(
        2.0, ge=0, description="how long a first image waits for others, milliseconds"
    )
    max_ongoing_requests: int = Field(64, ge=1, description="requests that a copy holds at once")
    max_queued_requests: int = Field(
        256, ge=1, description="requests that wait for a copy; more get 503 with Retry-After"
    )
    request_seconds: float = Field(60.0, gt=0, description="seconds a request may take in all")
    body_seconds: float = Field(20.0, gt=0, description="seconds in which a request must arrive")
