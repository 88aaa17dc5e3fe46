"""Images by URL: of listed places alone, never of this network by way of a name, and bounded."""

import http.client
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Timer
from urllib.parse import SplitResult, urlsplit

from pipeline.serving.requests import FORBIDDEN, NO_IMAGE, TOO_LARGE, UNFIT, WRONG, RefusedError
from pipeline.settings.serving import Limits

_PORTS = {"http": 80, "https": 443}
_MOST_CHARACTERS = 2048
_BLOCK = 1 << 16
_SECONDS_TO_CONNECT = 5.0


def fetch(url: str, name: str, limits: Limits) -> bytes:
    """The bytes of an image.

    The host is looked up once, and the address that was checked is the one that is asked: what a
    name means a moment later does not count. Redirects are not followed, a proxy is not used.

    Args:
        url: As it was sent.
        name: How messages call it.
        limits: What may be fetched.

    Raises:
        RefusedError: It may not be, or cannot be.
    """
    parts = _allowed(url, name, limits)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    address = _address(host, port, name, limits)
    started = time.monotonic()
    seconds = min(_SECONDS_TO_CONNECT, limits.url_seconds)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    connection = _Connection(host, port, address, tls, seconds)
    watch = Timer(limits.url_seconds, connection.cut)  # also of an answer that comes in drops
    watch.daemon = True
    watch.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "dclip"})
        return _read(connection.getresponse(), name, limits)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        late = time.monotonic() - started >= limits.url_seconds
        why = (
            f"it did not arrive in {limits.url_seconds:g} s" if late else "its host does not answer"
        )
        raise RefusedError(UNFIT, f"{name}: the URL cannot be fetched: {why}") from None
    finally:
        watch.cancel()
        connection.close()


def _read(answer: http.client.HTTPResponse, name: str, limits: Limits) -> bytes:
    if 300 <= answer.status < 400:
        raise RefusedError(FORBIDDEN, f"{name}: the URL redirects, which is not followed")
    if answer.status != 200:
        raise RefusedError(UNFIT, f"{name}: the URL cannot be fetched: HTTP {answer.status}")
    if (answer.getheader("Content-Encoding") or "identity") != "identity":
        raise RefusedError(NO_IMAGE, f"{name}: the URL gives compressed bytes, no image file")
    held = bytearray()
    while block := answer.read(_BLOCK):
        held += block
        if len(held) > limits.max_image_bytes:
            raise RefusedError(TOO_LARGE, f"{name} has more than {limits.max_image_bytes} bytes")
    return bytes(held)


def _allowed(url: str, name: str, limits: Limits) -> SplitResult:
    """A URL that begins as one of the list.

    Raises:
        RefusedError: It does not, or is none.
    """
    if not limits.allow_url:
        raise RefusedError(FORBIDDEN, f"{name}: this service fetches no URLs; send base64")
    if len(url) > _MOST_CHARACTERS:
        raise RefusedError(TOO_LARGE, f"{name}: a URL has at most {_MOST_CHARACTERS} characters")
    # what readers of URLs disagree about is not sent to any
    if not url.isascii() or not url.isprintable() or set(url) & set(' \\"<>^`{|}'):
        raise RefusedError(WRONG, f"{name}: the URL has characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        raise RefusedError(WRONG, f"{name}: that is no URL") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise RefusedError(FORBIDDEN, f"{name}: a URL begins with https:// or http:// and a host")
    if "@" in parts.netloc or parts.fragment:
        raise RefusedError(FORBIDDEN, f"{name}: a URL has no user and no fragment here")
    plain = parts.path.lower().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/")
    if ".." in plain.split("/") or "." in plain.split("/") or "%25" in plain:
        raise RefusedError(FORBIDDEN, f"{name}: the path of the URL must be plain, without ..")
    for one in map(urlsplit, limits.allow_url):
        is_host = (one.scheme, one.hostname) == (parts.scheme, parts.hostname)
        if is_host and (one.port or _PORTS[one.scheme]) == port and _below(parts.path, one.path):
            return parts
    raise RefusedError(FORBIDDEN, f"{name}: URLs of that place are not on the list of this service")


def _below(path: str, prefix: str) -> bool:
    """Whether a path is a prefix or goes on after it, at a slash."""
    whole = prefix.rstrip("/")
    return path == prefix or path.startswith(f"{whole}/")


def _address(host: str, port: int, name: str, limits: Limits) -> Sequence[tuple[int, str]]:
    """What a host means now: families and addresses that may be asked.

    Raises:
        RefusedError: It means nothing, or a place of this network that nobody named.
    """
    literal = _literal(host)
    if literal is not None:  # it is on the list itself, in so many words
        return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, str(literal))]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RefusedError(
            UNFIT, f"{name}: the URL cannot be fetched: its host is unknown"
        ) from None
    places = [(int(family), str(place[0])) for family, _, _, _, place in found]
    if not limits.allow_private and not all(_is_public(place) for _, place in places):
        raise RefusedError(FORBIDDEN, f"{name}: the host of the URL is in a private network")
    return places


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_public(place: str) -> bool:
    address = ip_address(place.partition("%")[0])
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    return address.is_global and not address.is_multicast


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was chosen before, under the name of its host."""

    def __init__(
        self,
        host: str,
        port: int,
        addresses: Sequence[tuple[int, str]],
        tls: ssl.SSLContext | None,
        timeout: float,
    ) -> None:
        super().__init__(host, port, timeout=timeout)
        self._addresses, self._tls = addresses, tls
        self.default_port = _PORTS["http" if tls is None else "https"]  # not told to the host
        self._is_cut = False
        self._raw: socket.socket | None = None  # which a response keeps where this one is closed

    def connect(self) -> None:
        """Try one address after the other."""
        failure: OSError = OSError("no address")
        for family, place in self._addresses:
            if self._is_cut:
                break
            made = socket.socket(family, socket.SOCK_STREAM)
            made.settimeout(self.timeout)
            try:
                made.connect((place, self.port))
                self.sock = made
                if self._tls is not None:
                    self.sock = self._tls.wrap_socket(made, server_hostname=self.host)
                self._raw = self.sock
                return
            except OSError as error:
                made.close()
                failure = error
        raise failure

    def cut(self) -> None:
        """End it from another thread."""
        self._is_cut = True
        if self._raw is not None:
            with suppress(OSError):
                self._raw.shutdown(socket.SHUT_RDWR)
