"""What a method says of itself before any tensor is made; reading it takes no torch.

The settings of a method are one pydantic model. Each field is a flag of the command line, a key of
YAML files and of sweeps, and part of the checkpoint. What else the stages have to know of a method
(its names, its presets, what it is fed) are class variables of the same model. The work is in a
:class:`dclip.methods.method.Method`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dclip.fitting.loop import Loop
from dclip.marks import RARE

Feed = Literal["local", "embedding", "captions", "pixels", "masks"]
"""What a method may ask for of each image: cached local features, the cached global embedding, its
captions, its pixels, which are read as the step runs, or with these a mask of what is in front."""


class Preset(NamedTuple):
    """Defaults that go together.

    Attributes:
        loop: Of the training loop (:class:`dclip.fitting.loop.Loop`).
        own: Of the method's own settings.
    """

    loop: Mapping[str, Any] = {}
    own: Mapping[str, Any] = {}


class Variant(NamedTuple):
    """A setting of a method that is trained and shown beside it, under a name of its own.

    Attributes:
        changes: Settings that make it.
        title: What tables call it.
    """

    changes: Mapping[str, Any]
    title: str


class MethodSettings(BaseModel):
    """Base of the settings of every method.

    Attributes:
        name: Of the method, and of its section of the settings: letters, digits, ``_``.
        title: What tables call it.
        feeds: What it may be fed of each image, to score it.
        trained_by: ``"loop"``: by :func:`dclip.fitting.fit.fit`; ``"itself"``: it has a ``fit`` of
            its own, which takes seconds; None: there is nothing to train.
        needs_gradients: Whether it trains through the backbone, which has to offer it.
        needs: What else the backbone has to offer it (`dclip.backbones.gradients`).
        image_form: How images become the pixels it is fed, where they are not cropped at random:
            ``"crop"`` (their middle, as CLIP's own preparation), ``"square"`` (squeezed) or
            ``"native"`` (at their own size, one a batch).
        packed: Whether trainings of it may share a step, as members of a pack.
        may_differ: Settings in which members of a pack may differ. The method keeps each
            as a buffer, or it changes the shapes of its weights.
        presets: Defaults by name, first those that are taken where nothing is said; ``robust`` is
            what the fields show.
        variants: By name, what ``pipeline.run`` trains beside it.
        watched: What is watched each epoch, by name, with the heading of its column in tables.
        sweep_space: What a sweep varies where nothing is said.
        bold: Settings that may make training diverge, named where it does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    feeds: ClassVar[frozenset[Feed]] = frozenset({"local"})
    trained_by: ClassVar[Literal["loop", "itself"] | None] = "loop"
    needs_gradients: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    image_form: ClassVar[Literal["crop", "square", "native"]] = "crop"
    packed: ClassVar[bool] = True
    may_differ: ClassVar[frozenset[str]] = frozenset()
    presets: ClassVar[Mapping[str, Preset]] = {"robust": Preset()}
    variants: ClassVar[Mapping[str, Variant]] = {}
    watched: ClassVar[Mapping[str, str]] = {}
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {}
    bold: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def usual_preset(cls) -> str:
        """Name of the preset that is taken where nothing is said."""
        return next(iter(cls.presets))

    @classmethod
    def preset_values(cls, name: object) -> Preset:
        """Defaults that a preset stands for; those of the loop say which preset it is.

        Raises:
            ValueError: There is no such preset.
        """
        if not isinstance(name, str) or name not in cls.presets:
            raise ValueError(f"{cls.name} has the presets {', '.join(cls.presets)}, not {name!r}")
        found = cls.presets[name]
        return Preset({**found.loop, "preset": name}, found.own)

    def common(self) -> dict[str, Any]:
        """Values in which trainings that share passes over the features agree, as JSON has them."""
        return self.model_dump(mode="json", exclude=set(self.may_differ))

    def training_feeds(self) -> frozenset[Feed]:
        """What it is fed of each image in training."""
        return self.feeds

    @classmethod
    def sees_images(cls) -> bool:
        """Whether it may be fed images themselves, which cached features do not hold."""
        return not cls.feeds <= {"local", "embedding"}

    def idle(self) -> frozenset[str]:
        """Settings that make no difference, as others are."""
        return frozenset()

    def remarks(self, loop: Loop) -> tuple[str, ...]:  # noqa: ARG002 - the signature is the contract
        """What nobody would expect of these settings with this loop; shown before the training."""
        return ()

    def own_texts(self) -> tuple[str, ...]:
        """Texts beside those of the classes that the backbone encodes when training begins."""
        return ()

    def scoring_feeds(self) -> frozenset[Feed]:
        """What of ``feeds`` these settings need to score an image."""
        return self.feeds

    def prompt_template(self) -> str:
        """A template whose text is as long as what the method gives the text encoder of a class."""
        return "{}"

    def variant(self) -> str | None:
        """Name of the variant that these settings are; None for the method itself."""
        for name, variant in self.variants.items():
            if all(getattr(self, key) == value for key, value in variant.changes.items()):
                return name
        return None

    def own_name(self) -> str:
        """What reports and files call a training of these settings."""
        return self.variant() or self.name


def of_preset(kind: type[MethodSettings], name: object) -> tuple[Loop, MethodSettings]:
    """Settings of the loop and of a method where only a preset is given.

    Raises:
        ValueError: There is no such preset.
    """
    found = kind.preset_values(name)
    return Loop.model_validate(found.loop), kind.model_validate(found.own)


# settings that several methods have, with a default of each method's own
GammaNeg = Annotated[float, Field(ge=0, description="focusing exponent of negatives in ASL")]
GammaPos = Annotated[float, Field(ge=0, description="focusing exponent of positives in ASL")]
Clip = Annotated[float, Field(ge=0, lt=1, description="probability margin c of negatives in ASL")]
AslWeight = Annotated[
    float, Field(ge=0, description="weight of ASL (the authors' loss_w)", json_schema_extra=RARE)
]
AslReduction = Annotated[
    Literal["sum", "mean", "image"],
    Field(
        description="sum over images and classes, mean over known labels, or image: sum over "
        "classes and mean over images, as known labels say it of all",
        json_schema_extra=RARE,
    ),
]
LocalScale = Annotated[
    float,
    Field(gt=0, description="multiplier of the cosine at each location; sharpness of pooling"),
]
_RedundancyWeight = Annotated[
    float,
    Field(ge=0, title="lambda", description="weight lambda of the off-diagonal terms in MFI"),
]
_MfiGram = Annotated[
    Literal["feature", "class"],
    Field(
        description="matrix MFI regulates: feature by feature, or class by class",
        json_schema_extra=RARE,
    ),
]
_MfiReduction = Annotated[
    Literal["sum", "mean"],
    Field(description="sum or mean over the matrix' entries", json_schema_extra=RARE),
]

# what makes no difference without MFI
_OF_MFI = frozenset({"redundancy_weight", "mfi_scope", "mfi_gram", "mfi_reduction"})

# the loops of the authors' runs; those of PositiveCoOp decay no weight and begin with a fast epoch
_AUTHOR_LOOP: Mapping[str, Any] = {
    "epochs": 50,
    "batch_size": 32,
    "optimizer": "sgd",
    "lr": 0.002,
    "weight_decay": 5e-4,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
}
_POSITIVECOOP_LOOP = {**_AUTHOR_LOOP, "weight_decay": 0.0, "warmup_lr": 5e-3}


class DCLIPSettings(MethodSettings):
    """Hyper-parameters of DCLIP: sizes and start of the projectors, ASL and MFI.

    ``author`` is the published recipe: SGD, one warm-up epoch, summed losses. ``robust`` replaces
    sums by means, so that neither batch size nor number of classes changes the balance of the two
    losses. ``anchored``, which is taken where nothing is said, starts from what CLIP says itself
    and goes as far from it as the labels ask; it is ours. Sources: arXiv 2502.02977 (lambda, c),
    the authors' code (the rest), our measurements (docs/results.md).
    """

    name = "dclip"
    title = "DCLIP (ASL + MFI)"
    may_differ = frozenset({"mfi_weight", "redundancy_weight", "output_dim"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "anchored": Preset(
            loop={"optimizer": "sgd", "lr": 4e-3, "weight_decay": 0.0, "warmup_lr": 4e-4},
            own={
                "form": "anchored",
                "gamma_neg": 0.0,
                "gamma_pos": 0.0,
                "clip": 0.0,
                "asl_reduction": "image",
                "mfi_weight": 1.0,
                "mfi_scope": "positive",
                "class_prior": 32.0,
                "image_lr_classes": 16,
            },
        ),
        "robust": Preset(),
        "author": Preset(
            loop=_AUTHOR_LOOP,
            own={
                "initial": "random",
                "asl_reduction": "sum",
                "asl_weight": 0.05,
                "mfi_weight": 7e-5,
                "mfi_reduction": "sum",
                "mfi_gram": "feature",
                "mfi_scope": "both",
                "redundancy_weight": 0.2,
            },
        ),
    }
    variants: ClassVar[Mapping[str, Variant]] = {
        "asl_only": Variant({"mfi_weight": 0.0}, "projectors, ASL only")
    }
    watched: ClassVar[Mapping[str, str]] = {"inter_class_cosine": "cosine"}
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {
        "redundancy_weight": [0.2, 1.0],
        "mfi_weight": [0.1, 1.0],
        "output_dim": [32, 64],
    }
    bold = ("mfi_weight", "redundancy_weight")

    hidden_dim: int | None = Field(
        None,
        ge=1,
        description="hidden width of the text projector; left out: 3/4 of CLIP's width",
        json_schema_extra=RARE,
    )
    output_dim: int | None = Field(
        None,
        ge=2,
        title="dim",
        description="dimension d' of the projected space; left out: half of CLIP's width",
    )
    aggregation: Literal["project_then_pool", "pool_then_project"] = Field(
        "project_then_pool",
        description="order of image projection and spatial pooling",
        json_schema_extra=RARE,
    )
    local_scale: LocalScale = 20.0
    pooled_scale: float = Field(
        5.0, gt=0, description="multiplier of the pooled cosine", json_schema_extra=RARE
    )
    form: Literal["pairs", "anchored"] = Field(
        "pairs",
        description="pairs: projectors say anew what two prompts of each class mean, as published; "
        "anchored: they change what CLIP says of its presence, and start from that",
    )
    initial: Literal["aligned", "random"] = Field(
        "aligned",
        description="initial weights of pairs: random, or aligned, which lets the two projectors "
        "agree on the texts",
        json_schema_extra=RARE,
    )
    class_prior: float = Field(
        0.0,
        ge=0,
        description="a class that n training images show learns n / (n + this) of its gradient, "
        "so that what few images say changes little; 0: all of it",
        json_schema_extra=RARE,
    )
    image_lr_classes: int | None = Field(
        None,
        ge=1,
        description="with more classes than this the image projector, which every class moves, "
        "has a learning rate lower by as much; left out: the same as the others",
        json_schema_extra=RARE,
    )
    gamma_neg: GammaNeg = 2.0
    gamma_pos: GammaPos = 1.0
    clip: Clip = 0.05
    asl_weight: AslWeight = 1.0
    asl_reduction: AslReduction = "mean"
    mfi_weight: float = Field(
        0.1, ge=0, title="alpha", description="weight alpha of MFI; 0 trains with ASL only"
    )
    redundancy_weight: _RedundancyWeight = 1.0
    mfi_scope: Literal["both", "split", "positive"] = Field(
        "both",
        description="prompts MFI looks at: both polarities as one set, split, or positive",
        json_schema_extra=RARE,
    )
    mfi_gram: _MfiGram = "class"
    mfi_reduction: _MfiReduction = "mean"

    def idle(self) -> frozenset[str]:
        """Without MFI its other settings make no difference, nor does the start of another form."""
        idle = frozenset({"initial"}) if self.form == "anchored" else frozenset()
        return idle if self.mfi_weight > 0 else idle | _OF_MFI

    @field_validator("form")
    @classmethod
    def _anchored_pools_last(cls, form: str, found: Any) -> str:
        if form == "anchored" and found.data.get("aggregation") == "pool_then_project":
            raise ValueError(
                "aggregation pool_then_project is of form pairs; take it with the preset robust or "
                "author"
            )
        return form


class PairSettings(MethodSettings):
    """What is common to methods that train a pair of logits for every class by ASL."""

    gamma_neg: GammaNeg = 2.0
    gamma_pos: GammaPos = 1.0
    clip: Clip = 0.05
    asl_weight: AslWeight = 1.0
    asl_reduction: AslReduction = "mean"
    asl_form: Literal["pair", "sigmoid_positive", "sigmoid_negative", "optimised"] = Field(
        "pair",
        description="what says that a class is there: the softmax over its pair, the sigmoid of "
        "one of the two, or that of presence as ASL was published",
    )
    asl_weight_gradient: Literal["detached", "differentiated"] = Field(
        "detached",
        description="whether the focusing weight of ASL is a constant to the gradient, or takes "
        "part in it",
    )
    pooled_scale: float = Field(5.0, gt=0, description="multiplier of what was pooled")

    def idle(self) -> frozenset[str]:
        """The optimised form differentiates the weight whatever is said."""
        return frozenset({"asl_weight_gradient"} if self.asl_form == "optimised" else ())


class ContextSettings(PairSettings):
    """What is common to methods that learn contexts among the tokens of CLIP's text encoder."""

    needs_gradients = True
    may_differ = frozenset({"mfi_weight", "redundancy_weight", "context_length", "contexts"})
    watched: ClassVar[Mapping[str, str]] = {"inter_class_cosine": "cosine"}
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {"mfi_weight": [0.0, 0.1, 1.0]}
    bold = ("mfi_weight", "redundancy_weight")

    context_length: int = Field(16, ge=1, le=1000, description="learned vectors of a context")
    contexts: Literal["per_class", "shared"] = Field(
        "per_class",
        description="a context for each class, which binds to these classes, or one for all",
    )
    context_std: float = Field(0.02, ge=0, description="deviation of the initial contexts")
    local_scale: LocalScale = 20.0
    mfi_weight: float = Field(
        0.0, ge=0, title="alpha", description="weight alpha of MFI on the encoded texts; 0: none"
    )
    redundancy_weight: _RedundancyWeight = 1.0
    mfi_scope: Literal["both", "split", "positive"] = Field(
        "positive", description="texts MFI looks at: both polarities as one set, split, or positive"
    )
    mfi_gram: _MfiGram = "class"
    mfi_reduction: _MfiReduction = "mean"

    def prompt_template(self) -> str:
        """A word of one token for each vector of the context, then the name with a full stop."""
        return "a " * self.context_length + "{}."

    def idle(self) -> frozenset[str]:
        """Without MFI its other settings make no difference."""
        return super().idle() if self.mfi_weight > 0 else super().idle() | _OF_MFI


class DualCoOpSettings(ContextSettings):
    """Hyper-parameters of DualCoOp: contexts, ASL and, as an addition of ours, MFI.

    Sources: arXiv 2206.09541, the authors' code. ``author`` is their run on COCO with half of the
    labels; the weight of ASL for other shares was never published.
    """

    name = "dualcoop"
    title = "DualCoOp"
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(),
        "author": Preset(
            loop=_AUTHOR_LOOP,
            own={"asl_reduction": "sum", "asl_weight": 0.03},
        ),
    }


class PositiveCoOpSettings(ContextSettings):
    """Hyper-parameters of PositiveCoOp: a context, free vectors, ASL and, as an addition, MFI.

    Sources: arXiv 2409.08381, the authors' code.
    """

    name = "positivecoop"
    title = "PositiveCoOp"
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(loop={"lr": 0.01}),
        "author": Preset(
            loop=_POSITIVECOOP_LOOP,
            own={
                "asl_reduction": "sum",
                "asl_weight": 0.03,
                "free_start": "normal",
                "offset_std": 1.0,
                "context_lr_factor": 0.01,
            },
        ),
    }

    positive_offset: bool = Field(
        True, description="add a free vector to the text of presence, too, as the authors do"
    )
    offset_std: float = Field(
        0.0, ge=0, description="deviation of that vector's initial values; 0 starts at the text"
    )
    free_start: Literal["neutral", "normal"] = Field(
        "neutral",
        description="how the vectors of absence start: at the mean of the texts of presence, or as "
        "normal noise of deviation 1",
    )
    context_lr_factor: float = Field(
        1.0, gt=0, description="learning rate of the context, as a multiple of lr; not in warm-up"
    )


