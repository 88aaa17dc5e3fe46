"""What a request may say: all that is no request is refused by one line that names the fault."""

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

import dclip
from pipeline.serving import fetching
from pipeline.serving.fetching import fetch
from pipeline.serving.model import Answering
from pipeline.serving.requests import Asked, RefusedError, check, parse
from pipeline.settings.serving import Limits

LIMITS = Limits(max_images=3, max_classes=4, max_class_chars=20, max_pixels=100_000)


def photo(side: int = 32, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(file, kind)
    return file.getvalue()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def asked(**what: Any) -> dict[str, Any]:
    return {"images": [{"base64": coded(photo())}], **what}


def refused(content: Any, limits: Limits = LIMITS) -> tuple[int, str]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(RefusedError) as error:
        parse(body, limits)
    assert "\n" not in str(error.value)
    return error.value.status, str(error.value)


def test_a_request_is_read_as_it_was_meant() -> None:
    body = json.dumps(asked(classes=["dog", "cat"], masks=True, threshold=0.3)).encode()
    assert parse(body, LIMITS) == Asked((photo(),), ("dog", "cat"), True, 0.3)
    assert parse(json.dumps(asked()).encode(), LIMITS) == Asked((photo(),))
    assert parse(json.dumps({"images": [{"url": "u"}]}).encode(), LIMITS) == Asked(("u",))
    assert check({"images": [{"content": b"x"}]}, LIMITS) == Asked((b"x",))


@pytest.mark.parametrize(
    ("content", "status", "named"),
    [
        (b"", 400, "the request is empty"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b"[" * 50_000, 400, "nested too deeply"),
        (b'{"images": NaN}', 400, "NaN is no number"),
        (b'{"threshold": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        ([], 400, "got a list"),
        (None, 400, "got null"),
        ({}, 400, "images must be a list"),
        ({"images": []}, 400, "images must be a list"),
        ({"images": "/etc/passwd"}, 400, "images must be a list"),
        ({"images": [1]}, 400, "images[0] must be"),
        ({"images": [{}]}, 400, "images[0] must be"),
        ({"images": [{"path": "/etc/passwd"}]}, 400, "'path' is no key"),
        ({"images": [{"content": "aGk="}]}, 400, "'content' is no key"),
        ({"images": [{"base64": 1}]}, 400, "images[0].base64 must be text, got a number"),
        ({"images": [{"base64": ""}]}, 422, "images[0] is empty"),
        ({"images": [{"base64": "/etc/passwd"}]}, 422, "not base64"),
        ({"images": [{"base64": "file:///etc/passwd"}]}, 422, "not base64"),
        ({"images": [{"base64": "../../etc/passwd"}]}, 422, "not base64"),
        ({"images": [{"base64": "data:image/png;base64,aGk="}]}, 422, "not base64"),
        ({"images": [{"base64": "aGk=\n"}]}, 422, "not base64"),
        ({"images": [{"base64": "é"}]}, 422, "not base64"),
        ({"images": [{"base64": "aGk="}] * 4}, 413, "at most 3 images, got 4"),
        (asked(image=1), 400, "'image' is no key"),
        (asked(masks=1), 400, "masks must be true or false, got a number"),
        (asked(classes="dog"), 400, "classes must be a list"),
        (asked(classes=[]), 400, "classes must be a list"),
        (asked(classes=[None]), 400, "classes[0] must be text, got null"),
        (asked(classes=["a", " "]), 422, "classes[1] is empty"),
        (asked(classes=["a"] * 50_000), 413, "at most 4 classes, got 50000"),
        (asked(classes=["a" * 21]), 413, "classes[0] has 21 characters, at most 20"),
        (asked(classes=["\ud800"]), 422, "half a character"),
        (asked(threshold="0.5"), 400, "threshold must be a number, got text"),
        (asked(threshold=True), 400, "threshold must be a number"),
        (asked(threshold=1), 422, "between 0 and 1"),
        (asked(threshold=10**400), 422, "between 0 and 1"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_named(content: Any, status: int, named: str) -> None:
    found, message = refused(content)
    assert (found, named in message) == (status, True), (found, message)


def test_what_is_too_large_is_refused_before_it_is_read() -> None:
    small = Limits(max_request_bytes=5000, max_image_bytes=1024)
    assert refused(b" " * 5001, small) == (413, "a request has at most 5000 bytes, got 5001")
    for data in (bytes(1025), bytes(2000)):
        found = refused({"images": [{"base64": coded(data)}]}, small)
        assert found == (413, "images[0] has more than 1024 bytes")
    with pytest.raises(RefusedError, match="more than 1024 bytes"):
        check({"images": [{"content": bytes(1025)}]}, small)


def is_told(read: Callable[[], Asked]) -> bool:
    """Whether there is a request, or a refusal of 4xx; any other error is raised."""
    try:
        return isinstance(read(), Asked)
    except RefusedError as error:
        return 400 <= error.status < 500


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_request_or_refused(body: bytes) -> None:
    assert is_told(lambda: parse(body, LIMITS))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["images", "classes", "masks", "threshold", "base64", "url", "x"]), inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["images", "classes", "masks", "threshold"]), _JSON))
def test_json_of_any_form_is_a_request_or_refused(content: dict[str, Any]) -> None:
    assert is_told(lambda: check(content, LIMITS))


# --- images


@pytest.fixture(scope="module")
def answering() -> Answering:
    return Answering(dclip.load("tiny", device="cpu"), LIMITS)


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it is of so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        ends = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return ends[0] + kind + data + ends[1]

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "named"),
    [
        (b"no image", 415, "no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no image of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no image of a known format"),
        (photo(64, "JPEG")[:300], 415, "cannot be decoded"),
        (photo()[:20], 415, "images[0]"),
        (bomb(400, 300), 413, "has 400 x 300 pixels, more than 100000"),
        (bomb(60_000, 60_000), 413, "more than 100000"),
    ],
)
def test_what_is_no_image_is_named(
    answering: Answering, data: bytes, status: int, named: str
) -> None:
    with pytest.raises(RefusedError) as error:
        answering.answer(Asked((data,), ("circle", "star")))
    assert (error.value.status, named in str(error.value)) == (status, True), str(error.value)


