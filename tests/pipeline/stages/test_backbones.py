"""The program that tells which frozen CLIPs there are, and what is known of one."""

import json
import re
from itertools import chain
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import save_file

from dclip.architectures import facts
from dclip.backbones.facts import licence_in
from dclip.backbones.loading import construct
from dclip.backbones.vv_attention import BLOCK_PATHS
from pipeline import backbones
from pipeline.inspection.backbones import BEGIN, BLOCKS, END, replace_section

from ...dclip.backbones.small_architectures import small_config
from ...processes import in_a_new_process

CARD = "---\nlibrary_name: open_clip\nlicense: {}\n---\n# A model\nlicense: none of it\n"


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a Hub that nobody may ask."""

    def never(*_: object, **__: object) -> str:
        raise AssertionError("asked the Hub")

    for name in ("hf_hub_download", "get_hf_file_metadata", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, never)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model with its configuration, its weights and its card."""
    config = small_config("ViT-B-32") | {"quick_gelu": True}
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(dict(construct(config, "small").state_dict()), folder / "open_clip_model.safetensors")
    told = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "longest"}
    content = {"model_cfg": config, "preprocess_cfg": told}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    (folder / "README.md").write_text(CARD.format("mit"))
    return folder


def put(hub: Path, repository: str, name: str, text: str = "") -> Path:
    """A file in the cache."""
    model = hub / f"models--{repository.replace('/', '--')}"
    file = model / "snapshots" / "abc" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text("abc")
    return file


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints that ends well and says nothing on stderr."""
    assert backbones.main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """Cells of the first two columns of a list."""
    table = said(capsys, "list", *words).split("\n\n")[0]
    return [line.split()[:2] for line in table.splitlines()[1:]]


# ---------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from pipeline import backbones\n"
        "try:\n"
        "    backbones.main(['--help'])\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'pydantic', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert "examples:" in in_a_new_process(code).stdout


def test_a_list_and_what_is_known_of_an_architecture_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from pipeline import backbones\n"
        "assert backbones.main(['list']) == 0\n"
        "assert backbones.main(['show', 'ViT-B/16']) == 0\n"
        "assert backbones.main(['show', 'nosuch']) == 2\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'open_clip', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    in_a_new_process(code)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("show ViT-B-61", 2, "unknown backbone 'ViT-B-61'; did you mean 'ViT-B-16'"),
        ("show my_clip:build", 2, "my_clip:build is code of yours"),
        ("show RN50 --pretrained webli", 2, "no weights 'webli' for RN50; webli is of ViT-B-16-"),
        ("show RN50 --pretrained no.pt", 2, "no weights 'no.pt' for RN50"),
        ("show RN50 --tag openai", 2, "--tag openai says which weights a file holds"),
        ("show RN50 --pretrained random --tag openai", 2, "--tag openai says which"),
        ("show hf-hub:org/model", 1, "is not on this machine, and nothing is fetched here"),
        ("show hf-hub:org", 1, "a model on the Hub is called hf-hub:organisation/name"),
        ("show local-dir:nowhere", 1, "there is no open_clip_config.json in nowhere"),
        ("list --family heads", 2, "'heads' is none of value path, class token"),
        ("list --needs torch", 2, "--needs: invalid choice"),
        ("list nosuch", 2, "none of 225 is of that kind"),
        ("list --cached", 2, "none of 225 is of that kind"),
        ("show", 2, "NAME"),
    ],
)
def test_what_cannot_be_answered_is_told_in_one_line(
    words: str, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backbones.main(words.split()) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("backbones: error: ")
    assert told in printed.err
    assert printed.err.count("\n") == 1


def test_variables_are_checked_as_in_the_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DCLIP_OUPUT", "x")
    assert backbones.main(["list"]) == 2
    assert "unknown environment variable DCLIP_OUPUT" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# Lists
# ---------------------------------------------------------------------------------------------


def test_a_list_has_a_line_for_every_pair(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [
        [own.name, tag]
        for own in facts().architectures.values()
        for tag in [each.tag for each in own.weights] or ["random"]
    ]
    assert rows(capsys) == pairs
    assert len([tag for _, tag in pairs if tag != "random"]) == 196


def test_a_list_is_of_what_is_asked_for(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(capsys, "rn50X64") == [["RN50x64", "openai"], ["RN50x64-quickgelu", "openai"]]
    assert {tag for _, tag in rows(capsys, "dfn5b")} == {"dfn5b"}
    by_family = [rows(capsys, "--family", each.replace(" ", "-")) for each in backbones.FAMILIES]
    assert sorted(chain.from_iterable(by_family)) == sorted(rows(capsys))
    needs = rows(capsys, "--needs", "none"), rows(capsys, "--needs", "hf")
    assert ["PE-Core-B-16", "meta"] in needs[0]
    assert ["ViT-B-16-SigLIP2", "webli"] in needs[1]
    assert sorted(needs[0] + needs[1]) == sorted(rows(capsys))

    put(hub, "timm/PE-Core-B-16", "open_clip_model.safetensors")
    assert rows(capsys, "--cached") == [["PE-Core-B-16", "meta"]]


def test_a_line_has_what_is_known(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub, "timm/resnet50_clip.openai", "open_clip_model.safetensors")
    line = said(capsys, "list", "RN50 openai").splitlines()[1]
    assert re.split("  +", line) == [
        *("RN50", "openai", "value path", "value, vv, qk", "1024", "32", "224", "0.481"),
        *("squash bilinear", "-", "yes", "mit"),
    ]  # fmt: skip
    line = said(capsys, "list", "SigLIP-384").splitlines()[1]
    assert "value, blocks" in line
    assert "dclip[hf]" in line
    assert line.endswith("not stated")


def test_a_list_for_the_documents_has_a_line_for_every_architecture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = said(capsys, "list", "ViT-L-14 laion", "--markdown").splitlines()
    (line,) = (each for each in lines if each.startswith("| ViT-L-14 |"))
    assert line == (
        "| ViT-L-14 | laion400m_e31, laion400m_e32, laion2b_s32b_b82k | class token |"
        " value, blocks | 768 | 14 | 224 | 0.481, squash bilinear; 0.5, squash bilinear | - |"
    )


def test_kinds_that_change_blocks_go_together() -> None:
    assert tuple(BLOCK_PATHS) == BLOCKS
    for own in facts().architectures.values():
        assert own.family in backbones.FAMILIES
        if own.family != "value path":
            assert len(set(BLOCKS) & set(own.kinds)) in (0, len(BLOCKS)), own.name


def test_a_document_without_the_markers_is_refused() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    assert replace_section(page, "new") == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    with pytest.raises(ValueError, match="has no lines"):
        replace_section(page.replace(END, ""), "new")


# ---------------------------------------------------------------------------------------------
# One model
# ---------------------------------------------------------------------------------------------


def test_an_architecture_is_shown_with_its_weights_and_the_ways_to_take_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = said(capsys, "show", "ViT-SO400M-14-SigLIP-384")
    for line in (
        "  family      attention pool",
        "  built for   384 px: 27 x 27 locations",
        "  sides       multiples of 14 px; 448 unless --resolution says other",
        "  texts       64 tokens by the tokenizer timm/ViT-B-16-SigLIP of Hugging Face, pool last",
        "  logit bias  yes: trained by a sigmoid",
        "  needs       pip install 'dclip[hf]'",
    ):
        assert line in told.splitlines()
    assert "webli    0.5 0.5 0.5  0.5 0.5 0.5  squash bicubic  squash bicubic  no " in told
    ways = [line.partition("ViT-SO400M-14-SigLIP-384 ")[2] for line in told.splitlines()[-3:]]
    assert ways == ["--pretrained webli", "--pretrained FILE --tag webli", "--pretrained random"]


def test_weights_are_shown_as_they_are_taken_and_as_they_were_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = said(capsys, "show", "ViT-L-14", "--pretrained", "laion2b_s32b_b82k").splitlines()
    (line,) = (each for each in told if each.startswith("laion2b_s32b_b82k"))
    assert "0.5 0.5 0.5  0.5 0.5 0.5  squash bilinear  shortest bicubic  no " in line
    assert "not stated" in line
    assert told[-1].endswith("--backbone ViT-L-14 --pretrained laion2b_s32b_b82k")


def test_a_stride_that_448_is_no_multiple_of_asks_for_a_resolution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = said(capsys, "show", "coca_base")
    assert "say --resolution, as 448 is none" in told
    assert "No weights were released" in told
    assert told.splitlines()[-1].endswith("--pretrained random --resolution 288")


def test_a_file_is_shown_as_its_tag_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    words = ["show", "ViT-L-14", "--pretrained", str(file)]
    told = said(capsys, *words, "--tag", "laion2b_s32b_b82k")
    assert "0.5 0.5 0.5  0.5 0.5 0.5" in told
    assert told.splitlines()[-1].endswith(f"--pretrained {file} --tag laion2b_s32b_b82k")

    assert backbones.main(words) == 0
    printed = capsys.readouterr()
    assert "backbones: warning: weights.pt does not say which weights" in printed.err
    assert printed.err.count("\n") == 1
    assert "0.481 0.458 0.408" in printed.out
    assert backbones.main([*words, "--tag", "webli"]) == 1
    assert "no weights 'webli' for ViT-L-14; webli is of" in capsys.readouterr().err


def test_a_folder_is_shown_without_reading_its_weights(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    told = said(capsys, "show", f"local-dir:{folder}")
    assert "  width       32" in told.splitlines()
    assert "built for   96 px: 3 x 3 locations" in told
    (line,) = (each for each in told.splitlines() if each.startswith("its own"))
    assert re.split("  +", line) == [
        *("its own", "0.5 0.5 0.5", "0.25 0.25 0.25", "longest bicubic", "longest bicubic"),
        *("yes", "mit", "yes"),
    ]  # fmt: skip
    assert told.splitlines()[-1].endswith(f"--backbone local-dir:{folder}")
    random = said(capsys, "show", f"local-dir:{folder}", "--pretrained", "random")
    assert random.splitlines()[-1].endswith("--pretrained random")
    assert backbones.main(["show", f"local-dir:{folder}", "--pretrained", "openai"]) == 1
    assert "has weights of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"vision_cfg": {"depth": 2}}, {"embed_dim": "wide"}, {"text_cfg": {"heads": 0}}]
)
def test_a_configuration_that_builds_nothing_is_one_line(
    folder: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"model_cfg": content["model_cfg"] | change}))
    assert backbones.main(["show", f"local-dir:{folder}"]) == 1
    printed = capsys.readouterr().err
    assert "its configuration builds no model" in printed
    assert printed.count("\n") == 1


def test_a_model_of_the_hub_is_shown_once_its_configuration_is_here(
    folder: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(hub, "org/small", "open_clip_config.json", (folder / "open_clip_config.json").read_text())
    told = said(capsys, "show", "hf-hub:org/small")
    assert "longest bicubic" in told
    (line,) = (each for each in told.splitlines() if each.startswith("its own"))
    assert line.split()[-3:] == ["not", "stated", "no"]

    put(hub, "org/small", "README.md", CARD.format("other\nlicense_name: house"))
    put(hub, "org/small", "open_clip_model.safetensors")
    (line,) = (
        each
        for each in said(capsys, "show", "hf-hub:org/small").splitlines()
        if each.startswith("its own")
    )
    assert line.endswith("other (house)  yes")


def test_the_small_clip_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "show", "tiny")
    assert "kinds       value vv qk" in told
    assert told.splitlines()[-1] == "python -m pipeline.run --dataset shapes --backbone tiny"


def test_a_licence_is_what_the_head_of_a_card_says(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert licence_in(None) is None
    assert licence_in(card) is None
    for text, licence in (
        (CARD.format("apache-2.0"), "apache-2.0"),
        ("# A model\nlicense: mit\n", None),
        ("---\ntags: [clip]\n---\nlicense: mit\n", None),
        ("---\nlicense: mit\n", None),  # the head has no end
    ):
        card.write_text(text)
        assert licence_in(card) == licence