class PositiveCoOpBaselineSettings(PairSettings):
    """Hyper-parameters of PositiveCoOp's baseline: ASL alone."""

    name = "positivecoop_baseline"
    title = "PositiveCoOp's baseline (linear)"
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(loop={"lr": 1e-4}),
        "author": Preset(
            loop=_POSITIVECOOP_LOOP,
            own={"asl_reduction": "sum", "asl_weight": 0.03, "initial": "random"},
        ),
    }

    initial: Literal["zero", "random"] = Field(
        "zero",
        description="initial weights: zero, or as PyTorch draws them, which on features as long as "
        "CLIP's is certain of everything, and certainty has no gradient",
    )


class ZeroShotSettings(MethodSettings):
    """CLIP as it is: the cosine of its global embedding with each class's text."""

    name = "zero_shot"
    title = "CLIP zero-shot (global)"
    feeds: ClassVar[frozenset[Feed]] = frozenset({"embedding"})
    trained_by = None


class ZeroShotLocalSettings(MethodSettings):
    """CLIP's local features as they are: the best location's cosine with each class's text."""

    name = "zero_shot_local"
    title = "CLIP zero-shot (best location)"
    trained_by = None


class LinearProbeSettings(MethodSettings):
    """A linear map on frozen local features, without any text."""

    name = "linear_probe"
    title = "linear probe, max-pooled"
    trained_by = "itself"

    epochs: int = Field(30, ge=1, description="passes of the linear probe")
