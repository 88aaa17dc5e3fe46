"""Released weights: out of Hugging Face's cache, or fetched; told in seconds if neither can be.

Its client goes on for a minute where there is no network. So the cache is looked at first, without
a network; then the server is asked once, and only if it answers the client is let go.
"""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from huggingface_hub.errors import HfHubHTTPError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from dclip.architectures import in_cache

logger = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 5.0
"""How long the server of the weights may take to say anything."""


def find_weights(
    released: Mapping[str, Any], name: str, *, architecture: str, tag: str | None = None
) -> Path:
    """The file of a released set of weights, from the cache or the network.

    Args:
        released: Entry of open_clip's table; ``hf_hub`` says where the file lies.
        name: How messages call the weights: ``"RN101/openai"``.
        architecture: Backbone to name beside a file of these weights.
        tag: And the tag to name there.

    Raises:
        OSError: If they are not here and cannot be fetched; the message says what to do.
    """
    repository = str(released.get("hf_hub", "")).rpartition("/")[0]
    filenames = files_of(released)
    if (cached := find_cached(released)) is not None:
        return cached
    try:
        if repository:
            ask_once(repository, filenames[0])
        logger.info("fetching the weights %s", name)
        return Path(open_clip.download_pretrained(dict(released)))
    except Exception as error:  # huggingface_hub and urllib fail in many ways; all mean "not here"
        reason = " ".join(str(error).split())[:200]
        source = (
            f"hf download {repository} {filenames[0]}"
            if repository
            else f"from {released.get('url')}"
        )
        raise OSError(
            f"the weights {name} are not on this machine and could not be fetched"
            f" ({type(error).__name__}{f': {reason}' if reason else ''}). Where there is a network,"
            f" fetch them ({source}), and give the file: backbone {architecture!r}, --pretrained"
            f" FILE{f' --tag {tag}' if tag else ''}. HTTPS_PROXY names a proxy, HF_ENDPOINT a"
            " mirror, HF_HUB_OFFLINE=1 does without asking. To try things out: --pretrained random,"
            " or the data set shapes with its tiny CLIP"
        ) from error


def find_cached(released: Mapping[str, Any]) -> Path | None:
    """The file of a released set of weights, if it is on this machine; nothing is asked.

    Args:
        released: Entry of open_clip's table.
    """
    repository = str(released.get("hf_hub", "")).rpartition("/")[0]
    return in_cache(repository, files_of(released))


def files_of(released: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that a file of released weights may have on the Hub, the first to be looked for first.

    Args:
        released: Entry of open_clip's table.
    """
    filename = str(released.get("hf_hub", "")).rpartition("/")[2]
    return tuple(_alternatives(filename or HF_WEIGHTS_NAME))


def find_file(
    repository: str,
    filename: str,
    name: str,
    *,
    then: str = ", and give its folder: local-dir:FOLDER",
) -> Path:
    """A small file of a model on the Hub, from the cache or the network.

    Args:
        repository: ``"org/name"``.
        filename: Of the file.
        name: How messages call the model.
        then: What to do when it was fetched elsewhere.

    Raises:
        OSError: If it is not here and cannot be fetched.
    """
    if (cached := in_cache(repository, [filename])) is not None:
        return cached
    try:
        ask_once(repository, filename)
        return Path(huggingface_hub.hf_hub_download(repository, filename))
    except Exception as error:  # as above: all mean "not here"
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"{filename} of {name} is not on this machine and could not be fetched"
            f" ({type(error).__name__}{f': {reason}' if reason else ''}). Where there is a network,"
            f" fetch it: hf download {repository}{then}"
        ) from error


def _alternatives(filename: str) -> list[str]:
    """Names a file of weights may have on the Hub, in the order in which open_clip tries them."""
    if filename == HF_WEIGHTS_NAME:
        return [HF_SAFE_WEIGHTS_NAME, filename]
    if filename.endswith((".bin", ".pth")):
        return [f"{filename[:-4]}.safetensors", filename]
    return [filename]


def ask_once(repository: str, filename: str) -> None:
    """Return if the Hub answers, whatever it says of the file; raise what stood in the way if not.

    A thread asks, since nothing bounds the time that the look-up of a host's name may take.
    """
    url = huggingface_hub.hf_hub_url(repository, filename)
    failures: list[Exception] = []

    def ask() -> None:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=SECONDS_TO_ANSWER)
        except HfHubHTTPError as error:
            answer = getattr(error, "response", None)
            if answer is None or answer.status_code >= 500:
                failures.append(error)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=ask, name="weights", daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    if thread.is_alive():
        raise TimeoutError(f"{url} does not answer within {SECONDS_TO_ANSWER:g} s")
    if failures:
        raise failures[0]
