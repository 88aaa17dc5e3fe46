"""Methods on pixels: crops, the source that decodes, and the loop around a network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from dclip.backbones import load_backbone
from dclip.data.crops import RATIO, SCALE, as_pixels, centre_crop, random_crop
from dclip.data.images import ImageError
from dclip.data.listing import Keyed, Sample
from dclip.data.preparation import Preparation, Resize
from dclip.fitting.batches import epoch_batches, parts_of, read_batch
from dclip.fitting.fit import EpochReport, fit, scores_of, step_learning_rate
from dclip.fitting.images import ImageSource
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.method import Task

from ..pipeline.toy_pixels import PixelLine, PixelSettings

CLASSES = ("light", "dark")


class Drawings(Keyed):
    """Grey images, light in a box that is their mask, of a size of its own each."""

    name, split, class_names = "drawings", "train", CLASSES

    def __init__(self, count: int, *, mask_side: int | None = None) -> None:
        self.keys = tuple(f"{number:03d}" for number in range(count))
        self.mask_side = mask_side

    def inside(self, index: int) -> np.ndarray:
        rows, columns = 40 + 3 * index, 60 + 2 * index
        found = np.zeros((rows, columns), bool)
        found[rows // 4 : rows // 2, columns // 3 : columns] = True
        return found

    def read(self, index: int) -> Sample:
        if index == 7 and self.mask_side == -1:
            raise ImageError("image 007: truncated")
        grey = np.where(self.inside(index), 200, 30 + 6 * index).astype(np.uint8)
        image = Image.fromarray(np.repeat(grey[..., None], 3, 2))
        return Sample(image, np.array([1, 0], np.uint8))

    def mask(self, index: int) -> Image.Image:
        image = Image.fromarray(255 * self.inside(index).astype(np.uint8))
        return image if not self.mask_side else image.resize((self.mask_side,) * 2)

    def captions(self, rows: np.ndarray) -> list[tuple[str, ...]]:
        return [(f"number {index}",) * (index % 3) for index in rows.tolist()]

    def identity(self) -> dict[str, str | int]:
        return {}


def source(count: int, **more: Any) -> ImageSource:
    listing = more.pop("listing", None) or Drawings(count)
    is_light = (torch.arange(count) < count // 2).long()  # the last images are the first rows
    labels = torch.stack([is_light, 1 - is_light], 1)
    more = {"resolution": 32, "threads": 2, **more}
    return ImageSource(listing, np.arange(count)[::-1].copy(), labels, **more)


def test_a_centre_crop_is_clips_own_preparation() -> None:
    image = Drawings(4).read(3).image
    expected = image.crop((8, 0, 57, 49)).resize((32, 32), Image.Resampling.BICUBIC)
    assert centre_crop(image.size).box == (8.5, 0.0, 57.5, 49.0)
    even = image.crop((0, 0, 65, 49))  # an odd difference, so that the middle is a whole pixel
    assert np.array_equal(
        np.asarray(as_pixels(even, 32, "crop")),
        np.asarray(even.crop((8, 0, 57, 49)).resize((32, 32), Image.Resampling.BICUBIC)),
    )
    assert np.abs(np.asarray(as_pixels(image, 32, "crop"), int) - np.asarray(expected)).mean() < 2
    assert as_pixels(image, 16, "native").size == (80, 64)
    assert as_pixels(image, 16, "square").size == (16, 16)


def test_random_crops_are_inside_and_of_the_sizes_that_are_said() -> None:
    shares, ratios, mirrored = [], [], 0
    for seed in range(300):
        crop = random_crop((400, 300), np.random.default_rng(seed))
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / 120_000)
        ratios.append((right - left) / (bottom - top))
        mirrored += crop.is_mirrored
    assert min(shares) == pytest.approx(SCALE[0], abs=0.02)
    assert max(shares) > 0.9
    assert RATIO[0] - 0.03 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < RATIO[1] + 0.03
    assert 110 < mirrored < 190
    assert random_crop((1000, 10), np.random.default_rng(0)).box == (493, 0, 506, 10)


def test_masks_are_cut_as_their_images_are() -> None:
    images = source(12)
    for draws in (None, np.arange(50, 62)):
        pixels, masks = images.pictures(np.arange(12), draws)
        assert masks is not None
        light = pixels[..., 0] > 115
        assert (light == masks).float().mean() > 0.95
        assert pixels.shape == (12, 32, 32, 3)
    assert torch.equal(images.pixels(np.array([3])), pixels_of(images, 3))
    assert not torch.equal(images.pixels(np.array([3]), np.array([5])), pixels_of(images, 3))
    with pytest.raises(ImageError, match=r"image 011 has 82 x 73 pixels, its mask 9 x 9"):
        source(12, listing=Drawings(12, mask_side=9)).pictures(np.array([0]))
    with pytest.raises(ValueError, match="one by one"):
        source(3, form="native", resolution=16).pixels(np.arange(2))
    assert source(3, form="native", resolution=16).pixels(np.arange(1)).shape == (1, 48, 64, 3)


def pixels_of(images: ImageSource, row: int) -> Tensor:
    return images.pixels(np.arange(12))[row : row + 1]


def test_crops_belong_to_their_images_whoever_reads_them() -> None:
    images, loop = source(11), Loop(batch_size=4, augmentation="crop")
    feeds = ("pixels", "masks", "captions")
    common: dict[str, Any] = {"seed": 5, "epoch": 2, "feeds": feeds}
    alone = list(epoch_batches(images, np.arange(11), loop, **common))
    assert [batch.total for batch in alone] == [4, 4, 3]
    for rank in range(2):
        own = epoch_batches(images, np.arange(11), loop, rank=rank, workers=2, **common)
        for mine, whole in zip(own, alone, strict=True):
            assert whole.pixels is not None
            assert mine.pixels is not None
            assert torch.equal(mine.pixels, whole.pixels[rank::2])
            assert mine.captions == list(whole.captions or ())[rank::2]
            assert mine.total == whole.total
    again = next(iter(epoch_batches(images, np.arange(11), loop, **{**common, "epoch": 3})))
    assert again.pixels is not None
    first, second = parts_of(alone[0], 2)
    assert second.pixels is not None
    assert alone[0].pixels is not None
    assert torch.equal(second.pixels, alone[0].pixels[1::2])
    assert (first.workers, first.total, len(first.captions or ())) == (2, 4, 2)
    with pytest.raises(ValueError, match="has no captions of its images"):
        read_batch(source(2, listing=Bare()), np.arange(2), ("captions",))


class Bare(Keyed):
    """Without captions or masks."""

    name, split, class_names, keys = "bare", "train", CLASSES, ("0", "1")

    def read(self, index: int) -> Sample:
        return Drawings(2).read(index)

    def identity(self) -> dict[str, str | int]:
        return {}


def pack(loop: Loop) -> Pack:
    task = Task.of(
        load_backbone("tiny", pretrained="random", resolution=32), [[n] for n in CLASSES]
    )
    return Pack(PixelLine, [PixelSettings()], loop, task, seeds=[0])


def train(loop: Loop, seen: int = 14, *, stop: int | None = None) -> tuple[Pack, list[EpochReport]]:
    own, reports = pack(loop), []
    fit(own, source(seen), np.arange(seen), seed=1, on_epoch=lambda line: reports.extend(line))
    return own, reports


def weights(own: Pack) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in own.method().state_dict().items()}


def test_parts_of_a_batch_step_as_the_whole_batch_does() -> None:
    loop = Loop(epochs=2, batch_size=8, lr=0.1, augmentation="crop")
    whole, one = train(loop)
    parts, other = train(loop.model_copy(update={"accumulate": 3}))  # one has no image
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-6)
    assert other[-1].loss == pytest.approx(one[-1].loss, rel=1e-5)
    scores = scores_of(whole.method(), source(14), np.arange(14))
    assert scores.shape == (14, 2)


def test_rates_by_steps_with_rules_of_their_own() -> None:
    loop = Loop(epochs=3, lr=0.1, batch_size=7, schedule="step", warmup_steps=2, weight_decay=0.3)
    own, rates = pack(loop), []

    def look() -> None:
        rates.append({group.warms_up: group.lr for group in own.optimizer.groups})

    fit(own, source(14), np.arange(14), seed=1, on_step=look, on_epoch=lambda _: look())
    assert [rate[True] for rate in rates] == [step_learning_rate(loop, n, 6) for n in range(6)]
    assert rates[0] == {True: 0.05, False: 0.2}  # the bias: twice, and without a warm-up
    decays = {group.warms_up: group.weight_decay for group in own.optimizer.groups}
    assert decays == {True: 0.3, False: 0.0}


@pytest.mark.parametrize("mixed", ["float16", "bfloat16"])
def test_half_precision_learns_skips_what_overflows_and_goes_on(mixed: Any) -> None:
    loop = Loop(epochs=4, batch_size=7, lr=0.5, optimizer="sgd", mixed_precision=mixed)
    own, reports = train(loop)
    plain, _ = train(loop.model_copy(update={"mixed_precision": "none"}))
    assert reports[-1].loss < reports[0].loss
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(own)[name], value, rtol=0.05, atol=0.02)
    half, kept = pack(loop), {}

    def keep(_: object) -> None:
        if half.epoch == 2:
            kept.update(half.state_tensors())

    fit(half, source(14), np.arange(14), seed=1, on_epoch=keep)
    rest = pack(loop)
    rest.load_state_tensors(kept)
    assert rest.scaler.get_scale() == half.scaler.get_scale()
    fit(rest, source(14), np.arange(14), seed=1)
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(own).items())
    if mixed == "float16":
        before, scale = weights(rest), rest.scaler.get_scale()
        losses = torch.full((1, 1), torch.inf, requires_grad=True)
        rest.optimizer.zero_grad()
        (rest.weights[0].sum() * losses.detach()).sum().backward()
        rest.scaler.scale(losses)  # begins a step, as backward does
        rest.take_step()
        assert all(torch.equal(value, before[name]) for name, value in weights(rest).items())
        assert rest.scaler.get_scale() == scale / 2


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    del tmp_path
    broken = source(9, listing=Drawings(9, mask_side=-1))
    with pytest.raises(ImageError, match="image 007: truncated"):
        fit(pack(Loop(epochs=1)), broken, np.arange(9), seed=0)


SEEN = 9  # batches of 4: the last has one image, and nothing for the second worker


def of_package(method: str, **more: Any) -> tuple[Pack, ImageSource]:
    """A small training of a method that comes with the package, on the drawings."""
    from dclip.methods.registry import find_method

    kind = find_method(method)
    own = {"kept_positions": 4} if method == "smartclip" else {"depth": 2}
    backbone = load_backbone("tiny-vit", pretrained="random", resolution=32)
    task = Task.of(backbone, [[name] for name in CLASSES])
    loop = Loop(
        epochs=1,
        batch_size=4,
        lr=1e-3,
        optimizer="sgd",
        warmup_epochs=0,
        augmentation="crop",
        **more,
    )
    listing = Told(SEEN) if method == "smartclip" else Drawings(SEEN)
    settings = [kind.Settings.model_validate(own)]
    return Pack(kind, settings, loop, task, seeds=[0]), source(SEEN, listing=listing)


class Told(Drawings):
    """All images have a caption."""

    def captions(self, rows: np.ndarray) -> list[tuple[str, ...]]:
        return [(f"number {index}. it is grey. dark below.",) for index in rows.tolist()]


def worker(rank: int, workers: int, folder: str, method: str) -> None:
    """A process of its own: one of several that train together."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    torch.set_num_threads(1)
    own, images = of_package(method)
    losses: list[float] = []
    fit(own, images, np.arange(SEEN), seed=3, rank=rank, workers=workers,
        on_epoch=lambda line: losses.append(line[0].loss))  # fmt: skip
    saved = {**weights(own), "loss": torch.tensor(losses[0])}
    safetensors.torch.save_file(
        {name: value.contiguous().clone() for name, value in saved.items()},
        f"{folder}/{rank}.safetensors",
    )
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["maple", "dapt", "smartclip"])
def test_two_workers_train_on_images_what_one_does(tmp_path: Path, method: str) -> None:
    alone, images = of_package(method)
    before = {name: value.clone() for name, value in weights(alone).items()}
    losses: list[float] = []
    fit(alone, images, np.arange(SEEN), seed=3, on_epoch=lambda line: losses.append(line[0].loss))
    arguments = (2, str(tmp_path), method)
    torch.multiprocessing.spawn(worker, arguments, nprocs=2)  # type: ignore[no-untyped-call]
    moved = 0.0
    for rank in range(2):
        both = safetensors.torch.load_file(tmp_path / f"{rank}.safetensors")
        assert float(both.pop("loss")) == pytest.approx(losses[0], rel=1e-4)
        for name, value in weights(alone).items():
            torch.testing.assert_close(both[name], value, rtol=0, atol=1e-4)
            moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("method", ["dapt", "smartclip"])
