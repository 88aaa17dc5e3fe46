"""Nearest images and copies: in parts as at once, ties by row, copies told from scenes alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dclip.neighbours import (
    Nearest,
    agreement,
    best_locations,
    groups_of,
    mean_directions,
    nearest_pairs,
)


@given(seed=st.integers(0, 1000), size=st.integers(1, 40), part=st.integers(1, 13))
def test_what_is_kept_of_parts_is_what_a_sort_of_all_begins_with(
    seed: int, size: int, part: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (3, size), generator=generator) / 5  # with many ties
    places = torch.randint(0, 9, (3, size), generator=generator)
    nearest = Nearest(7)
    for start in range(0, size, part):
        end = start + part
        nearest.add(scores[:, start:end], first=start, places=places[:, start:end])
    best = nearest.best()
    for query in range(3):
        order = sorted(range(size), key=lambda row: (-float(scores[query, row]), row))[:7]
        assert best.rows[query].tolist() == order
        assert best.places[query].tolist() == places[query, order].tolist()
        assert best.scores[query].tolist() == scores[query, order].tolist()


def test_the_best_location_is_the_largest_cosine_whatever_the_lengths() -> None:
    local, queries = torch.randn(5, 6, 4) * 3, torch.randn(2, 4) * 9
    scores, places = best_locations(local.half(), queries)
    for query in range(2):
        for image in range(5):
            every = [
                F.cosine_similarity(one, queries[query], dim=0)
                for one in local[image].half().float()
            ]
            assert int(places[query, image]) == int(torch.stack(every).argmax())
            torch.testing.assert_close(scores[query, image], max(every))


def test_every_pair_is_there_once_and_none_of_an_image_with_itself() -> None:
    vectors = torch.randn(40, 8)
    pairs = nearest_pairs(vectors, each=3, block=7)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)
    unit = F.normalize(vectors, dim=-1)
    cosines = unit @ unit.mT
    cosines.fill_diagonal_(-2)
    wanted = {
        tuple(sorted((row, other)))
        for row in range(40)
        for other in cosines[row].topk(3).indices.tolist()
    }
    assert {tuple(pair) for pair in pairs.tolist()} == wanted
    two = nearest_pairs(vectors[:5], vectors[5:], each=100)
    assert len(two) == 5 * 35  # fewer than asked for: all
    assert nearest_pairs(vectors[:1]).shape == (0, 2)


def test_a_copy_agrees_in_every_place_and_a_scene_of_the_same_things_does_not() -> None:
    things = F.normalize(torch.randn(9, 16), dim=-1)
    scene = things[None]
    shuffled = things[torch.tensor([3, 0, 1, 5, 2, 8, 4, 6, 7])][None]  # each thing elsewhere
    torch.testing.assert_close(mean_directions(scene), mean_directions(shuffled))
    copy = scene + 0.02 * torch.randn(1, 9, 16)
    assert float(agreement(scene, copy)) > 0.98
    assert float(agreement(scene, shuffled)) < 0.5
    assert float(agreement(scene, 5 * scene)) == pytest.approx(1)


def test_groups_join_by_way_of_others() -> None:
    pairs = np.array([[4, 5], [1, 2], [2, 5], [0, 3]])
    assert groups_of(7, pairs).tolist() == [0, 1, 1, 0, 1, 1, 6]
    assert groups_of(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_nothing_looked_at_and_no_count_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be 1 or more"):
        Nearest(0)
    with pytest.raises(ValueError, match="no image was looked at"):
        Nearest(1).best()
