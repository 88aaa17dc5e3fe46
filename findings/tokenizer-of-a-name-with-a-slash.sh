#!/usr/bin/env bash
# open_clip takes "PE-Core-B/16" for "PE-Core-B-16" when it builds a model, and not when it looks for
# the tokenizer: get_tokenizer gives CLIP's own with 77 tokens, and a line in the log, where the
# model reads 32. Of a CLIPA, whose vocabulary is BERT's, it gives CLIP's: ids that mean other words.
#
# The documentation and papers write names with a slash ("ViT-B/16"), and for CLIP's own models
# either spelling gives the same, so that nothing tells until a text is encoded, or nothing at all.
#
# Seen 2026-11-28 with open_clip_torch 3.3.0:
#     PE-Core-B-16: 32 tokens, the model built from PE-Core-B/16 reads 32
#     PE-Core-B/16: 77 tokens, the model built from PE-Core-B/16 reads 32
#
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet open_clip_torch==3.3.0 timm==1.0.31 torch==2.14.1 torchvision==0.29.1

cat > "$folder/names.py" <<'PY'
import logging

import open_clip
import torch

logging.disable(logging.WARNING)
with torch.device("meta"):
    model = open_clip.create_model("PE-Core-B/16", pretrained=None, device="meta")
reads = model.context_length
found = {}
for name in ("PE-Core-B-16", "PE-Core-B/16"):
    found[name] = open_clip.get_tokenizer(name)(["a dog"]).shape[1]
    print(f"{name}: {found[name]} tokens, the model built from PE-Core-B/16 reads {reads}")
assert reads == 32, reads
assert found == {"PE-Core-B-16": 32, "PE-Core-B/16": 77}, found
PY
"$folder/venv/bin/python" "$folder/names.py"
