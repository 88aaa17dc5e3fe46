"""Recall of retrieval in both directions."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dclip.metrics import retrieval_recall


def test_recall_is_the_authors(golden: Path) -> None:
    with np.load(golden / "smartclip.npz") as stored:
        images, texts, i2t, t2i = (
            torch.from_numpy(stored[f"retrieval.{name}"])
            for name in (
                "input.image_features",
                "input.text_features",
                "out.i2t_r1_r5_r10",
                "out.t2i_r1_r5_r10",
            )
        )
    owners = torch.arange(60) // 5
    for most in (1, 100, 1 << 20):  # in parts of any size
        found = retrieval_recall(images, texts, owners, most_scores=most)
        assert list(found.image_to_text.values()) == pytest.approx(i2t.tolist(), abs=1e-12)
        assert list(found.text_to_image.values()) == pytest.approx(t2i.tolist(), abs=1e-12)


def by_orders(scores: Tensor, owns: Sequence[set[int]], rank: int) -> float:
    """Mean recall over every order of the candidates, sorted stably: a slow oracle."""
    hits, count = 0, 0
    for order in itertools.permutations(range(scores.shape[1])):
        for row, own in zip(scores, owns, strict=True):
            first = sorted(order, key=lambda column: -float(row[column]))[:rank]
            hits += bool(own & set(first))
            count += 1
    return hits / count


def test_what_ties_counts_as_its_mean_over_all_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.eye(3)[torch.randint(3, (3,), generator=generator)]
    texts = torch.eye(3)[torch.randint(3, (6,), generator=generator)]
    owners = torch.tensor([0, 0, 1, 1, 2, 2])
    ranks = (1, 2, 3)
    found = retrieval_recall(images, texts, owners, ranks=ranks)
    scores = images @ texts.T
    for rank in ranks:
        own = [{0, 1}, {2, 3}, {4, 5}]
        assert found.image_to_text[rank] == pytest.approx(by_orders(scores, own, rank))
        own = [{int(owner)} for owner in owners]
        assert found.text_to_image[rank] == pytest.approx(by_orders(scores.T, own, rank))


def test_lengths_do_not_matter_and_a_perfect_match_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(20, 16, generator=generator), dim=1)
    order = torch.randperm(20, generator=generator)
    found = retrieval_recall(images.double(), 1e3 * images[order].half(), order)
    assert found.image_to_text == found.text_to_image == {1: 1.0, 5: 1.0, 10: 1.0}
    everything = retrieval_recall(images, -images, torch.arange(20), ranks=[1, 20, 50])
    assert everything.text_to_image[1] == 0
    assert everything.image_to_text[20] == everything.image_to_text[50] == 1


def test_the_softmax_in_half_precision_ties_what_the_cosine_tells_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 32, generator=generator)
    images = common + 0.01 * torch.randn(400, 32, generator=generator)
    texts = images + 0.002 * torch.randn(400, 32, generator=generator)
    owners = torch.arange(400)
    exact = retrieval_recall(images, texts, owners)
    tied = retrieval_recall(images, texts, owners, score="fp16_softmax")
    assert tied.image_to_text[1] < 0.2 * exact.image_to_text[1]


@pytest.mark.parametrize(
    ("owners", "words"),
    [([0, 0, 2], "belongs to one of 2"), ([0, 0, 0], "image 1 has no text"), ([], "of 0 texts")],
)
def test_pairs_that_are_none_are_refused(owners: list[int], words: str) -> None:
    images, texts = torch.eye(2), torch.ones(len(owners), 2)
    with pytest.raises(ValueError, match=words):
        retrieval_recall(images, texts, torch.tensor(owners, dtype=torch.int64))


def test_features_that_are_no_numbers_are_refused() -> None:
    texts = torch.eye(2)
    texts[1, 0] = torch.nan
    with pytest.raises(ValueError, match="features of text 1 are not finite"):
        retrieval_recall(torch.eye(2), texts, torch.arange(2))
