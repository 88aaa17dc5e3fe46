#!/usr/bin/env bash
# transformers 5 makes a tokenizer without its vocabulary where the file of that is missing: a few
# special tokens, and every text is one and the same to it. Nothing is said.
#
# It happens to whoever copies or caches a model without tokenizer.json (or spiece.model) but with
# tokenizer_config.json: text features of all classes are equal, and so are all scores.
#
# Seen 2026-11-28 with transformers 5.24.0, tokenizers 0.23.3:
#     T5Tokenizer       4 tokens  dog [3, 2, 1]  cat [3, 2, 1]
#     BertTokenizer     5 tokens  dog [2, 1, 3]  cat [2, 1, 3]
#     GemmaTokenizer    5 tokens  dog [3]        cat [3]
#
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2

cat > "$folder/empty.py" <<'PY'
import json
import pathlib
import tempfile

from transformers import AutoTokenizer

for name in ("T5Tokenizer", "BertTokenizer", "GemmaTokenizer"):
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "extra_ids": 0}))
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    dog, cat = (tokenizer(word)["input_ids"] for word in ("dog", "cat"))
    print(f"{name:16s} {len(tokenizer):2d} tokens  dog {dog}  cat {cat}")
    assert dog == cat, "it reads words, or is refused, now"
PY
"$folder/venv/bin/python" "$folder/empty.py"
