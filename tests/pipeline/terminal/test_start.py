"""A command's process loads less: the same models, and all else as soon as it is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dclip.backbones import load_backbone

from ...dclip.backbones.test_tokenizers import _foreign
from ...processes import in_a_new_process

_START = (
    "import json, sys\n"
    "from pipeline.terminal.start import quicken\n"
    "quicken()\n"
    "from dclip.backbones import load_backbone\n"
    "tiny = load_backbone('tiny')\n"
    "assert tiny.fingerprint() == {fingerprint!r}\n"
    "heavy = ('torch._dynamo', 'transformers', 'timm.models', 'torchvision.io')\n"
    "assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)\n"
)


@pytest.fixture(scope="module")
def start() -> str:
    """Code of a process that is quickened and has opened the small CLIP, the same as here."""
    backbone: Any = load_backbone("tiny")
    return _START.format(fingerprint=backbone.fingerprint())


def test_a_text_tower_of_transformers_is_what_it_is_elsewhere(start: str, tmp_path: Path) -> None:
    name = f"local-dir:{_foreign('nllb-clip-base', tmp_path)}"
    texts = ["a dog", "two red horses"]
    done = in_a_new_process(
        f"{start}"
        f"own = load_backbone({name!r}, resolution=96)\n"
        f"print(json.dumps(own.encode_texts({texts!r}).tolist()))\n"
        "import open_clip\n"
        "from open_clip import hf_model\n"
        "assert hf_model.transformers is not None\n"
        "assert open_clip.model.HFTextEncoder is hf_model.HFTextEncoder\n"
    )
    backbone: Any = load_backbone(name, resolution=96)
    torch.testing.assert_close(
        torch.tensor(json.loads(done.stdout.splitlines()[-1])), backbone.encode_texts(texts)
    )


@pytest.mark.parametrize(
    "code",
    [
        "import torchvision\ntry: torchvision.nothing\n"
        "except AttributeError as error: assert 'torchvision' in str(error)\n"
        "else: raise SystemExit(1)\n"
        "from torchvision import models, ops; assert models.detection and ops.nms",
        "import torchvision.models.resnet as own, torchvision\n"
        "assert own.resnet18 is torchvision.models.resnet18 and torchvision.__version__",
        "from torchvision.ops.boxes import nms; from torchvision import ops; assert ops.nms is nms",
        "import timm.models; assert timm.create_model('resnet18', pretrained=False)\n"
        "assert load_backbone('ViT-B-16-SigLIP', pretrained='random', resolution=32)",
    ],
)  # fmt: skip
def test_what_was_put_off_is_there_when_it_is_asked_for(start: str, code: str) -> None:
    in_a_new_process(f"{start}{code}\n")


def test_a_process_that_is_not_a_commands_is_left_alone() -> None:
    done = in_a_new_process(
        "import gc, sys\n"
        "before = gc.get_threshold(), list(sys.meta_path)\n"
        "from pipeline.terminal import cli\n"
        "assert cli.main('train', ['--print-config']) == 0\n"
        "assert before == (gc.get_threshold(), list(sys.meta_path))\n"
    )
    assert "dataset: shapes" in done.stdout
