"""Segments for multi-label scores: boxes by hand, fusion at its ends."""

import pytest
import torch

from dclip.methods.segments import Box, fuse_scores, segment_boxes


def test_a_box_holds_all_pixels_of_its_class_and_no_empty_border() -> None:
    mask = torch.zeros(6, 8, dtype=torch.uint8)
    mask[1:3, 2:5] = 7
    mask[4, 6] = 7  # far from the others, of the same class
    assert segment_boxes(mask, area=0.1) == [Box(0, 0, 8, 6), Box(2, 1, 7, 5)]


def test_small_classes_are_left_out_but_never_the_largest() -> None:
    mask = torch.arange(16, dtype=torch.uint8).reshape(4, 4).clamp(max=13)  # class 13 has 3 pixels
    assert len(segment_boxes(mask, area=0.0)) == 14
    assert segment_boxes(mask, area=0.5) == [Box(1, 3, 4, 4)]


def test_fusion_ends_in_what_it_is_made_of() -> None:
    whole, segments = torch.rand(3, 4), torch.rand(3, 4)
    assert torch.equal(fuse_scores(whole, segments, 0.0), whole)
    assert torch.equal(fuse_scores(whole, segments, 1.0), segments)
    torch.testing.assert_close(fuse_scores(whole, segments, 0.25), 0.75 * whole + 0.25 * segments)
    with pytest.raises(ValueError, match="weight must lie in"):
        fuse_scores(whole, segments, 1.5)
