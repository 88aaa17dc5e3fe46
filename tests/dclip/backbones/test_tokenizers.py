"""Texts of models that read by a tokenizer of Hugging Face's: real files of each form, small."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dclip.backbones import load_backbone
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.loading import construct
from dclip.backbones.tokenizers import hugging_face_tokenizer

from .small_architectures import WIDTH, small_backbone, small_config

transformers = pytest.importorskip("transformers", reason="pip install 'dclip[hf]'")

from tokenizers import Tokenizer  # noqa: E402 - comes with transformers

from . import small_tokenizers  # noqa: E402

TEXT = "A Photo_of  a hot dog!"

TIGHT = {"rtol": 0, "atol": 1e-9}


class Form(NamedTuple):
    """How the texts of a released model become tokens.

    Attributes:
        architecture: One of those that read so.
        build: Writes a small tokenizer of the form.
        pieces: `TEXT`, in tokens, worked out by hand.
        padding: What fills the rest.
        length: Tokens read.
        pooled: The position that becomes the embedding.
    """

    architecture: str
    build: Callable[[Path], Path]
    pieces: str
    padding: str
    length: int
    pooled: int


CLEAN = "▁a ▁photo ▁of ▁a ▁hot ▁dog </s>"  # lower case, _ a space, no punctuation
FORMS = [
    Form("ViT-B-16-SigLIP", small_tokenizers.siglip, CLEAN, "</s>", 64, -1),
    Form("ViT-SO400M-14-SigLIP", small_tokenizers.siglip, CLEAN, "</s>", 16, -1),
    Form(
        "ViT-B-16-SigLIP2",
        small_tokenizers.siglip2,
        "a ▁ photo ▁ of ▁a ▁ hot ▁ dog <eos>",
        "<pad>",
        64,
        -1,
    ),
    Form(
        "ViT-L-14-CLIPA",
        small_tokenizers.bert,
        # spaces are joined, _ and ! are unknown, [SEP] is taken out; between words _ splits
        "[CLS] a photo [UNK] of a hot dog [UNK] [PAD]",
        "[PAD]",
        32,
        -1,
    ),
    Form(
        "ViT-H-14-worldwide",
        small_tokenizers.xlm_roberta,
        "<s> ▁ <unk> ▁ <unk> h o t o <unk> o f ▁a ▁hot ▁dog <unk> </s>",  # nothing is cleaned off
        "<pad>",
        77,
        16,
    ),
    Form("ViT-L-14-worldwide", small_tokenizers.mt5, CLEAN, "<pad>", 77, 6),
]


def _folder(config: dict[str, Any], folder: Path) -> Path:
    """A small model in the folder, its weights of a seed, its configuration beside them."""
    torch.manual_seed(2)
    model = construct(config, "small")
    save_file(
        {name: each.contiguous() for name, each in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(params=FORMS, ids=lambda form: form.architecture)
def form(request: pytest.FixtureRequest) -> Form:
    own: Form = request.param
    return own


@pytest.fixture
def backbone(form: Form, tmp_path: Path) -> OpenCLIPBackbone:
    """A small model with a tokenizer of its form."""
    own = small_backbone(form.architecture)
    text = open_clip.get_model_config(form.architecture)["text_cfg"]
    tokenizer = hugging_face_tokenizer(str(form.build(tmp_path)), text, "small")
    return OpenCLIPBackbone(own.model, tokenizer, name=form.architecture)


def test_tokens_and_padding_are_those_of_the_model(
    form: Form, backbone: OpenCLIPBackbone, tmp_path: Path
) -> None:
    ids = backbone.tokenize([TEXT, "dog"])

    said = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pieces = [said.token_to_id(piece) for piece in form.pieces.split()]
    padding = said.token_to_id(form.padding)
    assert backbone.context_length == form.length
    assert ids.shape == (2, form.length)
    assert ids[0].tolist() == pieces + [padding] * (form.length - len(pieces))
    assert (ids[1, 4:] == padding).all()


def test_embeddings_are_those_of_open_clip_and_of_the_pooled_token(
    form: Form, backbone: OpenCLIPBackbone, tmp_path: Path
) -> None:
    text = open_clip.get_model_config(form.architecture)["text_cfg"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([TEXT, "dog"])
    states: list[torch.Tensor] = []
    hook = backbone.text.ln_final.register_forward_hook(lambda *seen: states.append(seen[2]))
    expected = backbone.model.encode_text(ids)
    hook.remove()

    features = backbone.encode_texts([TEXT, "dog"])

    torch.testing.assert_close(features, expected, **TIGHT)
    pooled, projection = states[0][0, form.pooled], backbone.text.text_projection
    is_layer = isinstance(projection, torch.nn.Linear)
    torch.testing.assert_close(
        features[0], projection(pooled) if is_layer else pooled @ projection, **TIGHT
    )


def test_a_text_that_is_too_long_is_refused_with_the_number_of_its_tokens(
    form: Form, backbone: OpenCLIPBackbone
) -> None:
    special = sum(
        piece in ("<s>", "</s>", "<eos>", "[CLS]", "[PAD]") for piece in form.pieces.split()
    )
    spaces = form.architecture == "ViT-B-16-SigLIP2"  # a space is a token of its own there
    words = (form.length - special + spaces) // (1 + spaces)

    backbone.encode_texts([" ".join(["dog"] * words)])
    with pytest.raises(
        ValueError, match=rf"reads {form.length} tokens and a text has {form.length + 1 + spaces};"
    ):
        backbone.encode_texts([" ".join(["dog"] * (words + 1))])


@pytest.mark.parametrize(
    ("architecture", "build"),
    [
        ("ViT-L-14-CLIPA", small_tokenizers.bert),
        ("ViT-H-14-worldwide", small_tokenizers.xlm_roberta),
    ],
)
def test_a_folder_with_a_tokenizer_is_a_whole_model(
    architecture: str, build: Callable[[Path], Path], tmp_path: Path
) -> None:
    _folder(small_config(architecture), build(tmp_path))

    backbone = load_backbone(f"local-dir:{tmp_path}", resolution=56)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([TEXT, "two dogs"])

    torch.testing.assert_close(
        backbone.encode_texts([TEXT, "two dogs"]), theirs.encode_text(ids).detach()
    )
    features = backbone.encode_images(torch.randn(1, 3, 56, 56))
    assert features.local.shape == (1, 16, WIDTH)


def test_the_file_of_a_sentencepiece_model_is_read_as_it_is(tmp_path: Path) -> None:
    """As mT5's on the Hub, which has no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    words = small_tokenizers.WORDS
    lines = tmp_path / "words.txt"
    lines.write_text("\n".join(" ".join(words[at:] + words[:at]) for at in range(len(words))) * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(tmp_path / "spiece"),
        model_type="unigram",
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    told = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))

    ids = hugging_face_tokenizer(str(tmp_path), {"context_length": 12}, "small")(["a hot dog"])

    said = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model")).encode("a hot dog")
    assert ids[0].tolist() == [*said, 1, *[0] * (11 - len(said))]


