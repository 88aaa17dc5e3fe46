r"""TIPSv2 of `transformers`, beside open_clip: its patches were trained to agree with texts.

``--backbone dclip.backbones.tips:tips_b14`` (``tips_l14``, ``tips_so400m14``, ``tips_g14``) takes
Google's weights from Hugging Face's cache, or fetches them. A folder of your own is two lines:

    from dclip.backbones.tips import load_tips

    def mine(*, resolution, device):
        return load_tips("/models/tipsv2-b14", resolution=resolution, device=device)

The value path is its authors': in the last block every token keeps its own value, as in MaskCLIP.
With :math:`x` what enters that block, :math:`N_1, N_2` its norms, :math:`V` and :math:`O` the value
and output maps, :math:`s_1, s_2` its scales and :math:`F` its feed-forward layers,

.. math::
    y = x + s_1 \, O V N_1(x) \qquad z = N\big(y + s_2 \, F(N_2(y))\big)

There is no projection: patches, class token and texts have one width. The image is in [0, 1], so
that mean and deviation are 0 and 1, and it is squashed. Texts are lower case, without a start or an
end; the embedding is the mean of their tokens. The authors describe a class by nine templates:
``dclip.templates.prompt_ensemble("tcl9")``.

References:
    Cao et al., "TIPSv2", CVPR 2026, arXiv:2604.12012; Zhou, Loy, Dai, "Extract Free Dense Labels
    from CLIP" (MaskCLIP), ECCV 2022, arXiv:2112.01071.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from jaxtyping import Float
from torch import Tensor

from dclip.backbones import Backbone, ImageFeatures
from dclip.backbones.clip import TEXT_BATCH, check_normalised
from dclip.backbones.record import activations_of, hash_weights, norms_of
from dclip.backbones.released import ask_once
from dclip.data.preparation import Preparation

_FORMAT = "dclip tipsv2, v1"
# Change a line whenever the same weights come to give other features of that kind.
_PATHS = {
    "value": "values of the last block, bilinear antialiased positions, v1",
    "tokens": "TIPSv2's own patch tokens, bilinear antialiased positions, v1",
}
_FILES = ("*.json", "*.safetensors", "*.model")


class TipsBackbone:
    """A ``Tipsv2Model`` of `transformers` as a `dclip.backbones.Backbone`.

    Besides ``value`` it offers ``tokens``: what leaves the last block as it is.

    Args:
        model: Put into eval mode and frozen, in place.
        tokenizer: That belongs to it.
        name: How reports call it.
        resolution: Side in pixels images are resized to, a multiple of the patch; None: the side
            that the model was trained at last.

    Raises:
        ValueError: If the resolution is no multiple of the patch.
    """

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    include_global_token = False
    kinds = tuple(_PATHS)
    preparation = Preparation("squash", "bilinear")

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, resolution: int | None = None
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        image, text = model.config.vision_config, model.config.text_config
        self.embed_dim = int(image.hidden_size)
        self.stride = int(image.patch_size)
        self.context_length = int(text.max_position_embeddings)
        self.resolution = int(image.image_size) if resolution is None else resolution
        self._prefix = 1 + int(image.num_register_tokens)
        self._fingerprint: str | None = None
        self.grid(self.resolution, self.resolution)

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        device: torch.device = self.model.temperature.device
        return device

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The multiplier of cosines that the model was trained with: one over its temperature."""
        scale: Tensor = 1 / self.model.temperature
        return scale

    def to(self, device: torch.device | str) -> Backbone:
        """This same backbone, its weights moved to ``device``."""
        self.model.to(device)
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of locations of an image of ``height`` by ``width`` pixels.

        Raises:
            ValueError: If a side is not a positive multiple of the patch.
        """
        for side in (height, width):
            if side < self.stride or side % self.stride:
                raise ValueError(
                    f"{self.name} takes images whose sides are multiples of {self.stride} pixels,"
                    f" not {height} x {width}"
                )
        return height // self.stride, width // self.stride

    def encode_images(
        self, images: Float[Tensor, "images 3 height width"], *, kind: str = "value"
    ) -> ImageFeatures:
        """Class token and patches of images in [0, 1], not normalised to unit length.

        Raises:
            ValueError: If the kind is unknown, a side is not a multiple of the patch, or the images
                are not in [0, 1].
        """
        self.feature_path(kind)
        self.grid(*images.shape[-2:])
        check_normalised(images)
        tower = self.model.vision_model
        with torch.no_grad():
            tokens = tower.embeddings(images.to(self.device, tower.layernorm.weight.dtype))
            for block in tower.encoder.layer[:-1]:
                tokens = block(tokens)
            last = tower.encoder.layer[-1]
            whole = tower.layernorm(last(tokens))
            local = whole
            if kind == "value":
                values = last.attention.o_proj(last.attention.v_proj(last.norm1(tokens)))
                own = tokens + last.layer_scale1(values)
                local = tower.layernorm(own + last.layer_scale2(last.mlp(last.norm2(own))))
        return ImageFeatures(whole[:, 0], local[:, self._prefix :])

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """One embedding a text, not normalised to unit length.

        Raises:
            ValueError: If there is no text, or one is empty or too long to be read to its end.
        """
        if isinstance(texts, str):
            raise ValueError(f"expected a sequence of texts, got the one text {texts!r}")
        if not texts:
            raise ValueError("no texts to encode")
        for text, ids in zip(texts, self.tokenizer(list(texts))["input_ids"], strict=True):
            if not ids:
                raise ValueError(f"{self.name} finds no word in the text {text!r}")
            if len(ids) > self.context_length:
                raise ValueError(
                    f"{self.name} reads {self.context_length} tokens and a text has {len(ids)};"
                    f" shorten {text!r}"
                )
        told = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.context_length,
            return_tensors="pt",
        ).to(self.device)
        parts = zip(
            told["input_ids"].split(TEXT_BATCH),
            told["attention_mask"].split(TEXT_BATCH),
            strict=True,
        )
        with torch.no_grad():
            return torch.cat(
                [
                    self.model.get_text_features(ids, attention_mask=mask).pooler_output
                    for ids, mask in parts
                ]
            )

    def feature_path(self, kind: str) -> str:
        """How local features of a kind are made.

        Raises:
            ValueError: If the kind is unknown.
        """
        if kind not in _PATHS:
            raise ValueError(
                f"unknown kind of features {kind!r}; {self.name} offers {', '.join(self.kinds)}"
            )
        return _PATHS[kind]

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the weights, and of what they do not tell."""
        if self._fingerprint is None:
            image, text = self.model.config.vision_config, self.model.config.text_config
            record = {
                "heads": [image.num_attention_heads, text.num_attention_heads],
                "image": [
                    activations_of(self.model.vision_model),
                    norms_of(self.model.vision_model),
                ],
                "text": [activations_of(self.model.text_model), norms_of(self.model.text_model)],
                "scaled": bool(text.scale_sqrt_depth),
                "patch": self.stride,
            }
            digest = hashlib.sha256(f"{_FORMAT}\n{_PATHS['value']}\n".encode())
            digest.update(json.dumps(record, sort_keys=True).encode())
            hash_weights(digest, self.model)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def load_tips(
    source: str | Path,
    *,
    name: str | None = None,
    resolution: int | None = None,
    device: torch.device | str = "cpu",
) -> TipsBackbone:
    """A TIPSv2 of a folder, or of the Hub.

    Args:
        source: A folder with ``config.json``, weights and tokenizer, or ``"google/tipsv2-b14"``.
        name: How reports call it; None: as the folder is called.
        resolution: Side in pixels of the images; None: the model's own.
        device: Where the weights go.

    Raises:
        ValueError: If `transformers` is missing or too old, or the folder has no whole TIPSv2.
        OSError: If the files are not on this machine and cannot be fetched.
    """
    try:
        transformers: Any = importlib.import_module("transformers")  # an extra, and seconds
        kind, auto = transformers.Tipsv2Model, transformers.AutoTokenizer
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "TIPSv2 is read by Hugging Face's transformers, which are not installed or have none:"
            " pip install 'dclip[hf]'"
        ) from error
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _of_the_hub(str(source))
    name = Path(source).name if name is None else name
    told = json.loads(config.read_bytes()) if (config := folder / "config.json").is_file() else {}
    if told.get("model_type") != "tipsv2":
        raise ValueError(f"{folder} has no config.json of the model type tipsv2")
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, loaded = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = auto.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its readers raise whatever their libraries do
        reason = str(error).split("\n")[0].strip()[:200] or type(error).__name__
        raise ValueError(f"{name}: {folder} cannot be read as a TIPSv2 ({reason})") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if wrong := sorted(map(str, loaded.get(what) or ())):  # it would go on with random ones
            raise ValueError(
                f"{name}: weights in {folder} do not fit, {what.replace('_', ' ')}: {wrong[0]} and"
                f" {len(wrong) - 1} more"
            )
    if tokenizer("dog")["input_ids"] == tokenizer("cat")["input_ids"]:
        raise ValueError(f"{name}: the vocabulary of the tokenizer is missing in {folder}")
    backbone = TipsBackbone(model, tokenizer, name=name, resolution=resolution)
    backbone.to(device)
    return backbone


