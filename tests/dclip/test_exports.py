"""Exported files: what they say is what the model says, for any number of images."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn

from dclip.backbones import Backbone, ImageFeatures, load_backbone
from dclip.calibration import scaling_of
from dclip.checkpoints.calibration import Calibration, Measured
from dclip.data.images import read_image
from dclip.data.pixels import image_to_tensor
from dclip.data.preparation import Preparation
from dclip.exports import description, onnx_file
from dclip.exports.description import ExportError
from dclip.exports.example import example_of
from dclip.exports.export import Export, Written, difference_from_eager, export_of, write
from dclip.exports.heads import FoldedHead, FrozenHead, MethodHead, head_of, require_features
from dclip.exports.towers import Encoder
from dclip.fitting.batches import Batch
from dclip.logits import Sigmoid, similarity_maps
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Method, Task, initial
from dclip.methods.registry import find_method
from dclip.methods.settings import DCLIPSettings
from dclip.prediction import predict_image
from dclip.prompts import ClassTexts, best_phrasing

CLASSES = ("star", "ring", "fish")
DIM, GRID = 12, (2, 3)
KNOWN = Calibration(
    kind="platt", scale=1.7, offset=-0.4, class_offsets=[0.3, 0.0, -0.6], rule="f1",
    thresholds=[0.1, 0.2, 0.3], shared_threshold=0.2, images=9, positives=[3, 3, 3],
    measured=Measured(),
)  # fmt: skip

Run = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


def trained(form: str, task: Task, **changes: Any) -> DCLIPMethod:
    """DCLIP with weights that are nobody's start."""
    settings = DCLIPSettings(form=form, output_dim=8, initial="random", **changes)
    method = initial(DCLIPMethod, settings, task, seed=0)
    assert isinstance(method, DCLIPMethod)
    with torch.no_grad():
        for value in method.state_dict().values():
            if value.is_floating_point() and value.ndim == 2:
                value.add_(0.1 * torch.randn_like(value))
        method.model.text_projector.batch_norm.weight.uniform_(0.5, 1.5)
        method.model.text_projector.batch_norm.bias.normal_(std=0.1)
        if form == "anchored":
            method.model.absent_share.fill_(0.8)
            method.model.absent_mean.fill_(3.0)
            method.model.bias.copy_(torch.linspace(-3.0, 4.0, len(method.model.bias)))
    return method.eval()


@cache
def model(name: str, form: str) -> tuple[Backbone, DCLIPMethod]:
    backbone = load_backbone(name)
    torch.manual_seed(0)
    return backbone, trained(form, Task.of(backbone, [(each,) for each in CLASSES]))


def task_of(classes: int = 3, dim: int = DIM) -> Task:
    pairs = torch.randn(2 * classes, dim)
    texts = nn.functional.normalize(torch.randn(classes, dim), dim=1)
    return Task.of_features([f"class {number}" for number in range(classes)], pairs, texts)


def by_onnxruntime(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path)
    assert [each.name for each in session.get_outputs()] == ["scores", "maps"]
    return lambda inputs: tuple(session.run(None, dict(inputs)))


