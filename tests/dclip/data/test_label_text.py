"""Class names written as text: what is read, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dclip.data.label_text import MAX_LABEL_CHARS, parts_of, read_labels


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("  ", []),
        ("[]", []),
        (" [ ] ", []),
        ("dog", ["dog"]),
        ("dog; cat ;", ["dog", "cat"]),
        ("traffic light;dog", ["traffic light", "dog"]),
        ('["dog", "cat"]', ["dog", "cat"]),
        ("['dog', \"driver's seat\", 'a\\'b',]", ["dog", "driver's seat", "a'b"]),
        ("['dog;cat', 'disc, red']", ["dog;cat", "disc, red"]),  # a list says where a name ends
        ('["\\u00e9t\\u00e9", "a\\/b"]', ["été", "a/b"]),
        ("['\\xe9t\\xe9']", ["été"]),
        ("(dog)", ["(dog)"]),
        ("dog (toy)", ["dog (toy)"]),
        ("rock 'n' roll", ["rock 'n' roll"]),
    ],
)
def test_names_and_lists_are_read(text: str, names: list[str]) -> None:
    assert read_labels(text, ";")[0] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog;;cat", "label '' is no class name"),
        (";dog", "label '' is no class name"),
        ("['dog' 'cat']", "look like a list"),  # as NumPy prints; Python would join them
        ("['dog', ['cat']]", "look like a list"),
        ("[dog, cat]", "look like a list"),
        ("[0, 1, 1]", "look like a list"),
        ("['']", "label '' is no class name"),
        ("['dog', None]", "look like a list"),
        ('["dog", null]', "look like a list"),
        ("[f'dog']", "look like a list"),
        ("[__import__('os').getcwd()]", "look like a list"),
        ("['\\U99999999']", "look like a list"),
        ("[" * 9_000 + "]" * 9_000, "look like a list"),
        ('["\\ud800"]', "half of a character"),
        ("{'dog', 'cat'}", "look like a set or tuple"),
        ("{dog,cat}", "look like a set or tuple"),  # as PostgreSQL writes
        ("('dog', 'cat')", "look like a set or tuple"),
        ("['dog'; 'cat']", "look like a list"),
        ("['dog';'cat", "a piece of a list"),
        ("'dog'", "a piece of a list"),
        ("dog;nan", "missing value"),
        ("None", "missing value"),
        ("['nan']", "missing value"),
        ("NA", "missing value"),
        (r"\N", "missing value"),
        ("--", "neither letter nor digit"),
        ("set()", "set or tuple"),
        ("frozenset({'dog'})", "set or tuple"),
        ("list(['dog'])", "set or tuple"),
        ("1 0 1", "list of numbers.*column for each class"),
        ("1;0;1", "vector of numbers.*column for each class"),
        ("[1, 0, 1]", "none of class names; .*column for each class"),
        ("#dog #cat", "list of tags"),
        ("x" * (MAX_LABEL_CHARS + 1), "is the most"),
    ],
)
def test_what_only_looks_like_labels_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_labels(text, ";")
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_names_that_are_known_are_taken_whole() -> None:
    known = {"nan", "[x]", "disc; red", "a;b", "a", "b", "{y}"}
    for name in ("nan", "[x]", "disc; red", "{y}"):
        assert read_labels(name, ";", known)[0] == [name]
    assert read_labels("a;b", ";", known)[0] == ["a", "b"]  # both are classes


def test_other_separators_part_names() -> None:
    assert read_labels("dog, cat", ",")[0] == ["dog", "cat"]
    assert read_labels("dog  cat", " ")[0] == ["dog", "cat"]
    assert read_labels("dog\tcat\t", "\t")[0] == ["dog", "cat"]


@given(st.lists(st.text("ab ,;'\"\\[]é\n", min_size=1).filter(lambda name: name.strip("' \"[]\n"))))
def test_lists_of_python_and_json_read_as_they_were_written(names: list[str]) -> None:
    names = [f"x{name}x" for name in names]
    for text in (repr(names), json.dumps(names)):
        assert read_labels(text, ";") == (names, True)


def test_a_mark_that_only_ends_a_name_parts_nothing() -> None:
    assert parts_of("dog,") is None
    assert parts_of("dog | cat") == ("|", ["dog", "cat"])
    assert parts_of("tv/monitor") is None
    assert parts_of("犬、猫") == ("、", ["犬", "猫"])