def _of_the_hub(repository: str) -> Path:
    """The folder of a model on the Hub: in its cache, or fetched.

    Raises:
        ValueError: It is no name of the Hub.
        OSError: It is not here and cannot be fetched.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(
            f"{repository} is neither a folder nor a name of the Hub, organisation/name"
        )
    patterns = list(_FILES)
    try:
        cached = huggingface_hub.snapshot_download(
            repository, allow_patterns=patterns, local_files_only=True
        )
        if any(Path(cached).glob("*.safetensors")):
            return Path(cached)
    except Exception:  # there is none, or none that is whole
        pass
    try:
        ask_once(repository, "config.json")  # its client would go on for a minute
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(
            f"the model {repository} is not on this machine and could not be fetched ({reason})."
            f" Where there is a network, fetch it: hf download {repository}"
        ) from error


def tips_b14(*, resolution: int | None, device: torch.device | str) -> TipsBackbone:
    """TIPSv2 B/14, 768 dimensions."""
    return load_tips("google/tipsv2-b14", resolution=resolution, device=device)


def tips_l14(*, resolution: int | None, device: torch.device | str) -> TipsBackbone:
    """TIPSv2 L/14, 1,024 dimensions."""
    return load_tips("google/tipsv2-l14", resolution=resolution, device=device)


def tips_so400m14(*, resolution: int | None, device: torch.device | str) -> TipsBackbone:
    """TIPSv2 SO400M/14, 1,152 dimensions."""
    return load_tips("google/tipsv2-so400m14", resolution=resolution, device=device)


def tips_g14(*, resolution: int | None, device: torch.device | str) -> TipsBackbone:
    """TIPSv2 g/14, 1,536 dimensions."""
    return load_tips("google/tipsv2-g14", resolution=resolution, device=device)
