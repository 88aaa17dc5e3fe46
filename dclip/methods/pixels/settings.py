"""Settings of the methods on pixels; reading them takes no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from dclip.fitting.loop import Loop
from dclip.methods.adapter_settings import BACKGROUND_WORDS, background_prompts
from dclip.methods.settings import Feed, MethodSettings, Preset, Variant
from dclip.templates import ZERO_SHOT_TEMPLATE, check_template, prompt_ensemble
from dclip.texts import distinct_words

FOOD_WORDS = ("table", "forks", "tablecloth", "hands", "spoon", "glasses", "dishes")
"""What may be behind food: DAPT's words of it, which follow its general ones."""

_MAPLE_LOOP: Mapping[str, Any] = {
    "epochs": 5,
    "batch_size": 4,
    "optimizer": "sgd",
    "lr": 0.0035,
    "weight_decay": 5e-4,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
    "augmentation": "crop",
}


# ours: steps that suit a few hundred images; a random crop of a small object may hold none of it
_ROBUST_LOOP: Mapping[str, Any] = {"epochs": 10, "batch_size": 16, "lr": 3e-3}


class PromptSettings(MethodSettings):
    """What is common to methods that learn coupled prompts in both towers of CLIP."""

    feeds: ClassVar[frozenset[Feed]] = frozenset({"pixels"})
    needs_gradients = True
    needs: ClassVar[frozenset[str]] = frozenset({"visual prompts"})
    packed = False
    watched: ClassVar[Mapping[str, str]] = {"inter_class_cosine": "cosine"}
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {"context_length": [2, 4]}

    context_length: int = Field(2, ge=1, le=75, description="learned vectors at each depth")
    depth: int | None = Field(
        None,
        ge=1,
        description="blocks of either tower that prompts enter, the first ones; left out: 9, or "
        "all where a tower has fewer",
    )
    template: str = Field(
        ZERO_SHOT_TEMPLATE,
        description="prompt of a class, whose first words the learned vectors take the place of",
    )
    initial: Literal["words", "random"] = Field(
        "words",
        description="initial vectors of the input: the words they take the place of, or random "
        "ones before the class name alone",
    )
    prompt_std: float = Field(0.02, ge=0, description="deviation of random initial vectors")
    logit_scale: float | None = Field(
        None, gt=0, description="multiplier of the cosines; left out: that of CLIP's own weights"
    )

    def prompt_template(self) -> str:
        """The template; before a class name alone, a word of one token for each vector."""
        return "X " * self.context_length + "{}." if self.initial == "random" else self.template

    def idle(self) -> frozenset[str]:
        """Random vectors stand before the name alone."""
        return frozenset({"template"} if self.initial == "random" else ())

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        return check_template(template)


class MaPLeSettings(PromptSettings):
    """Hyper-parameters of MaPLe, for images of one class each.

    Sources: arXiv 2210.03117 and the authors' code. ``author`` is their run from base to new
    classes; across data sets they take lr 0.0026, 2 epochs and depth 3.
    """

    name = "maple"
    title = "MaPLe"
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(loop=_ROBUST_LOOP),
        "author": Preset(loop=_MAPLE_LOOP),
    }


