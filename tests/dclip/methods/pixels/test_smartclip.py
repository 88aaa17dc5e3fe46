"""SmartCLIP as published, against the numbers of its authors' own modules."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.long_text import LongCLIP, Tokens, stretch_positions, tokenize_cut
from dclip.data.captions import read_captions
from dclip.fitting.batches import Batch
from dclip.fitting.fit import EpochReport, fit, step_learning_rate
from dclip.fitting.gather import gather_rows
from dclip.fitting.images import ImageSource
from dclip.fitting.pack import Pack
from dclip.methods.method import Task
from dclip.methods.pixels.mask_network import MaskNetwork
from dclip.methods.pixels.settings import SmartCLIPSettings
from dclip.methods.pixels.smartclip import SmartCLIP
from dclip.methods.settings import of_preset
from dclip.retrieval import Encoded, PairEncoder

from ...conftest import BLOCK_NAMES

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
NAMES = {
    **BLOCK_NAMES,
    "text.positional_embedding_res": "clip.positions",
    "vision.projection": "clip.model.visual.proj",
    "vision.patch_embedding": "clip.model.visual.conv1",
    "text.projection": "clip.model.text_projection",
    "token_embedding": "token_embedding.weight",
    "text.block": "clip.model.transformer.resblocks.",
    "vision.block": "clip.model.visual.transformer.resblocks.",
    "vision.": "clip.model.visual.",
    "text.": "clip.model.",
    "mask.block0": "mask_network.block",
    "mask.": "mask_network.",
}
TRAINED = (
    "mask.pool_score.weight",
    "mask.block0.attention.qkv.weight",
    "vision.projection",
    "text.projection",
    "text.positional_embedding_res",
    "text.ln_final.weight",
)


def tiny_clip(width: int = 16, embed_dim: int = 16, context: int = 77) -> OpenCLIPBackbone:
    """A CLIP of the oracle's sizes, its weights random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=embed_dim,
            vision_cfg={
                "layers": 2, "width": 24, "head_width": 12, "image_size": 16, "patch_size": 8
            },
            text_cfg={"context_length": context, "width": width, "heads": 2, "layers": 2},
            quick_gelu=True,
        )  # fmt: skip
    return OpenCLIPBackbone(model, open_clip.SimpleTokenizer(), name="small")


def task_of(backbone: OpenCLIPBackbone, classes: int = 2) -> Task:
    dim = backbone.embed_dim
    names = tuple("ab"[:classes])
    features = Task.of_features(names, torch.ones(2 * classes, dim))
    return Task(features.class_names, features.pairs, features.texts, backbone)


def ours(name: str) -> str:
    for theirs, own in NAMES.items():
        name = name.replace(theirs, own)
    return name


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, Tensor]:
    with np.load(golden / "smartclip.npz") as stored:
        found = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return {k: v.double() if v.is_floating_point() else v.long() for k, v in found.items()}


