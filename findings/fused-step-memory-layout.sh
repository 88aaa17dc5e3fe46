#!/usr/bin/env bash
# A fused optimizer step of PyTorch goes through memory, not through indices: where the state that
# was loaded has other strides than its weight, every number but a few is stepped by the state of
# another one. Nothing is said.
#
# It happens to whoever trains a convolution whose weights are channels_last (as a CLIP's image
# tower is, for speed) and keeps the optimizer's state in a format without strides, such as
# safetensors: what comes back is contiguous. load_state_dict takes it as it is; shapes agree.
# The same state in the weight's own layout, or fused=False, gives the right weights.
#
# Seen 2026-11-27 with torch 2.14.1 and 2.15.0 on a CPU:
#     sgd    plain  largest difference 0.000
#     sgd    fused  largest difference 0.297
#     adamw  plain  largest difference 0.000
#     adamw  fused  largest difference 0.152
#
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6

cat > "$folder/resume.py" <<'PY'
import copy

import torch

SHAPE = (4, 3, 2, 2)
LAST = torch.channels_last


def weights(kind, fused, contiguous):
    """Two steps with a save and a load between them."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(SHAPE).to(memory_format=LAST))
    options = {"lr": 0.1, "fused": fused}
    if kind is torch.optim.SGD:
        options["momentum"] = 0.9
    first = kind([weight], **options)
    gradient = torch.randn(SHAPE)
    weight.grad = gradient.to(memory_format=LAST)
    first.step()
    state = copy.deepcopy(first.state_dict())
    for name, value in state["state"][0].items():
        if contiguous and torch.is_tensor(value) and value.ndim:
            state["state"][0][name] = value.contiguous()  # equal numbers, other strides
    second = kind([weight], **options)
    second.load_state_dict(state)
    weight.grad = gradient.flip(0).to(memory_format=LAST)
    second.step()
    return weight.detach()


print("torch", torch.__version__)
for kind in (torch.optim.SGD, torch.optim.AdamW):
    for fused in (False, True):
        apart = weights(kind, fused, True) - weights(kind, fused, False)
        largest = float(apart.abs().max())
        how = "fused" if fused else "plain"
        print(f"{kind.__name__.lower():6} {how}  largest difference {largest:.3f}")
        assert (largest > 0.1) == fused, "it is no longer so"
PY
"$folder/venv/bin/python" "$folder/resume.py"
