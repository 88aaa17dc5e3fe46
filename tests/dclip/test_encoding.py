import pytest
import torch

from dclip import load_backbone
from dclip.data.pixels import normalise
from dclip.encoding import encode_batches


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_batch_is_encoded_by_itself_and_comes_in_float32(precision: str) -> None:
    clip = load_backbone("tiny", pretrained="random")
    side = clip.resolution
    pixels = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8)
    pixels[2] = 255 - pixels[1]
    found = list(encode_batches(clip, torch.split(pixels, 2), kind="vv", precision=precision))
    assert [len(one.embedding) for one in found] == [2, 1]
    for one, batch in zip(found, torch.split(pixels, 2), strict=True):
        exact = clip.encode_images(normalise(batch, clip.mean, clip.std), kind="vv")
        assert {one.local.dtype, one.embedding.dtype} == {torch.float32}
        for own, expected in ((one.local, exact.local), (one.embedding, exact.embedding)):
            assert torch.equal(own, expected) == (precision == "float32")
            torch.testing.assert_close(own, expected, rtol=0, atol=0.05)