SMALL = {"vocab_size": 400, "max_position_embeddings": 90}
BERT_LIKE = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
FOREIGN = {
    "roberta-ViT-B-32": (
        small_tokenizers.roberta,
        lambda heads: transformers.RobertaConfig(
            **SMALL, **BERT_LIKE, num_attention_heads=heads, layer_norm_eps=1e-5
        ),
    ),
    "xlm-roberta-base-ViT-B-32": (
        small_tokenizers.xlm_roberta,
        lambda heads: transformers.XLMRobertaConfig(
            **SMALL, **BERT_LIKE, num_attention_heads=heads, layer_norm_eps=1e-5
        ),
    ),
    "mt5-base-ViT-B-32": (
        small_tokenizers.mt5,
        lambda heads: transformers.MT5Config(
            vocab_size=400, d_model=32, d_kv=32 // heads, d_ff=48, num_layers=2, num_heads=heads
        ),
    ),
    "nllb-clip-base": (
        small_tokenizers.nllb,
        lambda heads: transformers.M2M100Config(
            **SMALL,
            d_model=32,
            encoder_layers=2,
            decoder_layers=1,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            encoder_attention_heads=heads,
        ),
    ),
    "coca_roberta-ViT-B-32": (
        small_tokenizers.roberta,
        lambda heads: transformers.RobertaConfig(
            **SMALL, **BERT_LIKE, num_attention_heads=heads, layer_norm_eps=1e-5
        ),
    ),
}