def test_images_go_on_within_an_epoch_as_if_nothing_had_been(method: str) -> None:
    straight, images = of_package(method, accumulate=2)
    kept: list[dict[str, Tensor]] = []
    fit(straight, images, np.arange(SEEN), seed=3,
        on_step=lambda: kept.append(straight.state_tensors()))  # fmt: skip
    rest, _ = of_package(method, accumulate=2)
    rest.load_state_tensors(kept[0])
    fit(rest, images, np.arange(SEEN), seed=3)
    assert all(torch.equal(v, weights(rest)[n]) for n, v in weights(straight).items())


@pytest.mark.parametrize("resize", ["squash", "shortest", "longest"])
def test_a_square_is_made_as_the_backbone_prepares_it_and_its_mask_with_it(resize: Resize) -> None:
    form = Preparation(resize, "bicubic")
    images = source(4, form="square", preparation=form)

    pixels, masks = images.pictures(np.arange(4), masks=True)

    assert masks is not None
    first = Drawings(4).read(3).image  # the last image is the first row
    assert np.array_equal(pixels[0], form(first, 32))
    light = pixels.float().mean(3) > 115  # half way between the box and what is around it
    assert 0.1 < float(masks.float().mean()) < 0.3
    assert float((light == masks).float().mean()) > 0.97  # but for pixels at its edges
    images.close()
