"""Peak memory is that of the work, not of what the process did before."""

import sys

import numpy as np
import pytest
import torch

from pipeline.work.memory import count_anew, peak

CPU = torch.device("cpu")
SIZE = 200_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts anew")
def test_what_is_held_meanwhile_counts_and_what_was_held_before_does_not() -> None:
    assert count_anew(CPU)
    before = peak(CPU, is_own=True)
    held = np.ones(SIZE, np.uint8)
    del held
    after = peak(CPU, is_own=True)
    assert after.of == "process"
    assert after.bytes - before.bytes > 0.9 * SIZE
    assert count_anew(CPU)
    assert peak(CPU, is_own=True).bytes < after.bytes - 0.5 * SIZE
    now = peak(CPU, is_own=True)
    whole = peak(CPU, is_own=False)
    assert whole.of == "process, since it began"
    assert whole.bytes > now.bytes / 2  # the unit is the same


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_is_what_was_held_there() -> None:
    device = torch.device("cuda")
    count_anew(device)
    before = peak(device, is_own=True)
    held = torch.ones(SIZE, dtype=torch.uint8, device=device)
    del held
    after = peak(device, is_own=True)
    assert (after.of, after.bytes - before.bytes >= SIZE) == ("gpu", True)