def _foreign(architecture: str, folder: Path, *, heads: int = 2) -> Path:
    """A small model whose text tower is of transformers, everything of it in one folder."""
    build, configure = FOREIGN[architecture]
    build(folder)
    configure(heads).save_pretrained(folder)
    config = small_config(architecture)
    text = open_clip.get_model_config(architecture)["text_cfg"]
    config["text_cfg"] = text | {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
    return _folder(config, folder)


@pytest.mark.parametrize("architecture", FOREIGN)
def test_texts_of_a_foreign_tower_are_those_of_open_clip_and_padding_has_no_part(
    architecture: str, tmp_path: Path
) -> None:
    name = f"local-dir:{_foreign(architecture, tmp_path)}"
    backbone: Any = load_backbone(name, resolution=96)
    ids = open_clip.get_tokenizer(name)([TEXT, "two dogs"])

    features = backbone.encode_texts([TEXT, "two dogs"])

    with torch.no_grad():
        expected = backbone.model.encode_text(ids, normalize=False)
        tower, alone = backbone.text, torch.tensor([backbone.tokenizer.encode("two dogs")])
        states = tower.transformer(input_ids=alone).last_hidden_state[0]
        is_first = type(tower.pooler).__name__ == "ClsPooler"
        pooled = states[0] if is_first else states.mean(dim=0)
        by_hand = tower.proj(pooled[None])[0]
    assert ids.shape == (2, 77)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(features[1], by_hand, rtol=1e-4, atol=1e-5)  # another length
    assert is_first == architecture.startswith("nllb")
    assert backbone.offers == ("visual prompts", "attention") or "coca" in architecture
    with pytest.raises(ValueError, match="reads 77 tokens and a text has"):
        backbone.encode_texts(["dog " * 80])


def test_heads_and_padding_of_a_foreign_tower_change_the_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for heads in (2, 4):
        folder = _foreign("nllb-clip-base", tmp_path / str(heads), heads=heads)
        backbone: Any = load_backbone(f"local-dir:{folder}", resolution=96)
        prints.add(backbone.fingerprint())
        backbone.text.config.pad_token_id = 0
        backbone._fingerprint = None
        prints.add(backbone.fingerprint())

    assert len(prints) == 4


def test_a_foreign_tower_with_random_weights_needs_no_tokenizer(tmp_path: Path) -> None:
    folder = _foreign("roberta-ViT-B-32", tmp_path)
    (folder / "tokenizer.json").unlink()

    backbone: Any = load_backbone(f"local-dir:{folder}", pretrained="random", resolution=96)
    features = backbone.encode_texts(["a dog", "a cat"])

    assert features.shape == (2, WIDTH)
    assert not torch.equal(features[0], features[1])
    assert backbone.tokenize(["a"])[0, -1] == 1  # RoBERTa's <pad>, which its tower leaves out


@pytest.mark.parametrize("mode", [None, "clips"])
def test_a_text_of_as_many_tokens_as_are_counted_is_kept_whole(
    mode: str | None, tmp_path: Path
) -> None:
    small_tokenizers.xlm_roberta(tmp_path)
    text = {"context_length": 8, "tokenizer_mode": mode}
    tokenizer = hugging_face_tokenizer(str(tmp_path), text, "small")
    dog = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("▁dog")

    counts = {
        words: (
            len(tokenizer.encode("dog " * words)),
            int((tokenizer(["dog " * words]) == dog).sum()),
        )
        for words in range(1, 9)
    }

    assert {words for words, (tokens, _) in counts.items() if tokens <= 8} == {
        words for words, (_, kept) in counts.items() if kept == words
    }


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    folder = _folder(small_config("ViT-L-14-CLIPA"), tmp_path)

    with pytest.raises(ValueError, match=r"^local-dir:.* has no tokenizer that can be read"):
        load_backbone(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["T5Tokenizer", "GemmaTokenizer", "BertTokenizer"])
def test_a_tokenizer_without_its_vocabulary_is_refused(name: str, tmp_path: Path) -> None:
    """transformers makes one that takes all texts for one."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))

    with pytest.raises(ValueError, match="its vocabulary is missing"):
        hugging_face_tokenizer(str(tmp_path), {}, "small")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    small_tokenizers.bert(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')

    with pytest.raises(ValueError, match="has no tokenizer that can be read"):
        hugging_face_tokenizer(str(tmp_path), {}, "small")


def test_a_cleaning_nobody_knows_is_refused(tmp_path: Path) -> None:
    small_tokenizers.bert(tmp_path)

    with pytest.raises(ValueError, match="small: texts are to be cleaned by 'soap', which is none"):
        hugging_face_tokenizer(str(tmp_path), {"tokenizer_kwargs": {"clean": "soap"}}, "small")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    own = small_backbone("ViT-L-14-CLIPA")
    own.text.vocab_size = 60
    tokenizer = hugging_face_tokenizer(str(small_tokenizers.bert(tmp_path)), {}, "small")
    backbone = OpenCLIPBackbone(own.model, tokenizer, name="ViT-L-14-CLIPA")

    with pytest.raises(ValueError, match="gives token 67, and its text tower knows 60"):
        backbone.encode_texts(["hot dog"])


def test_without_a_network_it_is_said_at_once_what_to_fetch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", nobody)
    config = small_config("roberta-ViT-B-32")
    config["text_cfg"] |= {"hf_model_name": "org/words"}

    with pytest.raises(OSError, match=r"no route to host\)\. .* fetch it: hf download org/words$"):
        hugging_face_tokenizer("org/words", {}, "small")
    with pytest.raises(OSError, match=r"org/words, is not .* hf download org/words config\.json$"):
        construct(config, "small")
