#!/usr/bin/env bash
# The same tensors with the same metadata, written twice by safetensors, are other bytes each time:
# the keys of the metadata stand in an order that is drawn anew for each file, in one process, too.
#
# Who names files by their hash, keeps them in a cache by content, or looks whether a model changed,
# finds the same model changed. One key with all that is to be said, as JSON, is written the same.
#
# Seen 2026-11-28 with safetensors 0.8.0:
#     8 keys: 8 files of equal content, 8 SHA-256
#     1 key with the 8 in it as JSON: 8 files, 1 SHA-256
#
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.1

cat > "$folder/write.py" <<'PY'
import hashlib
import json

import numpy as np
import safetensors.numpy

told = {f"key {number}": str(number) for number in range(8)}


def sums(metadata):
    files = [
        safetensors.numpy.save({"weight": np.zeros(3, np.float32)}, metadata=metadata)
        for _ in range(8)
    ]
    return len({hashlib.sha256(data).hexdigest() for data in files})


many, one = sums(told), sums({"about": json.dumps(told)})
print(f"8 keys: 8 files of equal content, {many} SHA-256")
print(f"1 key with the 8 in it as JSON: 8 files, {one} SHA-256")
assert many > 1, many
assert one == 1, one
PY
"$folder/venv/bin/python" "$folder/write.py"
