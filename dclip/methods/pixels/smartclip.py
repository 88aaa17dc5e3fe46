"""SmartCLIP as published: all of CLIP trains on captions, each behind a mask of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.long_text import LongCLIP, Tokens, tokenize_cut
from dclip.data.captions import first_sentences
from dclip.data.pixels import normalise
from dclip.fitting.batches import Batch
from dclip.fitting.gather import draw_rows, gather_rows, world_size
from dclip.logits import masked_cosine, zero_shot_scores
from dclip.losses.contrastive import own_place_loss
from dclip.methods.method import Method, Task, WeightRule
from dclip.methods.objective import watched_cosine
from dclip.methods.pixels.mask_network import MaskNetwork
from dclip.methods.pixels.settings import SmartCLIPSettings
from dclip.methods.settings import MethodSettings
from dclip.methods.smartclip import MaskForm, straight_through_mask
from dclip.precision import at_least_float32
from dclip.retrieval import Encoded
from dclip.templates import ZERO_SHOT_TEMPLATE

_NETWORK = "mask_network."


class SmartCLIP(Method[SmartCLIPSettings]):
    r"""CLIP with a long text tower, trained so that a caption is compared with its own part.

    A mask network reads the tokens of a caption (without a gradient to them) and makes its mask
    :math:`m`. With images :math:`v` and texts :math:`t`, in a batch of M pairs over all workers,

    .. math::
        Q_{ij} = 100 \cos(v_i \odot m_j, t_j), \quad
        L = 10 \, (\mathrm{CE}(Q) + \mathrm{CE}(Q^\top)) + 2 \, \overline{|m|}

    where each row's target is its own place: SIDM tells one image's captions apart, each behind its
    mask, and DISM one caption's images behind one mask. :math:`Q` takes two matrix products
    (`dclip.logits.masked_cosine`), which also says what a mask does that is closed; no entry is
    ever nan. When it is asked, no mask is used: images and texts are compared by their cosine.

    With ``masks: none`` there is no network, and :math:`Q` is of plain cosines: CLIP fine-tuned on
    the same captions, scale and weights, which is what the masks are to be compared with.

    Args:
        settings: Hyper-parameters.
        task: Classes, with a backbone that is a CLIP of open_clip. Its model is copied; the copy
            trains.

    Raises:
        ValueError: There is no such backbone; or its text tower is not as wide as its joint space,
            which masks need.

    References:
        SmartCLIP, CVPR 2025, arXiv:2507.22264, as its authors' code has it.
    """

    Settings: ClassVar[type[MethodSettings]] = SmartCLIPSettings
    gives_probabilities = False

    def __init__(self, settings: SmartCLIPSettings, task: Task) -> None:
        super().__init__(settings, task)
        backbone = self._backbone()
        self.clip = LongCLIP(backbone, kept=settings.kept_positions, stretch=settings.stretch)
        width = self.clip.width
        self.mask_network = None
        if settings.masks != "none":
            if width != backbone.embed_dim:
                raise ValueError(
                    f"{settings.title} makes its masks from the text tower's tokens, which have "
                    f"{width} numbers in {backbone.name}, and its joint space has "
                    f"{backbone.embed_dim}; take a backbone in which both are the same, such as "
                    "ViT-B-16 or RN101, or masks none"
                )
            self.mask_network = MaskNetwork(width, self.clip.heads)
        self.class_texts: Tensor
        texts = torch.zeros(len(task.class_names), backbone.embed_dim)
        self.register_buffer("class_texts", texts)

    def _backbone(self) -> OpenCLIPBackbone:
        backbone, title = self.task.backbone, self.settings.title
        if backbone is None:
            raise ValueError(
                f"{title} trains a copy of CLIP itself: give it a task that has the backbone"
            )
        if not isinstance(backbone, OpenCLIPBackbone):
            raise ValueError(
                f"{title} trains a copy of CLIP itself, and {backbone.name} is no CLIP of "
                "open_clip; take one, such as ViT-B-16"
            )
        return backbone

    def weight_rules(self) -> dict[str, WeightRule]:
        """The mask network steps further, decays nothing and does not warm up."""
        rule = WeightRule(lr_factor=self.settings.mask_lr_factor, weight_decay=0.0, warms_up=False)
        names = [name for name, _ in self.named_parameters() if name.startswith(_NETWORK)]
        return dict.fromkeys(names, rule)

    # -----------------------------------------------------------------------------------------
    # Encoders
    # -----------------------------------------------------------------------------------------

    def embed_images(
        self, pixels: UInt8[Tensor, "images height width 3"]
    ) -> Float[Tensor, "images dim"]:
        """Embeddings of images, of any length.

        Args:
            pixels: RGB, at the backbone's resolution.
        """
        backbone = self._backbone()
        return self.clip.embed_images(normalise(pixels, backbone.mean, backbone.std))

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Features and mask logits of texts; those that are too long are read as far as it goes."""
        tokenizer = self._backbone().tokenizer
        return self.encode_tokens(tokenize_cut(texts, tokenizer, self.clip.length))

    def encode_tokens(self, tokens: Tokens) -> Encoded:
        """The same of texts that are tokens already."""
        network = self.mask_network
        if network is None or not self.settings.padding_in_mask:
            tokens = self.clip.shortened(tokens)
        ids = tokens.ids.to(self.clip.positions.device)
        states = self.clip.token_states(ids)
        logits = None
        if network is not None:
            padding = None
            if not self.settings.padding_in_mask:
                places = torch.arange(ids.shape[1], device=ids.device)
                padding = places > tokens.ends.to(ids.device)[:, None]
            logits = network(states, padding)
        return Encoded(self.clip.embed_texts(states, ids), logits, tokens.cut)

    def masks(self, logits: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts dim"]:
        """Masks of their logits, in the form of the settings."""
        form: MaskForm = "soft" if self.settings.masks == "soft" else "hard"
        return straight_through_mask(logits, form=form)

    # -----------------------------------------------------------------------------------------
    # Training
    # -----------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """This worker's part of the loss of the batch, and of its terms; all workers take part.

        Images without a caption take no part. ``cut`` is the share of the captions that were too
        long to be read to their end.
        """
        assert batch.pixels is not None  # as it is what is fed
        assert batch.captions is not None
        count = len(batch.captions)
        draws = draw_rows(count, batch.total or count, 2, batch.pixels.device).tolist()
        rows, chosen = [], []
        for row, captions in enumerate(batch.captions):
            if captions:
                which, share = draws[row]
                if self.settings.captions == "whole":
                    share = 1.0
                caption = captions[int(which * len(captions))]
                rows.append(row)
                chosen.append(first_sentences(caption, share))
        if batch.captions and not chosen and batch.workers == 1:
            raise ValueError(f"{self.settings.title}: no image of a batch has a caption")
        pixels = batch.pixels if len(rows) == len(batch.captions) else batch.pixels[rows]
        texts = self.encode(chosen)
        losses = self.contrast(
            self.embed_images(pixels), texts, parts=batch.workers // world_size(), total=batch.total
        )
        share_cut = texts.cut / max(1, len(chosen)) / batch.workers
        return losses | {"cut": losses["loss"].new_tensor(share_cut)}

    def contrast(
        self,
        images: Float[Tensor, "pairs dim"],
        texts: Encoded,
        *,
        parts: int = 1,
        total: int = 0,
    ) -> dict[str, Float[Tensor, ""]]:
        """This worker's part of the loss and of its terms, its pairs among those of all workers.

        Args:
            images: Of any length.
            texts: Each belongs to the image of its place.
            parts: In which all workers go through the batch, one after the other. Pairs of other
                parts are not compared with.
            total: Pairs of the whole batch; 0: as many in each part.
        """
        own, masks = self.settings, None
        with torch.autocast(images.device.type, enabled=False):
            joined = [at_least_float32(images), at_least_float32(texts.features)]
            if texts.mask_logits is not None:
                masks = self.masks(at_least_float32(texts.mask_logits))
                joined.append(masks)
            here, dim = torch.cat(joined, dim=1), images.shape[1]
            everyone, first = gather_rows(here)
            of_texts = self._compare(here[:, :dim], everyone[:, dim:])
            of_images = of_texts.mT
            if len(here) < len(everyone):
                of_images = self._compare(everyone[:, :dim], here[:, dim:]).mT
            pairs = total or max(1, len(everyone) * parts)
            terms = {
                "sidm": own_place_loss(of_texts, first=first) / pairs,
                "dism": own_place_loss(of_images, first=first) / pairs,
            }
            loss = own.matching_weight * (terms["sidm"] + terms["dism"])
            if masks is not None:
                terms["sparsity"] = masks.abs().sum() / (pairs * dim)
                loss = loss + own.sparsity_weight * terms["sparsity"]
        return {"loss": loss, **terms}

    def _compare(
        self, images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts _"]
    ) -> Float[Tensor, "images texts"]:
        """Scaled cosines; texts have their masks behind them, where there are such."""
        dim, scale = images.shape[1], self.settings.matching_scale
        if texts.shape[1] == dim:
            return zero_shot_scores(images, texts, logit_scale=scale)
        return scale * masked_cosine(images, texts[:, :dim], texts[:, dim:])

    # -----------------------------------------------------------------------------------------
    # Scores
    # -----------------------------------------------------------------------------------------

    def derived(self) -> dict[str, Tensor]:
        """The texts of the classes, as they are encoded now."""
        return {"class_texts": self._encode_classes().to(self.class_texts.dtype)}

    def _encode_classes(self) -> Float[Tensor, "classes dim"]:
        names = [name.replace("_", " ") for name in self.task.class_names]
        return self.encode([ZERO_SHOT_TEMPLATE.replace("{}", name) for name in names]).features

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Scaled cosine of each image with the text of each class; no mask is used."""
        assert batch.pixels is not None
        images = self.embed_images(batch.pixels)
        return zero_shot_scores(images, self.class_texts, logit_scale=self.settings.matching_scale)

    def for_classes(self, task: Task) -> Method[Any]:
        """The same weights asked of any classes, whose texts it encodes."""
        other = self.with_task(task)
        assert isinstance(other, SmartCLIP)
        if task.backbone is None:
            other.task = replace(task, backbone=self.task.backbone)
        with torch.no_grad():
            texts = other._encode_classes().to(self.class_texts)
        other._buffers = {**self._buffers, "class_texts": texts}
        return other

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """Texts of the classes as the trained text tower has them."""
        return self.class_texts

    def watch(self) -> dict[str, float]:
        """Mean cosine between the texts of different classes."""
        return watched_cosine(F.normalize(self.class_texts, dim=-1))