def authors(arrays: dict[str, Tensor], masks: Any, dtype: torch.dtype) -> SmartCLIP:
    """The method with the weights of the file."""
    backbone = tiny_clip()
    backbone.model.to(dtype)
    method = SmartCLIP(SmartCLIPSettings(masks=masks), task_of(backbone)).to(dtype)
    vocabulary = arrays["weight.text.token_embedding"]
    method.clip.model.token_embedding = nn.Embedding(*vocabulary.shape, dtype=dtype)
    left = {name for name, value in method.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for key, value in arrays.items():
            if not key.startswith("weight.") or key == "weight.log_logit_scale":
                continue
            name = ours(key.removeprefix("weight."))
            if key == "weight.text.positional_embedding":
                method.clip.kept_positions.copy_(value[:20])
                continue
            own = method.get_parameter(name)
            given = value[20:] if key.endswith("_res") else value
            assert own.shape == given.shape, name
            own.copy_(given)
            left.discard(name)
    assert not left
    return method


def assert_close(found: Tensor, expected: Tensor, name: str, bound: float = 0.0) -> None:
    """Relative to the largest entry: what the numbers were recorded for."""
    bound = (bound or TOLERANCE[found.dtype]) * float(expected.abs().max())
    deviation = float((found.detach().double() - expected).abs().max())
    assert found.shape == expected.shape, name
    assert deviation <= bound, f"{name} deviates by {deviation:.2g}, {bound:.2g} is allowed"


def read(arrays: dict[str, Tensor]) -> Tokens:
    ids = arrays["input.tokens"]
    return Tokens(ids, ids.argmax(1), 0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_features_masks_losses_and_gradients_are_the_authors(
    form: str, dtype: torch.dtype, arrays: dict[str, Tensor]
) -> None:
    method = authors(arrays, form, dtype)
    images = method.clip.embed_images(arrays["input.images"].to(dtype))
    texts = method.encode_tokens(read(arrays))
    assert texts.mask_logits is not None
    found = {"image_features": images, "text_features": texts.features}
    found |= {"mask_logits": texts.mask_logits, "soft_mask": texts.mask_logits.sigmoid()}
    for name, value in found.items():
        assert_close(value, arrays[f"out.{name}"], name)
    states = method.clip.token_states(arrays["input.tokens"])
    bound = max(1e-6, TOLERANCE[dtype])  # stored in float32
    assert_close(states, arrays["out.token_states"], "token_states", bound)

    losses = method.contrast(images, texts)
    for name in ("sidm", "dism", "sparsity"):
        assert_close(losses[name], arrays[f"out.{form}.loss_{name}"], name)
    assert_close(losses["loss"], arrays[f"out.{form}.loss_total"], "total")
    masks = method.masks(texts.mask_logits)
    similarity = method._compare(images, torch.cat([texts.features, masks], 1))
    assert_close(masks, arrays[f"out.{form}.mask"], "mask")
    assert_close(similarity, arrays[f"out.{form}.sidm_logits"], "sidm_logits")
    assert_close(similarity.mT, arrays[f"out.{form}.dism_logits"], "dism_logits")
    if form == "hard":
        kept = masks.detach().double().sum(1)
        said = torch.stack([kept.mean(), kept.min(), kept.max()])
        assert torch.equal(said, arrays["out.hard.kept_per_sample"])

    wanted = {"mask_logits": texts.mask_logits, "image": images, "text": texts.features}
    wanted |= {name: method.get_parameter(ours(name)) for name in TRAINED}
    given = {name for name in arrays if name.startswith(f"grad.{form}.")}
    assert given == {f"grad.{form}.total_wrt_{name}" for name in wanted}
    gradients = torch.autograd.grad(losses["loss"], list(wanted.values()))
    for name, gradient in zip(wanted, gradients, strict=True):
        expected = arrays[f"grad.{form}.total_wrt_{name}"]
        if name.endswith("_res"):
            assert not expected[:20].any()  # as they stay
            expected = expected[20:]
        assert_close(gradient, expected, name)


def test_positions_are_stretched_as_the_authors_do(arrays: dict[str, Tensor]) -> None:
    found = stretch_positions(arrays["stretch.input.positions_77"])
    assert_close(found, arrays["stretch.out.positions_248"], "positions")
    model = LongCLIP(tiny_clip())
    assert model.length == 248
    assert not model.kept_positions.requires_grad
    whole = stretch_positions(tiny_clip().model.positional_embedding)
    torch.testing.assert_close(torch.cat([model.kept_positions, model.positions]), whole)


def test_short_texts_are_read_as_before_where_positions_stay() -> None:
    backbone = tiny_clip()
    texts = ["a dog", "a red hat on a green tree"]  # at most 20 tokens
    method = SmartCLIP(SmartCLIPSettings(), task_of(backbone))
    torch.testing.assert_close(method.encode(texts).features, backbone.encode_texts(texts))
    # what is behind the longest text is left out where no mask is made of it
    plain = SmartCLIP(SmartCLIPSettings(masks="none", stretch=1), task_of(backbone))
    long = [*texts, "word " * 60]
    torch.testing.assert_close(plain.encode(long).features, backbone.encode_texts(long))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        method.clip.embed_images(images), backbone.encode_images(images).embedding
    )


@pytest.mark.parametrize(("width", "heads", "number"), [(512, 8, 3_152_897), (768, 12, 7_088_641)])
def test_mask_networks_have_as_many_parameters_as_the_authors(
    width: int, heads: int, number: int
) -> None:
    with torch.device("meta"):
        network = MaskNetwork(width, heads)
    assert sum(weight.numel() for weight in network.parameters()) == number


def test_about_half_of_the_dimensions_are_open_at_the_start() -> None:
    torch.manual_seed(0)
    network = MaskNetwork(128, 4)
    states = nn.functional.layer_norm(torch.randn(64, 40, 128), [128])
    opened = float((network(states) >= 0).float().mean())
    assert 0.3 < opened < 0.7


def test_padding_moves_masks_only_where_it_is_part_of_them() -> None:
    backbone = tiny_clip()
    settings = SmartCLIPSettings(padding_in_mask=False)
    torch.manual_seed(0)
    without = SmartCLIP(settings, task_of(backbone))
    torch.manual_seed(0)
    with_it = SmartCLIP(SmartCLIPSettings(), task_of(backbone))
    both = ["a dog", "a dog on a red mat beside a tree"]
    alone, together = without.encode(both[:1]), without.encode(both)
    assert alone.mask_logits is not None
    assert together.mask_logits is not None
    torch.testing.assert_close(alone.mask_logits, together.mask_logits[:1])
    padded = with_it.encode(both)
    torch.testing.assert_close(padded.features, together.features)
    assert padded.mask_logits is not None
    assert float((padded.mask_logits - together.mask_logits).detach().abs().max()) > 1e-3


def test_a_closed_mask_gives_a_finite_loss_and_opens() -> None:
    torch.manual_seed(0)
    method = SmartCLIP(SmartCLIPSettings(sparsity_weight=0.0), task_of(tiny_clip()))
    images, texts = torch.randn(3, 16), torch.randn(3, 16)
    logits = torch.randn(3, 16)
    logits[1] = -0.1  # sees nothing
    logits.requires_grad_()
    now = method.contrast(images, Encoded(texts, logits, 0))["loss"]
    before = float(now.detach())
    assert not method.masks(logits)[1].any()
    for _ in range(30):
        assert now.isfinite()
        (gradient,) = torch.autograd.grad(now, logits)
        assert gradient[1].any()
        logits = (logits - 0.02 * gradient).detach().requires_grad_()
        now = method.contrast(images, Encoded(texts, logits, 0))["loss"]
    assert method.masks(logits)[1].any()
    assert float(now.detach()) < before


def test_without_masks_it_is_plain_contrast_and_nothing_else_trains() -> None:
    torch.manual_seed(0)
    method = SmartCLIP(SmartCLIPSettings(masks="none"), task_of(tiny_clip(embed_dim=20)))
    images, texts = torch.randn(4, 20), torch.randn(4, 20)
    losses = method.contrast(images, Encoded(texts, None, 0))
    unit = [nn.functional.normalize(each, dim=1) for each in (images, texts)]
    logits, own = 100 * unit[0] @ unit[1].T, torch.arange(4)
    torch.testing.assert_close(losses["sidm"], nn.functional.cross_entropy(logits, own))
    torch.testing.assert_close(losses["dism"], nn.functional.cross_entropy(logits.T, own))
    torch.testing.assert_close(losses["loss"], 10 * (losses["sidm"] + losses["dism"]))
    assert not any("mask" in name for name, _ in method.named_parameters())
    assert method.weight_rules() == {}


def batch_of(captions: list[tuple[str, ...]]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = len(captions), 16, 16, 3
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.zeros(len(captions), 2, dtype=torch.int8)
    return Batch(torch.empty(0, 0, 0), labels, pixels=pixels, captions=tuple(captions))


def test_each_step_draws_a_caption_and_its_first_sentences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = SmartCLIP(SmartCLIPSettings(), task_of(tiny_clip()))
    seen: list[list[str]] = []
    encode = method.encode

    def note(texts: list[str]) -> Encoded:
        seen.append(texts)
        return encode(texts)

    monkeypatch.setattr(method, "encode", note)
    batch = batch_of([("One. Two. Three.", "Alone"), (), ("Red\nhat. Blue sky",)])
    torch.manual_seed(0)
    for _ in range(80):
        method.losses(batch)
    assert {texts[0] for texts in seen} == {"One", "One. Two", "One. Two. Three.", "Alone"}
    assert {texts[1] for texts in seen} == {"Red hat", "Red hat. Blue sky"}
    first = [texts[0] for texts in seen]
    assert 25 < first.count("Alone") < 55
    with pytest.raises(ValueError, match="no image of a batch has a caption"):
        method.losses(batch_of([(), ()]))


def test_captions_that_are_too_long_are_cut_as_clip_cuts_them_and_counted() -> None:
    tokenizer = open_clip.SimpleTokenizer()
    texts = ["word " * 6, "word " * 7, ""]
    tokens = tokenize_cut(texts, tokenizer, 8)
    assert torch.equal(tokens.ids, tokenizer(texts, context_length=8))
    assert tokens.cut == 1
    assert tokens.ends.tolist() == [7, 7, 1]
    method = SmartCLIP(SmartCLIPSettings(stretch=1), task_of(tiny_clip()))
    losses = method.losses(batch_of([("word " * 100,), ("short",)]))
    assert float(losses["cut"]) == 0.5


def test_scores_are_cosines_of_images_and_classes_without_any_mask() -> None:
    backbone = tiny_clip()
    method = SmartCLIP(SmartCLIPSettings(), task_of(backbone)).eval()
    assert isinstance(method, PairEncoder)
    method.class_texts.copy_(method.derived()["class_texts"])
    batch = batch_of([("a",), ("b",)])
    assert batch.pixels is not None
    scores = method.scores(batch)
    texts = nn.functional.normalize(backbone.encode_texts(["a photo of a a.", "a photo of a b."]))
    images = nn.functional.normalize(method.embed_images(batch.pixels))
    torch.testing.assert_close(scores, 100 * images @ texts.T)
    other = method.for_classes(Task.of_features(["b"], torch.ones(2, 16)))
    torch.testing.assert_close(other.scores(batch), scores[:, 1:])


def test_what_it_cannot_start_from_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="16 numbers in small, and its joint space has 20"):
        SmartCLIP(SmartCLIPSettings(), task_of(tiny_clip(embed_dim=20)))
    with pytest.raises(ValueError, match="give it a task that has the backbone"):
        SmartCLIP(SmartCLIPSettings(), Task.of_features(["a"], torch.ones(2, 16)))
    with pytest.raises(ValueError, match="of 12 positions cannot keep 20"):
        LongCLIP(tiny_clip(context=12))


# ---------------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------------


def work(rank: int, folder: str, arrays: dict[str, Tensor]) -> None:
    """One of two processes; each has every other pair, then shares of other sizes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    method = authors(arrays, "hard", torch.float64)
    # the authors' ranks have neighbours; then a rank alone, and one without any pair
    for name, sizes in {"even": (2, 2), "uneven": (3, 1), "none": (4, 0)}.items():
        first = sum(sizes[:rank])
        own = slice(first, first + sizes[rank])
        ids = arrays["input.tokens"][own]
        images = method.clip.embed_images(arrays["input.images"][own])
        texts = method.encode_tokens(Tokens(ids, ids.argmax(1) if len(ids) else ids[:, 0], 0))
        losses = method.contrast(images, texts)
        method.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        found = {key: value.detach() for key, value in losses.items()}
        for key in TRAINED:
            gradient = method.get_parameter(ours(key)).grad
            found[key] = torch.zeros(()) if gradient is None else gradient.clone()
        torch.save(found, f"{folder}/{name}-{rank}.pt")
    rows, first = gather_rows(torch.full((rank, 1), float(rank)))
    assert rows.tolist() == [[1.0]]
    assert first == 0
    torch.distributed.destroy_process_group()


def test_two_workers_have_the_loss_and_gradient_of_one(
    arrays: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path), arrays), nprocs=2)  # type: ignore[no-untyped-call]
    for name in ("even", "uneven", "none"):
        one, two = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2))
        for term in ("sidm", "dism", "sparsity"):
            assert_close(one[term] + two[term], arrays[f"out.hard.loss_{term}"], term)
            if name == "even":  # the authors take the mean of each rank's own rows
                ranks = torch.stack([2 * one[term], 2 * two[term]])
                assert_close(ranks, arrays[f"world2.out.loss_{term}_per_rank"], term)
        for key in TRAINED:
            expected = arrays[f"grad.hard.total_wrt_{key}"]
            expected = expected[20:] if key.endswith("_res") else expected
            assert_close(one[key] + two[key], expected, key)


class Pairs:
    """Images with two captions each, in memory."""

    grid, views = (0, 0), 1

    def __init__(self, images: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.zeros(images, 2, dtype=torch.int8)
        self.labels[:, 0] = 1
        self._pixels = torch.randint(
            256, (images, 16, 16, 3), generator=generator, dtype=torch.uint8
        )
        words = ["dog", "cat", "hat", "tree", "sea", "car", "sun", "cup"]
        self._captions = [
            (f"A {words[n % 8]}. A {words[(3 * n + 1) % 8]}. {n}", f"The {words[n // 2 % 8]}")
            for n in range(images)
        ]

    def local(self, rows: np.ndarray, views: Any = None) -> Tensor:
        raise AssertionError(rows, views)

    def pixels(self, rows: np.ndarray, draws: Any = None) -> Tensor:
        assert draws is None
        return self._pixels[torch.from_numpy(rows)]

    def captions(self, rows: np.ndarray) -> list[tuple[str, ...]]:
        return [self._captions[row] for row in rows]


def trained(rank: int = 0, workers: int = 1) -> dict[str, Tensor]:
    """Weights after an epoch of three steps, the last of one image alone."""
    loop, own = of_preset(SmartCLIPSettings, "robust")
    changes = {"epochs": 1, "batch_size": 8, "lr": 1e-4, "warmup_steps": 1}
    backbone = tiny_clip()
    loop = loop.model_copy(update=changes)
    pack = Pack(SmartCLIP, [own], loop, task_of(backbone), seeds=[0])
    reports: list[list[EpochReport]] = []
    rows = np.arange(17)
    fit(pack, Pairs(17), rows, seed=3, rank=rank, workers=workers, on_epoch=reports.append)
    kept = {name: value.clone() for name, value in pack.method().state_dict().items()}
    return kept | {f"term.{name}": torch.tensor(v) for name, v in reports[0][0].losses.items()}


def train_both(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.save(trained(rank, 2), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_train_what_one_does(tmp_path: Path) -> None:
    alone = trained()
    torch.multiprocessing.spawn(train_both, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt")
        assert both.keys() == alone.keys()
        for name, value in alone.items():
            # what is the same for all that a softmax weighs changes nothing: its gradient is
            # rounding alone, along which AdamW steps as far as along any
            if name == "mask_network.pool_score.bias":
                continue
            ours = both[name]
            if name.endswith("in_proj_bias"):
                value, ours = (torch.cat([v.chunk(3)[0], v.chunk(3)[2]]) for v in (value, ours))
            torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-4, msg=name)


def test_a_batch_in_parts_has_the_mean_loss_of_its_parts() -> None:
    torch.manual_seed(0)
    method = SmartCLIP(SmartCLIPSettings(), task_of(tiny_clip()))
    parts = [Encoded(torch.randn(count, 16), torch.randn(count, 16), 0) for count in (3, 1, 0)]
    images = [torch.randn(len(part.features), 16) for part in parts]
    found = [
        method.contrast(own, part, parts=3, total=4)
        for own, part in zip(images, parts, strict=True)
    ]
    alone = [method.contrast(own, part) for own, part in zip(images[:2], parts[:2], strict=True)]
    for term in ("loss", "sidm", "dism", "sparsity"):
        mean = (3 * alone[0][term] + alone[1][term]) / 4
        torch.testing.assert_close(found[0][term] + found[1][term] + found[2][term], mean)


def test_the_published_recipe_steps_as_the_authors_do(arrays: dict[str, Tensor]) -> None:
    loop, own = of_preset(SmartCLIPSettings, "author")
    assert isinstance(own, SmartCLIPSettings)
    assert (loop.weight_decay, loop.batch_size, loop.epochs) == (1e-2, 1024, 3)
    rules = SmartCLIP(own, task_of(tiny_clip())).weight_rules()
    (rule,) = set(rules.values())
    assert rule.weight_decay == 0
    assert all(name.startswith("mask_network.") for name in rules)
    assert len(rules) == 14
    steps = arrays["schedule.steps"].tolist()
    for name, warms_up, factor in (
        ("clip", True, 1.0),
        ("mask", rule.warms_up, rule.lr_factor),
    ):
        found = [factor * step_learning_rate(loop, n, 3651, warms_up=warms_up) for n in steps]
        expected = arrays[f"schedule.out.lr_{name}"]
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), expected, rtol=1e-9, atol=0
        )


def test_a_pack_trains_it_and_the_first_positions_stay() -> None:
    backbone = tiny_clip()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    loop, own = of_preset(SmartCLIPSettings, "robust")
    loop = loop.model_copy(update={"warmup_steps": 0, "lr": 1e-3})
    pack = Pack(SmartCLIP, [own], loop, task_of(backbone), seeds=[0])
    start = pack.method().state_dict()
    batch = batch_of([("A red hat. A dog",), ("Snow on a tree.",)])
    losses = []
    for step in range(30):
        found = pack.losses(batch, seed=step)
        pack.optimizer.zero_grad()
        pack.backward(found)
        pack.take_step()
        losses.append(float(found[0, 0].detach()))
    assert min(losses[-5:]) < 0.2 * losses[0]
    now = pack.method().state_dict()
    assert torch.equal(now["clip.kept_positions"], start["clip.kept_positions"])
    for name in ("clip.positions", "clip.model.visual.proj", "mask_network.pool_score.weight"):
        assert not torch.equal(now[name], start[name])
    after = backbone.model.state_dict()  # the frozen CLIP of the task is another
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_running_statistics_of_a_resnet_stay_in_training() -> None:
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 64,
                    "patch_size": None},
        text_cfg={"context_length": 32, "width": 16, "heads": 2, "layers": 1},
    )  # fmt: skip
    backbone = OpenCLIPBackbone(model, open_clip.SimpleTokenizer(), name="small resnet")
    clip = LongCLIP(backbone).train()
    assert clip.length == 68
    images = torch.randn(2, 3, 64, 64)
    one = clip.embed_images(images[:1])
    torch.testing.assert_close(clip.embed_images(images)[:1], one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one, backbone.encode_images(images[:1]).embedding)


def test_images_and_captions_of_files_train_it_without_any_class(tmp_path: Path) -> None:
    lines = []
    for number in range(6):
        Image.new("RGB", (20, 16), (40 * number, 0, 90)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,Picture {number}. It is quite blue.")
    (tmp_path / "pairs.csv").write_text("\n".join(["file,caption", *lines]))
    listing = read_captions(str(tmp_path / "pairs.csv"))
    source = ImageSource(listing, np.arange(6), torch.zeros(6, 0, dtype=torch.int8), resolution=16)
    loop, own = of_preset(SmartCLIPSettings, "robust")
    loop = loop.model_copy(update={"epochs": 2, "batch_size": 4, "augmentation": "crop"})
    pack = Pack(SmartCLIP, [own], loop, task_of(tiny_clip(), classes=0), seeds=[0])
    reports: list[list[EpochReport]] = []
    fit(pack, source, np.arange(6), seed=0, on_epoch=reports.append)
    source.close()
    assert [line[0].losses["cut"] for line in reports] == [0.0, 0.0]
    assert all(np.isfinite(line[0].loss) for line in reports)
    assert "inter_class_cosine" not in reports[0][0].line()