class DAPTSettings(PromptSettings):
    """Hyper-parameters of DAPT, for images of one class each.

    Sources: arXiv 2508.00395 and the authors' code. The fields show the method as it is meant;
    ``author`` computes what the public code computes, which differs (docs/methods.md).
    """

    name = "dapt"
    title = "DAPT"
    needs: ClassVar[frozenset[str]] = frozenset({"visual prompts", "attention"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(loop=_ROBUST_LOOP),
        "author": Preset(
            loop={**_MAPLE_LOOP, "epochs": 10},
            own={
                "mask_source": "file",
                "background_split": 25,
                "test_columns": "all",
                "gradcam_maximum": "batch",
                "empty_masks": "use",
            },
        ),
    }
    bold = ("triplet_weight",)

    mask_source: Literal["gradcam", "file"] = Field(
        "gradcam",
        description="what tells foreground from background in training: Grad-CAM of the current "
        "prompts (DAPT-G), or masks that come with the images (DAPT-S)",
    )
    background_words: tuple[str, ...] = Field(
        (*BACKGROUND_WORDS, *FOOD_WORDS),
        min_length=1,
        description="what may be behind an object; those that are classes are left out",
    )
    background_split: int | None = Field(
        None,
        ge=1,
        description="only so many of the last words are background, and those before stand among "
        "the classes, as the authors' 25 do (no word is left out then); left out: all",
    )
    test_columns: Literal["classes", "all"] = Field(
        "classes",
        description="what an image may be taken for: a class, or also a word of the background "
        "that stands among the classes",
    )
    gradcam_maximum: Literal["image", "batch"] = Field(
        "image",
        description="what Grad-CAM is a share of: the largest value of the image, or of the batch",
    )
    gradcam_threshold: float = Field(
        0.5, gt=0, lt=1, description="share of the largest value from which on it is foreground"
    )
    empty_masks: Literal["skip", "use"] = Field(
        "skip",
        description="an image without foreground or without background takes no part in L_v, L_f "
        "and L_b, and is counted; or takes part with one of its halves blank",
    )
    first_phase: int = Field(
        7, ge=0, description="first epochs, which train with L_v; the others with L_f and L_b"
    )
    triplet_weight: float = Field(
        0.8, ge=0, description="weight of L_v: an image is near its foreground, not its background"
    )
    foreground_weight: float = Field(
        0.1, ge=0, description="weight of L_f: the foreground alone shows the class"
    )
    background_weight: float = Field(
        0.5, ge=0, description="weight of L_b: the background is one of the background's words"
    )
    margin: float = Field(1.5, gt=0, description="margin of L_v, a distance of unit vectors")

    def training_feeds(self) -> frozenset[Feed]:
        """Masks, too, where they come with the images."""
        return frozenset({"pixels", "masks"} if self.mask_source == "file" else {"pixels"})

    def remarks(self, loop: Loop) -> tuple[str, ...]:
        """That the second phase is never reached, as in the authors' runs of 5 epochs."""
        if loop.epochs > self.first_phase:
            return ()
        return (
            f"{loop.epochs} epochs end in the first phase of {self.first_phase}: L_f and L_b are "
            "never trained; give more epochs or a lower dapt.first_phase",
        )

    def own_texts(self) -> tuple[str, ...]:
        """Prompts of the background's words."""
        return background_prompts(self.background_words)

    def idle(self) -> frozenset[str]:
        """Grad-CAM's settings where masks come with the images."""
        of_files = {"gradcam_maximum", "gradcam_threshold"} if self.mask_source == "file" else ()
        return super().idle() | frozenset(of_files)

    @field_validator("background_words")
    @classmethod
    def _check_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_words(words)

    @field_validator("background_split")
    @classmethod
    def _check_split(cls, split: int | None, found: Any) -> int | None:
        words = found.data.get("background_words", ())
        if split is not None and split > len(words):
            raise ValueError(f"there are {len(words)} background_words, of which {split} cannot be")
        return split


class SmartCLIPSettings(MethodSettings):
    """Hyper-parameters of SmartCLIP, which trains all of CLIP on images and captions.

    Sources: the authors' code. ``author`` is their run: AdamW at 1e-6 with decay 1e-2 and 200
    warm-up steps for CLIP, at 1e-3 without either for the mask network, cosine over the steps, 3
    epochs of batches of 1,024.
    """

    name = "smartclip"
    title = "SmartCLIP"
    feeds: ClassVar[frozenset[Feed]] = frozenset({"pixels"})
    needs_gradients = True
    packed = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(
            loop={
                "epochs": 3,
                "batch_size": 64,
                "optimizer": "adamw",
                "lr": 1e-5,
                "weight_decay": 1e-2,
                "warmup_epochs": 0,
                "schedule": "step",
                "warmup_steps": 50,
            },
        ),
        "author": Preset(
            loop={
                "epochs": 3,
                "batch_size": 1024,
                "optimizer": "adamw",
                "lr": 1e-6,
                "weight_decay": 1e-2,
                "warmup_epochs": 0,
                "schedule": "step",
                "warmup_steps": 200,
            },
            own={"mask_lr_factor": 1000.0},
        ),
    }
    variants: ClassVar[Mapping[str, Variant]] = {
        "smartclip_no_masks": Variant({"masks": "none"}, "SmartCLIP without masks")
    }
    watched: ClassVar[Mapping[str, str]] = {"inter_class_cosine": "cosine"}
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {"masks": ["hard", "none"]}

    masks: Literal["hard", "soft", "none"] = Field(
        "hard",
        description="masks of 0 and 1 with the gradient of soft ones, as published; soft ones; or "
        "none, which is the same training of CLIP by plain contrast",
    )
    padding_in_mask: bool = Field(
        True,
        description="let the mask network read and pool what stands behind the end of a text, too, "
        "as the authors do",
    )
    matching_weight: float = Field(
        10.0, ge=0, description="weight of telling captions, and images, apart"
    )
    sparsity_weight: float = Field(2.0, ge=0, description="weight of the mean of the masks")
    matching_scale: float = Field(
        100.0, gt=0, description="multiplier of the cosines; CLIP's own is not used"
    )
    mask_lr_factor: float = Field(
        100.0, gt=0, description="learning rate of the mask network, as a multiple of lr"
    )
    captions: Literal["prefix", "whole"] = Field(
        "prefix",
        description="train on the first sentences of a caption, as many as are drawn, or on all",
    )
    kept_positions: int = Field(
        20, ge=0, description="positions of the text tower that stay as they are"
    )
    stretch: int = Field(
        4,
        ge=1,
        description="positions that each of the others is drawn out to: 4 makes 248 of CLIP's 77; "
        "1 leaves their number",
    )

    def training_feeds(self) -> frozenset[Feed]:
        """Images and what is said of them."""
        return frozenset({"pixels", "captions"})

    def idle(self) -> frozenset[str]:
        """Without masks, what is theirs."""
        if self.masks != "none":
            return frozenset()
        return frozenset({"padding_in_mask", "sparsity_weight", "mask_lr_factor"})