def by_torch(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda inputs: tuple(
        each.detach().numpy() for each in module(*map(torch.from_numpy, inputs.values()))
    )


READERS = {"onnx": by_onnxruntime, "pt2": by_torch}


@pytest.mark.parametrize("form", ["onnx", "pt2"])
@pytest.mark.parametrize(("name", "own"), [("tiny", "pairs"), ("tiny-vit", "anchored")])
def test_pixels_in_a_file_say_what_predict_says_for_any_number_of_images(
    name: str, own: str, form: str, tmp_path: Path
) -> None:
    backbone, method = model(name, own)
    export = export_of(backbone, method, calibration=KNOWN, commit="c" * 40)
    written = write(export, tmp_path / f"model.{form}", form)
    assert written.difference < 1e-4
    assert written.size == written.path.stat().st_size
    run = READERS[form](written.path)
    side = backbone.resolution
    for number in (1, 2, 5):
        images = torch.randn(number, 3, side, side)
        scores, maps = run({"images": images.numpy()})
        for row in range(number):
            features = backbone.encode_images(images[row : row + 1])
            said = predict_image(
                features,
                backbone.grid(side, side),
                (side, side),
                has_global_token=backbone.include_global_token,
                texts=method.task.positives,
                pairs=method.task.pairs,
                model=method,
                class_names=CLASSES,
                calibration=KNOWN,
            )
            np.testing.assert_allclose(scores[row], said.presence, atol=1e-4)
            np.testing.assert_allclose(maps[row], said.maps, atol=1e-4)
    content = written.path.read_bytes()
    assert b"site-packages" not in content  # nor where the code lies that made it
    assert str(Path(__file__).parents[2]).encode() not in content
    if form == "onnx":
        kept = onnx.load(written.path, load_external_data=False)
        told = {each.key: json.loads(each.value) for each in kept.metadata_props}
        assert {node.op_type for node in kept.graph.node}.isdisjoint({"BatchNormalization"})
    else:
        extra = {"description.json": ""}
        torch.export.load(written.path, extra_files=extra)
        told = json.loads(extra["description.json"])
    assert told == export.description.to_json()
    assert (told["class_names"], told["thresholds"]) == ([*CLASSES], [0.1, 0.2, 0.3])
    assert (told["mean"], told["std"]) == ([*backbone.mean], [*backbone.std])
    assert (told["resolution"], told["resize"]) == (side, "squash")
    assert told["inputs"] == {"images": ["batch", 3, side, side]}
    assert told["outputs"]["maps"] == ["batch", 3, *backbone.grid(side, side)]
    assert (told["scores"], told["maps"], told["commit"]) == ("probability",) * 2 + ("c" * 40,)


@pytest.mark.parametrize(("own", "known"), [("pairs", None), ("anchored", KNOWN)])
def test_the_head_alone_is_the_same_in_all_formats(
    own: str, known: Calibration | None, tmp_path: Path
) -> None:
    backbone, method = model("tiny", own)
    export = export_of(backbone, method, what="head", calibration=known)
    assert isinstance(export.head, FoldedHead)
    for form in description.FORMATS:
        written = write(export, tmp_path / f"model.{form}", form)
        assert written.difference < 1e-4
        assert written.size < 200_000  # no tower
    locations = 1 + int(np.prod(backbone.grid(backbone.resolution, backbone.resolution)))
    for number in (1, 2, 5):
        local = torch.randn(number, locations, backbone.embed_dim)
        scores, odds = said_by(method, local)
        if known is not None:
            evidence = method.evidence(Batch(local, torch.empty(0, 0, dtype=torch.int8)))
            scores = scaling_of(known).apply(evidence.detach()).sigmoid().float()
        for form, reader in READERS.items():
            found = reader(tmp_path / f"model.{form}")({"local": local.numpy()})
            np.testing.assert_allclose(found[0], scores, atol=1e-4)
            np.testing.assert_allclose(found[1].reshape(odds.shape), odds, atol=1e-4)


def said_by(method: Method[Any], local: Tensor, first: int = 1) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        scores = method.scores(Batch(local, torch.empty(0, 0, dtype=torch.int8)))
        odds = method.location_logits(local[:, first:])
    assert odds is not None
    return scores, odds.sigmoid()


@given(
    form=st.sampled_from(["pairs", "anchored"]),
    classes=st.integers(1, 5),
    images=st.integers(1, 3),
    length=st.sampled_from([1e-3, 1.0, 1e3]),
    has_mean_token=st.booleans(),
    scales=st.sampled_from([(20.0, 5.0), (3.0, 7.0)]),
)
def test_the_folded_head_is_the_method(
    form: str,
    classes: int,
    images: int,
    length: float,
    has_mean_token: bool,
    scales: tuple[float, float],
) -> None:
    method = trained(form, task_of(classes), local_scale=scales[0], pooled_scale=scales[1])
    head = head_of(method, GRID, has_mean_token=has_mean_token)
    assert isinstance(head, FoldedHead)
    local = length * torch.randn(images, 6 + has_mean_token, DIM)
    local[0, -1] = 0  # a location that says nothing
    scores, maps = head(local)
    wanted, odds = said_by(method, local, int(has_mean_token))
    torch.testing.assert_close(scores, wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(maps.flatten(2), odds, atol=2e-5, rtol=0)


def test_no_class_text_and_no_text_projector_is_left_in_a_folded_head() -> None:
    head = head_of(trained("anchored", task_of(3)), GRID, has_mean_token=False)
    sizes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert sizes == {
        "image_projector": (8, DIM), "presence": (3, 8), "absence": (1, 8), "share": (),
        "offset": (3,),
    }  # fmt: skip


def test_batch_norm_of_a_resnet_is_in_its_convolutions() -> None:
    backbone = load_backbone("tiny")
    before = backbone.fingerprint()
    encoder = Encoder(backbone, "value")  # type: ignore[arg-type]
    images = torch.randn(2, 3, backbone.resolution, backbone.resolution)
    with torch.no_grad():
        found = encoder(images)
    for ours, theirs in zip(found, backbone.encode_images(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    kinds = {type(module) for module in encoder.modules()}
    assert nn.Conv2d in kinds
    assert nn.BatchNorm2d not in kinds
    assert backbone.fingerprint() == before  # the backbone stays as it is
    kept = {type(module) for module in backbone.model.visual.modules()}  # type: ignore[attr-defined]
    assert nn.BatchNorm2d in kept


def test_a_head_without_the_mean_token_and_other_kinds_of_features() -> None:
    backbone = load_backbone("tiny", include_global_token=False)
    encoder = Encoder(backbone, "vv")  # type: ignore[arg-type]
    images = torch.randn(1, 3, backbone.resolution, backbone.resolution)
    with torch.no_grad():
        found = encoder(images)
    wanted = backbone.encode_images(images, kind="vv")
    torch.testing.assert_close(found.local, wanted.local, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "scores", "maps"),
    [
        ("dualcoop", "probability", "probability"),
        ("logistic_probe", "probability", "probability"),
        ("linear_probe", "probability", "probability"),
        ("calibrated", "probability", "probability"),
    ],
)
def test_other_methods_on_features_go_as_they_are(
    name: str, scores: str, maps: str, tmp_path: Path
) -> None:
    kind = find_method(name)
    task = replace(task_of(3, small().embed_dim), text_width=8)
    method = initial(kind, kind.Settings(), task, seed=0, follow_task=False).eval()
    with torch.no_grad():
        for value in [*method.parameters(), *method.buffers()]:
            if value.is_floating_point():
                value.normal_()
    export = export_of(small(), method, what="head")
    told = export.description
    assert isinstance(export.head, MethodHead)
    assert (told.scores, told.maps) == (scores, maps)
    assert write(export, tmp_path / "model.pt2", "pt2").difference < 1e-4
    if name == "dualcoop":
        assert write(export, tmp_path / "model.onnx", "onnx").difference < 1e-4
    with pytest.raises(ExportError, match="has no folded head"):
        write(export, tmp_path / "model.safetensors", "safetensors")
    assert not (tmp_path / "model.safetensors").exists()


class Bright(Method[Any]):
    """A method of somebody's own that says nothing of locations."""

    Settings = find_method("zero_shot").Settings
    gives_probabilities = False

    def scores(self, batch: Batch) -> Tensor:
        assert batch.embedding is not None
        return 1000 * batch.embedding[:, : len(self.task.class_names)]


def test_maps_of_a_method_without_locations_are_cosines_with_the_best_phrasing(
    tmp_path: Path,
) -> None:
    task = task_of(4)
    texts = ClassTexts(task.texts.features, torch.tensor([0, 1, 0, 2]))
    task = replace(task, class_names=CLASSES, texts=texts)
    export = export_of(small(), Bright(Bright.Settings(), task).eval(), what="head")
    assert [*export.description.inputs] == ["local", "embedding"]
    assert (export.description.scores, export.description.maps) == ("score", "cosine")
    assert write(export, tmp_path / "model.pt2", "pt2").difference < 1e-4
    local = torch.from_numpy(export.inputs["local"])
    _, maps = by_torch(tmp_path / "model.pt2")(export.inputs)
    wanted = best_phrasing(similarity_maps(local, texts.features), texts.classes)
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=1e-6)


class Small:
    """A backbone of somebody's own: no module, and quick."""

    name, embed_dim, stride, resolution = "small", DIM, 8, 32
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    include_global_token, kinds = False, ("value",)

    def __init__(self) -> None:
        self.weight = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))

    def encode_images(
        self,
        images: Tensor,
        *,
        kind: str = "value",  # noqa: ARG002 - the signature is the contract
    ) -> ImageFeatures:
        local = nn.functional.avg_pool2d(images, 8).flatten(2).mT @ self.weight
        return ImageFeatures(local.mean(1), local)

    def feature_path(self, kind: str) -> str:
        return kind

    def encode_texts(self, texts: Any) -> Tensor:
        return torch.ones(len(texts), DIM)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 8, width // 8

    def fingerprint(self) -> str:
        return "f" * 64

    def to(self, device: torch.device | str) -> "Small":  # noqa: ARG002 - likewise
        return self