def test_classes_that_cannot_be_told_apart_are_refused(answering: Answering) -> None:
    for classes, named in ((("dog", "Dog"), "one text"), ((None), "trained on no classes")):
        with pytest.raises(RefusedError, match=named) as error:
            answering.answer(Asked((photo(),), classes))
        assert error.value.status == 422


def test_masks_of_large_images_are_refused(answering: Answering) -> None:
    small = Answering(answering.model, Limits(max_mask_pixels=1000))
    with pytest.raises(RefusedError, match="masks are made of at most 1000") as error:
        small.answer(Asked((photo(),), ("circle", "star"), masks=True))
    assert error.value.status == 413
    assert small.answer(Asked((photo(),), ("circle", "star")))["images"]


# --- URLs


class Web:
    """A web server that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.photo
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def photo(self, to: BaseHTTPRequestHandler, data: bytes | None = None) -> None:
        to.send_response(200)
        to.end_headers()
        to.wfile.write(photo() if data is None else data)


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_an_image_of_a_listed_place_is_fetched(web: Web) -> None:
    limits = Limits(allow_url=[f"{web.url}/photos/"])
    assert fetch(f"{web.url}/photos/a.png?size=1", "images[0]", limits) == photo()
    assert web.asked == ["/photos/a.png?size=1"]


@pytest.mark.parametrize(
    "url",
    [
        "{0}/secret", "{0}/photos", "{0}/photosets/a.png", "{0}/photos/../secret",
        "{0}/photos/%2e%2e/secret", "{0}/photos/..%2fsecret", "{0}/photos/%252e%252e/secret",
        "{0}/photos/..\\secret", "http://localhost:{1}/photos/a", "http://0x7f000001:{1}/photos/a",
        "http://127.1:{1}/photos/a", "http://[::ffff:127.0.0.1]:{1}/photos/a",
        "http://user@127.0.0.1:{1}/photos/a", "http://127.0.0.1:{1}@host/photos/a",
        "https://127.0.0.1:{1}/photos/a", "http://127.0.0.1/photos/a", "file:///etc/passwd",
        "/etc/passwd", "../a", "ftp://127.0.0.1:{1}/photos/a", "", "http://", "http://[",
        "{0}/photos/a\r\nHost: x", "{0}/photos/é", "{0}/photos/a#b", "{0}/photos/" + "a" * 3000,
        "http://127.0.0.1:{1}x/photos/", "//127.0.0.1:{1}/photos/a",
    ],
)  # fmt: skip
def test_nothing_else_is_asked_for(web: Web, url: str) -> None:
    limits = Limits(allow_url=[f"{web.url}/photos/"])
    with pytest.raises(RefusedError) as error:
        fetch(url.format(web.url, web.port), "images[0]", limits)
    assert 400 <= error.value.status < 500
    assert web.asked == []
    with pytest.raises(RefusedError, match="fetches no URLs"):
        fetch(f"{web.url}/photos/a", "images[0]", Limits())


def test_a_redirect_is_not_followed(web: Web) -> None:
    def elsewhere(to: BaseHTTPRequestHandler) -> None:
        to.send_response(302)
        to.send_header("Location", f"{web.url}/secret")
        to.end_headers()

    web.answer = elsewhere
    with pytest.raises(RefusedError, match="redirects, which is not followed"):
        fetch(f"{web.url}/photos/a", "images[0]", Limits(allow_url=[f"{web.url}/photos/"]))
    assert web.asked == ["/photos/a"]


def test_a_name_of_this_network_is_refused_unless_it_is_allowed(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def rebinding(host: str, port: int, **_: Any) -> list[Any]:
        """Public the first time, this machine from then on."""
        looked_up.append(host)
        place = "8.8.8.8" if len(looked_up) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port))]

    def answer(place: str) -> Callable[..., list[Any]]:
        return lambda _, port, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port))]

    prefix = f"http://images.example:{web.port}/"
    limits = Limits(allow_url=[prefix], url_seconds=1)
    private = ("127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.0.1", "0.0.0.0", "100.64.0.1")
    for place in private:
        monkeypatch.setattr(fetching.socket, "getaddrinfo", answer(place))
        with pytest.raises(RefusedError, match="private network"):
            fetch(f"{prefix}a", "images[0]", limits)
    monkeypatch.setattr(fetching.socket, "getaddrinfo", answer("127.0.0.1"))
    own = limits.model_copy(update={"allow_private": True})
    assert fetch(f"{prefix}a", "images[0]", own) == photo()
    assert web.asked == ["/a"]
    # the address that was checked is the one that is asked; here nothing answers
    connected: list[Any] = []

    def connect(self: socket.socket, place: Any) -> None:
        connected.append(place)
        raise OSError("no way there")

    monkeypatch.setattr(fetching.socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(fetching.socket.socket, "connect", connect)
    with pytest.raises(RefusedError, match="does not answer"):
        fetch(f"{prefix}a", "images[0]", limits)
    assert connected == [("8.8.8.8", web.port)]
    assert looked_up == ["images.example"]


def test_what_a_url_gives_is_bounded_in_size_and_time(web: Web) -> None:
    limits = Limits(allow_url=[web.url], max_image_bytes=2000, url_seconds=0.5)
    web.answer = lambda to: web.photo(to, bytes(3000))
    with pytest.raises(RefusedError, match="more than 2000 bytes"):
        fetch(f"{web.url}/a", "images[0]", limits)

    def drops(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.end_headers()
        for _ in range(40):
            to.wfile.write(b"x")
            to.wfile.flush()
            time.sleep(0.1)

    def gone(to: BaseHTTPRequestHandler) -> None:
        to.send_response(404)
        to.end_headers()

    web.answer = gone
    with pytest.raises(RefusedError, match="HTTP 404"):
        fetch(f"{web.url}/a", "images[0]", limits)
    web.answer = drops
    begun = time.monotonic()
    with suppress(RefusedError):  # or what came until then, which is no image
        assert len(fetch(f"{web.url}/a", "images[0]", limits)) < 20
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("prefix", ["host/photos", "ftp://host/", "/etc/", "https://u@host/", ""])
def test_a_list_of_places_has_beginnings_of_urls(prefix: str) -> None:
    with pytest.raises(ValidationError, match="is no beginning of a URL"):
        Limits(allow_url=[prefix])
