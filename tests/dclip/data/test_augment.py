"""Augmentation: each operation by hand or against numpy, the draws by their frequencies."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dclip.data.augment import (
    LEVELS,
    OPERATIONS,
    apply_operation,
    augment,
    cutout,
    draw_operations,
    magnitude,
)

GREY = [128, 128, 128]


def image_of(pixels: object) -> Image.Image:
    return Image.fromarray(np.asarray(pixels, np.uint8))


def pattern(width: int = 64, height: int = 48) -> Image.Image:
    """Every channel runs over all values at its own pace; integers only, so alike everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    return image_of(np.stack([(3 * x + 5 * y) % 256, x * y % 256, (7 * x + y * y // 3) % 256], 2))


def noise(width: int = 40, height: int = 40) -> Image.Image:
    return image_of(np.random.default_rng(0).integers(0, 256, (height, width, 3)))


def outcomes(image: Image.Image, name: str, level: int) -> list[np.ndarray]:
    """All that an operation can make of an image: one result, or two where the sign is drawn."""
    found: dict[bytes, np.ndarray] = {}
    for seed in range(20):
        result = apply_operation(image, name, level, np.random.default_rng(seed))
        found[result.tobytes()] = np.asarray(result).astype(int)
    return list(found.values())


def assert_both_signs(found: list[np.ndarray], expected: list[np.ndarray], atol: float = 0) -> None:
    assert len(found) == len(expected) == 2
    matches = [[bool(np.abs(one - other).max() <= atol) for other in expected] for one in found]
    assert matches in ([[True, False], [False, True]], [[False, True], [True, False]])


# ---------------------------------------------------------------------------------------------
# Magnitudes and operations
# ---------------------------------------------------------------------------------------------


def test_magnitudes_are_those_of_the_package() -> None:
    # randaugment 1.0.2, SubPolicy.ranges: linspace(8, 4, 10) and linspace(0, 20, 10), rounded
    levels = range(1, LEVELS + 1)
    assert [magnitude("Posterize", level) for level in levels] == [8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert [magnitude("Cutout", level) for level in levels] == [2, 4, 7, 9, 11, 13, 16, 18, 20]
    for name, first, last in [
        ("ShearX", 0, 0.3), ("ShearY", 0, 0.3), ("Rotate", 0, 30), ("Solarize", 256, 0),
        ("TranslateX", 0, 150 / 331), ("TranslateY", 0, 150 / 331), ("Sharpness", 0, 0.9),
        ("Contrast", 0, 0.9), ("Color", 0, 0.9), ("Brightness", 0, 0.9),
    ]:  # fmt: skip
        expected = np.linspace(first, last, 10)[1:].tolist()
        assert [magnitude(name, level) for level in levels] == expected


def test_the_operations_are_those_of_the_package() -> None:
    assert sorted(OPERATIONS) == [
        "AutoContrast", "Brightness", "Color", "Contrast", "Cutout", "Equalize", "Invert",
        "Posterize", "Rotate", "Sharpness", "ShearX", "ShearY", "Solarize", "TranslateX",
        "TranslateY",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "level"), [("Blur", 1), ("Invert", 0), ("Invert", 10)])
def test_unknown_operations_and_levels_are_refused(name: str, level: int) -> None:
    with pytest.raises(ValueError, match=r"Blur|level"):
        apply_operation(pattern(), name, level, np.random.default_rng(0))


def test_invert_mirrors_all_values() -> None:
    (found,) = outcomes(noise(), "Invert", 3)
    assert np.array_equal(found, 255 - np.asarray(noise()).astype(int))


@pytest.mark.parametrize("level", [1, 4, 9])
def test_solarize_mirrors_values_from_the_threshold_on(level: int) -> None:
    threshold = 256 * (9 - level) / 9
    pixels = np.asarray(noise()).astype(int)
    (found,) = outcomes(noise(), "Solarize", level)
    assert np.array_equal(found, np.where(pixels < threshold, pixels, 255 - pixels))


@pytest.mark.parametrize(("level", "step"), [(1, 1), (2, 2), (5, 4), (7, 8), (9, 16)])
def test_posterize_keeps_the_upper_bits(level: int, step: int) -> None:
    (found,) = outcomes(noise(), "Posterize", level)
    assert np.array_equal(found, np.asarray(noise()).astype(int) // step * step)


def test_auto_contrast_stretches_each_channel_to_all_values() -> None:
    # red 100..151 stretches by 255 / 51 = 5, green is full already, blue is flat and stays
    pixels = [[[100, 0, 9], [151, 255, 9], [110, 20, 9]]]
    (found,) = outcomes(image_of(pixels), "AutoContrast", 1)
    assert found.tolist() == [[[0, 0, 9], [255, 255, 9], [50, 20, 9]]]


def test_equalize_spreads_values_evenly() -> None:
    # 256 values, each 4 times, in steps: the table is the identity; two values become 0 and 255
    ramp = np.arange(1024, dtype=np.uint8).reshape(32, 32, 1).repeat(3, 2)
    (found,) = outcomes(image_of(ramp), "Equalize", 1)
    assert np.array_equal(found, ramp.astype(int))
    two = np.full((32, 32, 3), 90)
    two[:16] = 100
    (found,) = outcomes(image_of(two), "Equalize", 1)
    assert sorted(set(found.ravel().tolist())) == [0, 255]


@pytest.mark.parametrize("level", [2, 9])
def test_brightness_multiplies_values(level: int) -> None:
    pixels, change = np.asarray(noise()).astype(float), 0.1 * level
    expected = [np.clip(pixels * (1 + sign * change), 0, 255) for sign in (-1, 1)]
    assert_both_signs(outcomes(noise(), "Brightness", level), expected, atol=1)


@pytest.mark.parametrize("level", [2, 9])
def test_contrast_moves_values_from_the_mean_grey(level: int) -> None:
    pixels, change = np.asarray(noise()).astype(float), 0.1 * level
    mean = np.round(np.floor(luma(pixels) + 0.5).mean())
    expected = [np.clip(mean + (1 + sign * change) * (pixels - mean), 0, 255) for sign in (-1, 1)]
    assert_both_signs(outcomes(noise(), "Contrast", level), expected, atol=2)


@pytest.mark.parametrize("level", [2, 9])
def test_color_moves_values_from_the_pixels_own_grey(level: int) -> None:
    pixels, change = np.asarray(noise()).astype(float), 0.1 * level
    grey = luma(pixels)[..., None]
    expected = [np.clip(grey + (1 + sign * change) * (pixels - grey), 0, 255) for sign in (-1, 1)]
    assert_both_signs(outcomes(noise(), "Color", level), expected, atol=2)


def luma(pixels: np.ndarray) -> np.ndarray:
    grey: np.ndarray = pixels @ np.array([0.299, 0.587, 0.114])
    return grey


def test_sharpness_moves_values_from_their_smoothed_neighbourhood() -> None:
    # a spot of 130 on 0, kernel 1 1 1 / 1 5 1 / 1 1 1 over 13: smoothed to 50, neighbours to 10;
    # level 5 changes the factor by 0.5: 50 + 0.5 * 80 = 90 and 5, or 50 + 1.5 * 80 = 170 and -5
    spot = np.zeros((5, 5, 3))
    spot[2, 2] = 130
    softer, sharper = np.zeros((5, 5, 3)), np.zeros((5, 5, 3))
    softer[1:4, 1:4], softer[2, 2] = 5, 90
    sharper[2, 2] = 170
    assert_both_signs(outcomes(image_of(spot), "Sharpness", 5), [softer, sharper])


def test_translations_move_whole_pixels_and_leave_grey() -> None:
    # 0.4532 of 10 pixels at level 9: 4.53 pixels; a pixel takes the nearest of where it came from
    row = np.arange(1, 11)
    grey = [128] * 5
    expected = [[*row[5:], *grey], [*grey, *row[:5]]]
    image = image_of(row[None, :, None].repeat(3, 2).repeat(4, 0))
    found = outcomes(image, "TranslateX", 9)
    assert_both_signs(found, [np.array(line)[None, :, None] for line in expected])
    turned = outcomes(image.transpose(Image.Transpose.TRANSPOSE), "TranslateY", 9)
    assert_both_signs(turned, [np.array(line)[:, None, None] for line in expected])


def test_shears_slide_rows_in_proportion_to_their_number() -> None:
    # A vertical edge at x = 32: row y, centre y + 0.5, slides by 0.3 (y + 0.5) pixels at level 9.
    pixels = np.zeros((40, 64, 3))
    pixels[:, 32:] = 255
    slopes = {"left": -0.3, "right": 0.3}
    edges = []
    for found in outcomes(image_of(pixels), "ShearX", 9):
        inside = found[:, 14:50, 0]  # without the grey corners
        edges.append(50 - (inside / 255).sum(axis=1))
    drift = sorted(float((edge[35] - edge[5]) / 30) for edge in edges)
    assert drift == pytest.approx(sorted(slopes.values()), abs=0.02)
    sheared = [np.swapaxes(one, 0, 1) for one in outcomes(image_of(pixels), "ShearX", 9)]
    turned = outcomes(image_of(pixels).transpose(Image.Transpose.TRANSPOSE), "ShearY", 9)
    assert_both_signs(turned, sheared)


def test_rotation_is_counter_clockwise_only_and_fills_with_grey() -> None:
    pixels = np.zeros((41, 41, 3))
    pixels[20, 36:39] = 255  # a spot to the right of the centre
    (found,) = outcomes(image_of(pixels), "Rotate", 9)
    ys, xs = np.nonzero(found[..., 0] == 255)
    angle = np.degrees(np.arctan2(20 - ys.mean(), xs.mean() - 20))
    assert angle == pytest.approx(30, abs=3)
    assert found[0, 0].tolist() == GREY


@pytest.mark.parametrize(("level", "side"), [(1, 2), (3, 6), (4, 8), (9, 20)])
def test_the_small_cutout_is_a_box_of_one_colour(level: int, side: int) -> None:
    areas = set()
    for seed in range(100):
        result = apply_operation(noise(), "Cutout", level, np.random.default_rng(seed))
        box = changed_box(noise(), result)
        found = np.asarray(result)[box[1] : box[3], box[0] : box[2]].reshape(-1, 3)
        assert (found == (125, 122, 113)).all()
        areas.add((box[2] - box[0]) * (box[3] - box[1]))
    assert max(areas) == side * side  # an odd size loses a pixel, as in the package
    assert min(areas) >= side * side // 4


# ---------------------------------------------------------------------------------------------
# Cutout
# ---------------------------------------------------------------------------------------------


def changed_box(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (the last two excluded) of the pixels that differ."""
    ys, xs = np.nonzero((np.asarray(before) != np.asarray(after)).any(2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


class _Centre(np.random.Generator):
    """Draws a given centre, then white."""

    def __init__(self, x: int, y: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.values = iter([x, y])

    def integers(self, _high: int, size: int | None = None) -> object:  # type: ignore[override]
        return next(self.values) if size is None else np.full(size, 255)


@pytest.mark.parametrize(
    ("centre", "box"),
    [
        ((224, 224), (112, 112, 337, 337)),  # 112 to either side, and the centre itself
        ((0, 0), (0, 0, 113, 113)),
        ((447, 447), (335, 335, 448, 448)),
        ((0, 224), (0, 112, 113, 337)),
        ((224, 447), (112, 335, 337, 448)),
    ],
)
def test_the_box_is_half_as_wide_and_high_and_cut_off_at_the_border(
    centre: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    black = Image.new("RGB", (448, 448))
    result = cutout(black, _Centre(*centre))
    assert changed_box(black, result) == box
    assert (np.asarray(result)[box[1] : box[3], box[0] : box[2]] == 255).all()


def test_sides_of_the_box_follow_the_sides_of_the_image() -> None:
    black = Image.new("RGB", (80, 40))
    assert changed_box(black, cutout(black, _Centre(40, 20))) == (20, 10, 61, 31)


def test_centres_and_colours_are_uniform() -> None:
    # A pixel of the middle is covered by every centre within 10 of it, that is by 21 x 21 of
    # 40 x 40, a corner by those within its quarter, 11 x 11.
    count = 4000
    black = Image.new("RGB", (40, 40))
    covered, colours = np.zeros((40, 40)), []
    for seed in range(count):
        pixels = np.asarray(cutout(black, np.random.default_rng(seed)))
        covered += pixels.any(2)
        colours.append(pixels.max((0, 1)))
    assert covered[20, 20] / count == pytest.approx((21 / 40) ** 2, abs=0.03)
    assert covered[0, 39] / count == pytest.approx((11 / 40) ** 2, abs=0.02)
    assert np.mean(colours, axis=0) == pytest.approx([127.5] * 3, abs=5)
    assert np.corrcoef(np.transpose(colours)) == pytest.approx(np.eye(3), abs=0.06)


# ---------------------------------------------------------------------------------------------
# Draws
# ---------------------------------------------------------------------------------------------


def test_operations_and_levels_are_uniform_and_fire_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_operations(rng) for _ in range(30_000)]
    numbers = Counter(len(draw) for draw in draws)
    # 0, 1 or 2 of two, each with p = 1/2; five standard deviations
    assert numbers[1] / 30_000 == pytest.approx(0.5, abs=0.015)
    assert numbers[0] / 30_000 == pytest.approx(0.25, abs=0.0125)
    fired = [step for draw in draws for step in draw]
    by_name = Counter(name for name, _ in fired)
    by_level = Counter(level for _, level in fired)
    assert set(by_name) == set(OPERATIONS)
    assert set(by_level) == set(range(1, LEVELS + 1))
    for counts, share in ((by_name, 1 / 15), (by_level, 1 / 9)):
        deviation = (share * (1 - share) / len(fired)) ** 0.5
        for count in counts.values():
            assert count / len(fired) == pytest.approx(share, abs=5 * deviation)
    both = Counter((draw[0][0], draw[1][0]) for draw in draws if len(draw) == 2)
    assert len(both) == 15 * 15  # an operation may follow itself


# ---------------------------------------------------------------------------------------------
# The whole
# ---------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(1, 70), st.integers(1, 70))
def test_size_and_mode_stay_and_the_image_is_not_touched(
    seed: int, width: int, height: int
) -> None:
    image = noise(width, height)
    result = augment(image, seed=seed)
    assert (result.size, result.mode) == ((width, height), "RGB")
    assert np.array_equal(np.asarray(image), np.asarray(noise(width, height)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_bears_the_smallest_image(name: str) -> None:
    result = apply_operation(noise(1, 1), name, LEVELS, np.random.default_rng(0))
    assert (result.size, result.mode) == ((1, 1), "RGB")


def test_equal_seeds_give_equal_pixels_and_others_give_others() -> None:
    image = pattern()
    first = [augment(image, seed=[7, 1, index]).tobytes() for index in range(50)]
    assert first == [augment(image, seed=[7, 1, index]).tobytes() for index in range(50)]
    assert len(set(first)) == 50
    assert not set(first) & {augment(image, seed=[7, 2, index]).tobytes() for index in range(50)}


def test_global_random_state_makes_no_difference() -> None:
    views = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is the point
        views.append([augment(pattern(), seed=index).tobytes() for index in range(30)])
    assert views[0] == views[1]


def test_an_image_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(ValueError, match="mode 'L'"):
        augment(Image.new("L", (4, 4)), seed=0)


@pytest.mark.parametrize(
    ("seed", "operations", "digest"),
    [
        (5, [("TranslateY", 3), ("Rotate", 9)], "60690e40a3196fae"),
        (8, [("Posterize", 8), ("Rotate", 6)], "0800db55fcc53eab"),
        (31, [("Equalize", 5), ("Cutout", 4)], "51dd5c4d001be3b7"),
    ],
)
def test_golden_views(seed: int, operations: list[tuple[str, int]], digest: str) -> None:
    # sha256 of augment(pattern(), seed=seed), recorded with Pillow 13.0.0 and numpy 2.4.6; Pillow
    # 10.0.0 with numpy 1.26.4 and 11.3.0 with 2.2.6 give the same. The operations of these seeds
    # work on integers, so that no processor rounds them its own way. They change with VERSION only.
    rng = np.random.default_rng(seed)
    cutout(pattern(), rng)
    assert draw_operations(rng) == operations
    pixels = augment(pattern(), seed=seed).tobytes()
    assert hashlib.sha256(pixels).hexdigest()[:16] == digest