@cache
def small() -> Small:
    return Small()


def test_a_backbone_of_ones_own_goes_as_it_is(tmp_path: Path) -> None:
    export = export_of(small(), trained("pairs", task_of(3)))
    assert write(export, tmp_path / "model.pt2", "pt2").difference < 1e-4


@pytest.mark.parametrize("sigmoid", [None, Sigmoid(30.0, -5.0)])
def test_frozen_clip_gives_shares_or_its_own_probabilities(
    sigmoid: Sigmoid | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Small()
    if sigmoid is not None:
        backbone.logit_scale = torch.tensor(sigmoid.scale)  # type: ignore[attr-defined]
        backbone.logit_bias = torch.tensor(sigmoid.bias)  # type: ignore[attr-defined]
    export = export_of(backbone, task=task_of(3), what="head")
    assert isinstance(export.head, FrozenHead)
    assert export.description.scores == ("share" if sigmoid is None else "probability")
    said = export.eager(export.inputs)
    is_one = np.allclose(said["scores"].sum(1), 1)
    assert is_one == (sigmoid is None)
    for form in ("pt2", "safetensors"):
        assert write(export, tmp_path / f"model.{form}", form).difference < 1e-4


@pytest.mark.parametrize("name", ["smartclip", "maple", "dapt", "tagclip"])
def test_a_method_that_looks_at_images_is_refused(name: str) -> None:
    kind = find_method(name)
    looking = kind.__new__(kind)
    nn.Module.__init__(looking)
    looking.settings = kind.Settings()
    with pytest.raises(ExportError, match=f"^{name} looks at images itself"):
        require_features(looking)


def test_a_file_that_says_something_else_is_not_kept(tmp_path: Path) -> None:
    export = export_of(small(), trained("pairs", task_of(3)), what="head")
    assert isinstance(export.head, FoldedHead)
    export.head.offset += 0.01
    for form in ("pt2", "safetensors"):
        with pytest.raises(ExportError, match=r"else than the model: the largest .* is 0\.00"):
            write(export, tmp_path / f"model.{form}", form)
    export.head.offset *= torch.nan
    with pytest.raises(ExportError, match=r"else than the model: the largest .* is nan"):
        write(export, tmp_path / "model.safetensors", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_seen_in_maps_too() -> None:
    export = export_of(small(), trained("pairs", task_of(3)), what="head")

    def off(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        said = dict(export.eager(inputs))
        said["maps"] = said["maps"] + np.float32(0.25)
        return said

    assert difference_from_eager(export, export.eager) == 0
    assert difference_from_eager(export, off) == pytest.approx(0.25)


def test_what_cannot_be_written_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = export_of(small(), trained("pairs", task_of(3)))
    with pytest.raises(ExportError, match="unknown format 'tflite'; there are onnx, pt2, safeten"):
        write(export, tmp_path / "model.tflite", "tflite")
    with pytest.raises(ExportError, match="an image tower is more than that; take what=head"):
        write(export, tmp_path / "model.safetensors", "safetensors")

    kind = find_method("zero_shot_pooled")  # which looks at the values of a tensor to go on
    untraced = export_of(small(), initial(kind, kind.Settings(), task_of(3), seed=0).eval())
    with pytest.raises(ExportError, match=r"^zero_shot_pooled on small cannot be traced") as told:
        write(untraced, tmp_path / "model.pt2", "pt2")
    assert "\n" not in str(told.value)
    with pytest.raises(ExportError, match="for classes of one text each"):
        export_of(small())
    monkeypatch.setattr(description, "find_spec", lambda _: None)
    wanted = r"onnx and onnxscript and onnxruntime are not installed: pip install 'dclip\[export\]'"
    with pytest.raises(ExportError, match=wanted):
        write(export, tmp_path / "model.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_weights_of_onnx_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    export: Export = export_of(small(), trained("pairs", task_of(300)), what="head")
    written: Written = write(export, tmp_path / "model.onnx", "onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert written.size > written.path.stat().st_size
    found = by_onnxruntime(written.path)(export.inputs)
    np.testing.assert_allclose(found[0], export.eager(export.inputs)["scores"], atol=1e-4)


@pytest.mark.parametrize("resize", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_example_makes_of_a_photograph_what_the_model_was_trained_on(
    resize: str, interpolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Preparation(resize, interpolation)  # type: ignore[arg-type]
    export = export_of(small(), trained("pairs", task_of(3)))
    told = replace(export.description, resize=resize, interpolation=interpolation)
    lines = example_of(told, "onnx").partition("side = ")[2].partition("scores, maps")[0]
    for number, size in enumerate([(50, 33), (31, 64), (32, 32), (200, 7)]):
        path = tmp_path / f"{number}.png"
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(path)
        monkeypatch.setattr("sys.argv", ["example.py", str(path)])
        known: dict[str, Any] = {
            "about": told.to_json(), "np": np, "sys": sys, "Image": Image, "ImageOps": ImageOps
        }  # fmt: skip
        exec(compile(f"side = {lines}", "example.py", "exec"), known)
        wanted = image_to_tensor(read_image(path), 32, told.mean, told.std, own)
        np.testing.assert_allclose(known["images"][0], wanted, atol=1e-6)
