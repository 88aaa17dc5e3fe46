"""Methods that learn contexts, in the stages: what is refused before any work, and who encodes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dclip.backbones import load_backbone
from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import FORMAT, About, Encoder
from dclip.fitting.batches import Batch
from dclip.methods.dualcoop import DualCoOp
from dclip.methods.method import Task, initial
from dclip.methods.registry import find_settings
from dclip.methods.settings import DualCoOpSettings
from dclip.store.reader import FeatureReader
from dclip.store.shards import Manifest
from pipeline.features.backbone import clip_of, describe_backbone, require_prompts
from pipeline.features.plan import plan_features
from pipeline.records.checkpoints import load_checkpoint
from pipeline.settings.config import Config
from pipeline.settings.training import Trained
from pipeline.terminal import cli
from pipeline.terminal.errors import UsageError
from pipeline.work.packs import Job, begin

from ..conftest import TOY

LEARNS = ["dualcoop", "positivecoop"]


@pytest.mark.parametrize("stage", ["train", "sweep", "ablate", "run"])
@pytest.mark.parametrize("method", LEARNS)
@pytest.mark.usefixtures("_toy_on_path")
def test_a_backbone_without_text_gradients_is_refused_by_name_before_any_work(
    method: str, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", method, "--backbone", TOY, "--output", str(tmp_path), "--device", "cpu"]
    assert cli.main(stage, words) == 2
    told = capsys.readouterr().err
    assert (
        f"--method {method} needs token embeddings, which the backbone toy does not offer" in told
    )
    assert "(it offers features only); take a CLIP of open_clip" in told
    assert not (tmp_path / "features").exists()


def config_of(output: Path, *words: str) -> Config:
    return cli.parse("train", "", ["--output", str(output), "--device", "cpu", *words])[0]


@pytest.mark.parametrize("method", LEARNS)
def test_a_context_that_leaves_no_room_is_refused_with_the_numbers(
    method: str, tmp_path: Path
) -> None:
    flag = f"--{method}.context-length"
    fits = config_of(tmp_path, "--method", method, flag, "27")
    require_prompts(fits, ["dog", "hot_dog"])  # "hot dog." is three tokens, of 32 in all
    long = config_of(tmp_path, "--method", method, flag, "28")
    require_prompts(long, ["dog"])
    reason = (
        f"--method {method}: with its context, the text of 'hot dog' has 33 tokens, of which tiny "
        "reads 32; lower the context_length by 1, or give a shorter name"
    )
    with pytest.raises(UsageError, match=reason):
        require_prompts(long, ["dog", "hot_dog"])
    # as the tower itself has it
    backbone = load_backbone("tiny")
    task = Task.of(backbone, [["dog"], ["hot_dog"]])
    initial(DualCoOp, DualCoOpSettings(context_length=27), task, seed=0)
    with pytest.raises(ValueError, match=r"of at most 27$"):
        initial(DualCoOp, DualCoOpSettings(context_length=28), task, seed=0)
    require_prompts(config_of(tmp_path, "--method", "dclip"), ["x" * 200])  # it learns none


def test_what_planning_knows_of_a_backbone_has_its_text_tower(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    info = describe_backbone(config)
    assert (info.offers, info.text_width) == (("token embeddings",), 32)
    assert describe_backbone(config) == info


class Kept(FeatureReader):
    """Features of three classes, in memory."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.manifest = Manifest.model_construct(spec={})

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._task.class_names

    def text_features(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._task.pairs, self._task.texts.features


def test_a_pack_of_contexts_is_begun_with_the_backbone_of_the_settings(tmp_path: Path) -> None:
    config = config_of(tmp_path, "--method", "dualcoop")
    task = Task.of(load_backbone("tiny"), [["red disc"], ["blue box"]])
    trained = (Trained(config.train, config.own),) * 2
    job = Job("dualcoop", trained, (0, 1), 0, (), tmp_path, clip_of(config))
    pack = begin(job, Kept(task))
    batch = Batch(torch.randn(2, 5, 128), torch.tensor([[1, 0], [0, 1]]), known=4)
    losses = pack.losses(batch)
    assert losses.shape == (2, 3)
    assert losses.isfinite().all()
    assert pack.task.backbone is not None
    # methods that need none are not made to wait for one
    plain = Job("dclip", (Trained(config.train, find_settings("dclip")()),), (0,), 0, (), tmp_path)
    assert begin(plain, Kept(task)).task.backbone is None


@pytest.mark.parametrize("contexts", ["per_class", "shared"])
def test_predict_asks_new_names_of_shared_contexts_and_says_so_where_they_are_not(
    contexts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("red disc", "blue box")
    settings = DualCoOpSettings(context_length=4, contexts=contexts)
    method = initial(DualCoOp, settings, Task.of(load_backbone("tiny"), [[n] for n in names]),
                     seed=0)  # fmt: skip
    method.kept.copy_(method.derived()["kept"])
    config = config_of(tmp_path, "--method", "dualcoop")
    plan = plan_features(config, "train")
    info = describe_backbone(config)
    about = About(
        format=FORMAT, method="dualcoop", name="dualcoop", settings=settings,
        loop=config.train.loop, feature_space=plan.feature_space, backbone_name="tiny",
        embed_dim=128, text_width=32, class_names=list(names), seed=0, epoch=1, features="f" * 64,
        history=[{"epoch": 1.0, "loss": 0.5}], commit=None,
        encoder=Encoder(backbone="tiny", pretrained=None, resolution=info.resolution,
                        include_global_token=info.include_global_token, kind="value",
                        templates=["{}", "{}"]),
    )  # fmt: skip
    path, photo = tmp_path / "a.safetensors", tmp_path / "photo.png"
    write_checkpoint(path, method, about)
    assert isinstance(load_checkpoint(path)[0], DualCoOp)
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(photo)
    words = [str(photo), "--checkpoint", str(path), "--output", str(tmp_path), "--device", "cpu"]
    assert cli.main("predict", [*words, "--classes", "blue box"]) == 0
    code = cli.main("predict", [*words, "--classes", "blue box, unicorn"])
    if contexts == "shared":
        assert code == 0
    else:
        assert code == 1
        told = capsys.readouterr().err
        assert "DualCoOp is bound to the 2 classes it was trained on, and 'unicorn' is none" in told
