#!/usr/bin/env bash
# timm's forward_intermediates(norm=True) is the documented way to features of locations, and
# open_clip passes normalize_intermediates=True on to it. For a ViT it applies the last norm. For
# ConvNeXt, ViTamin and FastViT it changes no number and says nothing; and what FastViT (MobileCLIP)
# gives has 512 channels where its head takes 1,024. Local features that are compared with texts need
# the norm and the head of each family.
#
# Seen 2026-11-28 with timm 1.0.31 (random weights, every one of them shifted):
#     vit_tiny_patch16_224    norm changes it: True   192 channels, head takes 192
#     convnext_atto           norm changes it: False  320 channels, head takes 320
#     vitamin_small_224       norm changes it: False  384 channels, head takes 384
#     fastvit_mci0            norm changes it: False  512 channels, head takes 1024
#
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm==1.0.31 torch==2.14.1 torchvision==0.29.1

cat > "$folder/norm.py" <<'PY'
import timm
import torch

torch.manual_seed(0)
images = torch.randn(1, 3, 224, 224)
EXPECTED = {
    "vit_tiny_patch16_224": (True, 192, 192),
    "convnext_atto": (False, 320, 320),
    "vitamin_small_224": (False, 384, 384),
    "fastvit_mci0": (False, 512, 1024),
}
for name, expected in EXPECTED.items():
    model = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        plain, normed = (
            model.forward_intermediates(images, indices=1, norm=norm, intermediates_only=True)[-1]
            for norm in (False, True)
        )
        taken = model.forward_head(model.forward_features(images)).shape[1]
    found = (not torch.equal(plain, normed), plain.shape[1], taken)
    print(f"{name:24}norm changes it: {found[0]!s:6} {found[1]} channels, head takes {found[2]}")
    assert found == expected, (name, found)
PY
"$folder/venv/bin/python" "$folder/norm.py"
