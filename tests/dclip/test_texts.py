"""Class names as CLIP reads them, against open_clip's own tokenizer and configurations."""

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import SimpleTokenizer

from dclip import prompts
from dclip.backbones import load_backbone
from dclip.data import registry
from dclip.templates import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE
from dclip.texts import (
    context_length,
    count_tokens,
    fold_name,
    name_problem,
    same_text,
    too_long,
)

from ..processes import in_a_new_process

TOKENIZER = SimpleTokenizer()
TEMPLATES = (NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Not a photo of a dog",
        "antidisestablishmentarianism they've 2024 <end_of_text>",
        "café Æther naïve 中文 犬 😀😀 &amp; &nGt; İﬁ",
        "a\tb\u00a0c  d—e_f-g's",
    ],
)
def test_tokens_are_counted_as_open_clip_counts_them(text: str) -> None:
    assert count_tokens(text) == len(TOKENIZER.encode(text)) + 2


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_tokens_of_any_text_are_counted_as_open_clip_counts_them(text: str) -> None:
    assert count_tokens(text) == len(TOKENIZER.encode(text)) + 2


@given(st.lists(st.text(max_size=40), max_size=4), st.integers(8, 40))
def test_a_name_is_too_long_when_one_of_its_prompts_is(names: list[str], length: int) -> None:
    found = dict(too_long(names, TEMPLATES, length))
    for name in names:
        texts = [template.replace("{}", name) for template in TEMPLATES]
        tokens = max(len(TOKENIZER.encode(text)) + 2 for text in texts)
        assert found.get(name) == (tokens if tokens > length else None)


def test_the_context_of_a_backbone_is_the_one_it_is_built_with() -> None:
    tiny = load_backbone("tiny")
    assert context_length("tiny") == tiny.model.context_length  # type: ignore[attr-defined]
    for name in ("RN101", "ViT-B-16", "ViT-B/16", "PE-Core-T-16-384"):
        config = open_clip.get_model_config(name.replace("/", "-"))
        assert context_length(name) == config["text_cfg"].get("context_length", 77)
    assert context_length("package.module:factory") is None
    assert context_length("../../etc/passwd") is None


def test_counting_tokens_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from dclip.texts import context_length, count_tokens\n"
        "assert count_tokens('A photo of a dog') == 7\n"
        "assert context_length('RN101') == 77\n"
        "assert not {'torch', 'open_clip', 'numpy'} & set(sys.modules)\n"
    )
    in_a_new_process(code)


def test_names_that_differ_in_case_and_joints_only_are_one_text() -> None:
    names = ["Dog", "traffic light", "cat", "dog", "Traffic_Light", "DOG ", "traffic-light"]
    assert same_text(names) == [
        ("Dog", "dog", "DOG "),
        ("traffic light", "Traffic_Light", "traffic-light"),
    ]
    assert prompts.same_text is same_text
    assert prompts.fold_name is fold_name


@pytest.mark.parametrize("name", registry.DATASETS)
def test_registered_names_are_fit_and_distinct_texts(name: str) -> None:
    found = registry.DATASETS[name]
    assert same_text(found.class_names) == []
    assert [n for n in found.class_names if name_problem(n)] == []
    every = [phrase for phrases in found.phrasings for phrase in phrases]
    assert too_long(every, TEMPLATES, 77) == []


@given(st.text(max_size=20))
def test_folding_twice_is_folding_once(name: str) -> None:
    assert fold_name(fold_name(name)) == fold_name(name)


@pytest.mark.parametrize("name", ["", "  ", "dog\n", "a\x00b", "a\u2028b", "\ufeffdog", "\ud800"])
def test_a_blank_name_or_one_with_control_characters_is_unfit(name: str) -> None:
    assert name_problem(name)


@pytest.mark.parametrize("name", ["dog", "hot dog", "犬", "d'être", "a$b$", "👩‍🚀"])
def test_a_name_of_visible_characters_is_fit(name: str) -> None:
    assert name_problem(name) == ""
