"""Errors of one class by the presence of another: by hand, by a loop, intervals as published."""

import numpy as np
import pytest
import torch

from dclip.metrics.stealing import Shares, difference_interval, matched_thresholds, stealing


def test_a_class_that_is_scored_where_another_is_there() -> None:
    # a is in the first four images; b never, and is scored in three of these and in one other
    labels = torch.tensor([[1, 0]] * 4 + [[0, 0]] * 4)
    found = torch.tensor([[1, 1]] * 3 + [[1, 0]] + [[0, 1]] + [[0, 0]] * 3).bool()
    lights = stealing(found, labels).lights
    assert [int(part[0, 1]) for part in lights] == [3, 4, 1, 4]
    assert lights.difference()[0, 1] == pytest.approx(0.5)
    assert np.isnan(lights.difference()[1, 0])  # b is nowhere


def test_counts_are_those_of_a_loop_and_unknown_labels_do_not_count() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, 2, (60, 4), generator=generator)
    found = torch.rand(60, 4, generator=generator) > 0.5
    for shares, value in zip(stealing(found, labels), (0, 1), strict=True):
        for a in range(4):
            for b in range(4):
                counts = [0, 0, 0, 0]
                for row in range(60):
                    there = int(labels[row, a])
                    if int(labels[row, b]) != value or there == -1:
                        continue
                    first = 0 if there == 1 else 2
                    counts[first + 1] += 1
                    counts[first] += bool(found[row, b]) != bool(value)
                assert [int(part[a, b]) for part in shares] == counts


def test_intervals_are_those_that_newcombe_printed() -> None:
    # table II of the paper, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20
    cases = {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (10, 10, 0, 20): (0.6791, 1.0000),
    }
    for counts, expected in cases.items():
        low, high = difference_interval(Shares(*(np.array([[count]]) for count in counts)))
        assert (float(low[0, 0]), float(high[0, 0])) == pytest.approx(expected, abs=5e-5)


def test_as_many_images_reach_a_threshold_as_are_labelled() -> None:
    scores = torch.rand(50, 3)
    labels = torch.randint(-1, 2, (50, 3))
    labels[:, 2] = torch.where(labels[:, 2] == 1, 0, labels[:, 2])
    reached = (scores >= matched_thresholds(scores, labels)) & (labels != -1)
    assert reached.sum(0).tolist() == (labels == 1).sum(0).tolist()
    assert not reached[:, 2].any()  # no image has it
