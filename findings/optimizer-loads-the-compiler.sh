#!/usr/bin/env bash
# Making an optimizer of PyTorch loads its compiler: torch._dynamo, torch._inductor and sympy, some
# hundreds of modules that nothing of an uncompiled training uses. Every process of a pool that
# trains pays for it: about as long again as `import torch` takes.
#
# The functions behind the classes (torch.optim.sgd.sgd, torch.optim.adamw.adamw) step the same
# weights to the same bits and load none of it, and neither does importing the classes.
#
# Seen 2026-11-27 with torch 2.14.1 and 2.15.0 on a CPU:
#     imported: compiler loaded: False
#     stepped by the function: compiler loaded: False
#     made an optimizer: compiler loaded: True
#
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6

cat > "$folder/loads.py" <<'PY'
import sys
import time

import torch
from torch.optim.sgd import sgd


def loaded(said):
    there = "torch._dynamo" in sys.modules
    print(f"{said}: compiler loaded: {there}")
    return there


print("torch", torch.__version__)
assert not loaded("imported")
with torch.no_grad():
    weight, gradient = torch.ones(3), torch.ones(3)
    sgd(
        [weight], [gradient], [None], lr=0.1, momentum=0.9, weight_decay=0.0,
        dampening=0.0, nesterov=False, maximize=False,
    )
assert not loaded("stepped by the function")
before, started = len(sys.modules), time.perf_counter()
other = torch.nn.Parameter(torch.ones(3))
other.grad = torch.ones(3)
optimizer = torch.optim.SGD([other], lr=0.1, momentum=0.9)
assert loaded("made an optimizer")
seconds = time.perf_counter() - started
print(f"{len(sys.modules) - before} more modules in {seconds:.1f} s")
optimizer.step()
assert torch.equal(weight, other.detach())
PY
"$folder/venv/bin/python" "$folder/loads.py"
