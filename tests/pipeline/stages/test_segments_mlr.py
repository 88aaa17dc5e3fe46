"""Segments to multi-label scores: against the parts, and what is made again."""

from pathlib import Path

import pytest
import torch

from dclip.backbones import ImageFeatures, load_backbone
from dclip.data.pixels import image_to_tensor
from dclip.logits import zero_shot_scores
from dclip.metrics import mean_average_precision
from dclip.prompts import encode_class_names
from dclip.world import shapes
from dclip.world.dataset import ShapesListing
from pipeline.features.opened import open_backbone
from pipeline.stages import segments_mlr
from pipeline.work.segments import SegmentScorer
from pipeline.work.systems import encode_texts

from ..conftest import TOY, settings
from .test_segment import checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray.*"),
    pytest.mark.usefixtures("_toy_on_path"),
]


def test_everything_is_computed_in_the_precision_asked_for(tmp_path: Path) -> None:
    """Images and crops, not only the features that segment."""
    names, one = {}, checkpoint(settings(tmp_path), tmp_path / "one.safetensors")
    for precision in ("auto", "float32", "bfloat16"):
        own = {"limit": 2, "precision": precision, "checkpoint": one}
        config = settings(tmp_path, segments_mlr=own)
        plan = segments_mlr.plan_segments(config)
        names[precision] = plan.name
        backbone = open_backbone(config)
        texts = encode_texts(backbone, [(name,) for name in plan.listing.class_names], ("a {}",))
        scorer = SegmentScorer(config, plan, texts, "cpu", 1)
        used: list[bool] = []
        encode = backbone.encode_images

        def spied(images: torch.Tensor, *, kind: str = "value") -> ImageFeatures:
            used.append(torch.is_autocast_enabled("cpu"))  # noqa: B023 - called in this turn
            return encode(images, kind=kind)  # noqa: B023

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scorer._backbone, "encode_images", spied)
            scorer.make(0)
        assert len(used) >= 4  # two kinds for the segments, then the crops, then the images
        assert set(used) == {precision == "bfloat16"}
    assert len(set(names.values())) == 3


def test_reports_of_other_weights_share_the_scores_and_overwrite_nothing(tmp_path: Path) -> None:
    one, names = checkpoint(settings(tmp_path), tmp_path / "one.safetensors"), []
    for weights in ([0.25, 0.5, 0.75], [0, 0.25, 0.75, 0.5], [0.3]):
        config = settings(tmp_path, segments_mlr={"checkpoint": one, "weights": weights})
        plan = segments_mlr.plan_segments(config)
        names.append((plan.name, segments_mlr.report_name(config, plan)))
    assert names[0] == names[1] == (names[2][0], names[2][0])
    assert names[2][1] != names[2][0]


def test_weight_0_is_clip_and_only_lost_groups_are_made_again(
    ray_session: None, tmp_path: Path
) -> None:
    own = {"limit": 10, "group_size": 4, "workers": 1,
           "checkpoint": checkpoint(settings(tmp_path), tmp_path / "one.safetensors")}  # fmt: skip
    config = settings(tmp_path, segments_mlr=own)
    report = segments_mlr.run(config)
    assert list(report.map) == ["0", "0.25", "0.5", "0.75", "1"]
    backbone = load_backbone(TOY)
    samples = [ShapesListing("test").read(row) for row in range(10)]
    pixels = torch.stack(
        [image_to_tensor(s.image, backbone.resolution, backbone.mean, backbone.std)
         for s in samples]
    )  # fmt: skip
    texts = encode_class_names(backbone, shapes.CLASS_NAMES)
    scores = zero_shot_scores(backbone.encode_images(pixels).embedding, texts).softmax(dim=1)
    labels = torch.stack([torch.as_tensor(sample.labels) for sample in samples])
    wanted = float(mean_average_precision(scores, labels))
    assert report.map["0"] == pytest.approx(wanted, abs=1e-6)
    plan = segments_mlr.plan_segments(config)
    paths = [plan.path(group) for group in range(plan.num_groups)]
    before = [path.stat().st_mtime_ns for path in paths]
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    assert segments_mlr.run(config).map == report.map
    after = [path.stat().st_mtime_ns for path in paths]
    assert [new > old for new, old in zip(after, before, strict=True)] == [False, True, False]