BACKGROUND_WORDS_COCO = tuple(w for w in BACKGROUND_WORDS if w not in ("keyboard", "sign"))
"""TagCLIP's words of what is behind the classes of COCO; beside those of VOC it has all."""

_TAGCLIPS_CODE: Mapping[str, Any] = {
    "drop_last_row_col": True,
    "early_return": True,
    "as_text_at_76": True,
    "float16_positions": True,
}


class TagCLIPSettings(MethodSettings):
    """Hyper-parameters of TagCLIP, which is not trained.

    Sources: arXiv 2312.12828 and the authors' code. The fields show the method as it is meant, for
    a ViT of any depth; the presets ``author`` compute what the public code computes on VOC, on COCO
    and on COCO-Stuff, which differs (docs/methods.md).
    """

    name = "tagclip"
    title = "TagCLIP"
    feeds: ClassVar[frozenset[Feed]] = frozenset({"pixels"})
    trained_by = None
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    image_form = "native"
    packed = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(),
        "author": Preset(own=_TAGCLIPS_CODE),
        "author_coco": Preset(own={**_TAGCLIPS_CODE, "background_words": BACKGROUND_WORDS_COCO}),
        "author_stuff": Preset(
            own={
                **_TAGCLIPS_CODE,
                "background_words": (),
                "affinity_blocks": None,
                "threshold": 0.1,
            }
        ),
    }

    background_words: tuple[str, ...] = Field(
        BACKGROUND_WORDS,
        description="what may be behind the classes and competes with them; words that are classes "
        "are left out",
    )
    templates: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="prompts whose unit features are averaged; left out: the 80 of ImageNet and 5 "
        "of things in a scene",
    )
    affinity_blocks: int | None = Field(
        3,
        ge=1,
        description="blocks before the last whose attention says which patches belong together, or "
        "as many as there are; null: all",
    )
    votes: int | None = Field(
        None,
        ge=1,
        description="blocks in which an attention has to be above its mean to count; left out: a "
        "third of them",
    )
    threshold: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="a class is looked at again, and is found, where its score is above this share "
        "of the way from the lowest to the highest",
    )
    crop_weight: float = Field(
        0.5, ge=0, le=1, description="weight of what the second look says, in place of the first"
    )
    crop_size: int | None = Field(
        None, ge=1, description="pixels of the second look; left out: the size CLIP was trained at"
    )
    most_patches: int = Field(
        2304,
        ge=1,
        description="a larger image is made smaller to as many patches; memory grows with their "
        "square",
    )
    drop_last_row_col: bool = Field(
        False, description="no box holds the last row or column of patches, as in the authors' code"
    )
    early_return: bool = Field(
        False,
        description="the first class whose box is empty ends all second looks, as in the authors' "
        "code; boxes are empty by drop_last_row_col alone",
    )
    as_text_at_76: bool = Field(
        False,
        description="in an image of 76 patches, as many tokens as a text, patches attend to each "
        "other in the last block, too, as in the authors' code",
    )
    float16_positions: bool = Field(
        False, description="round resized positions to float16, as the authors' code does"
    )

    def all_templates(self) -> tuple[str, ...]:
        """The prompts that are averaged."""
        if self.templates is not None:
            return self.templates
        return prompt_ensemble("imagenet80", "scene5")

    def prompt_template(self) -> str:
        """The prompt of most words."""
        return max(self.all_templates(), key=lambda template: len(template.split()))

    def idle(self) -> frozenset[str]:
        """Boxes that keep the last row and column are never empty."""
        return frozenset() if self.drop_last_row_col else frozenset({"early_return"})

    @field_validator("background_words")
    @classmethod
    def _check_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_words(words)

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return templates if templates is None else tuple(map(check_template, templates))
