"""A program beside each exported file that runs it, without this package."""

from dclip.exports.description import Description, Format

_START = '''"""{what}: {command}

Needs {needs}; nothing of dclip.
"""

import json
import sys
from pathlib import Path

{imports}

file = Path(__file__).with_name("model.{form}")
'''

_LOAD = {
    "onnx": """\
session = onnxruntime.InferenceSession(file)
about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
""",
    "pt2": """\
extra = {"description.json": ""}
model = torch.export.load(file, extra_files=extra).module()
about = json.loads(extra["description.json"])
""",
    "safetensors": """\
with safe_open(file, "numpy") as tensors:
    about = json.loads(tensors.metadata()["description"])
    own = {name: tensors.get_tensor(name) for name in tensors.keys()}
""",
}

_SQUARES = {
    "squash": "square = image.resize((side, side), Image.Resampling.{interpolation})\n",
    "shortest": """\
size = [max(1, round(each * side / min(image.size))) for each in image.size]
scaled = image.resize(size, Image.Resampling.{interpolation})
left, top = (round((each - side) / 2) for each in size)
square = scaled.crop((left, top, left + side, top + side))  # the middle
""",
    "longest": """\
size = [max(1, round(each * side / max(image.size))) for each in image.size]
scaled = image.resize(size, Image.Resampling.{interpolation})
left, top = (round((each - side) / 2) for each in size)
square = scaled.crop((left, top, left + side, top + side))  # with black bars
""",
}

_PIXELS = """\
side = about["resolution"]
image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
{square}pixels = (np.array(square, np.float32) / 255 - about["mean"]) / about["std"]
images = pixels.transpose(2, 0, 1)[None].astype(np.float32)
"""

_RUN = {
    "onnx": "scores, maps = session.run(None, {{{named}}})\n",
    "pt2": "scores, maps = (each.detach().numpy() for each in model({tensors}))\n",
}

_NUMPY = """

def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def softmax(values):
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


"""

_FOLDED = """\
places = unit(local @ own["image_projector"].T)
present, absent = (own["local_scale"] * (places @ own[it].T) for it in ("presence", "absence"))
pooled = [(softmax(each) * each).sum(axis=1) for each in (present, absent)]
scale, share, offset = own["pooled_scale"], own["share"], own["offset"]
odds = scale * (pooled[0] - share * pooled[1]) + offset
scores = sigmoid(own.get("gain", 1) * odds + own.get("shift", 0))
maps = sigmoid(scale * (present - share * absent) + offset)[:, {first}:]
maps = maps.transpose(0, 2, 1).reshape(len(local), *about["outputs"]["maps"][1:])
"""

_FROZEN = """\
cosines = unit(embedding) @ own["texts"].T
scores = {scores}
maps = unit(local[:, {first}:]) @ own["texts"].T
maps = maps.transpose(0, 2, 1).reshape(len(local), *about["outputs"]["maps"][1:])
"""

_TELL = """\
for name, score in sorted(zip(about["class_names"], scores[0]), key=lambda one: -one[1]):
    print(f"{score:.6f}  {name}")
"""


def example_of(description: Description, form: Format) -> str:
    """The program.

    Args:
        description: Of the file, which is called ``model.<form>`` and lies beside it.
        form: Of the file.
    """
    is_image, names = description.what == "image", [*description.inputs]
    library = {"onnx": "onnxruntime", "pt2": "torch", "safetensors": "safetensors"}[form]
    imports = ["import numpy as np"]
    imports += ["from safetensors import safe_open"] if form == "safetensors" else []
    imports += [f"import {library}"] if form != "safetensors" else []
    imports += ["from PIL import Image, ImageOps"] if is_image else []
    needs = ["numpy", library, *(["pillow"] if is_image else [])]
    shown = ["photo.jpg"] if is_image else [f"{name}.npy" for name in names]
    parts = [
        _START.format(
            what="What a photograph shows" if is_image else "What the features of images show",
            command=f"python example.py {' '.join(shown)}",
            needs=", ".join(needs),
            imports="\n".join(imports),
            form=form,
        ),
        _LOAD[form],
    ]
    if is_image:
        square = _SQUARES[description.resize]
        square = square.format(interpolation=description.interpolation.upper())
        parts.append(_PIXELS.format(square=square))
    else:
        parts += [
            f"{name} = np.load(sys.argv[{at}]).astype(np.float32)  # {list(axes)}\n"
            for at, (name, axes) in enumerate(description.inputs.items(), start=1)
        ]
    first = int(description.include_global_token)
    if form != "safetensors":
        named = ", ".join(f'"{name}": {name}' for name in names)
        tensors = ", ".join(f"torch.from_numpy({name})" for name in names)
        parts.append(_RUN[form].format(named=named, tensors=tensors))
    elif description.method == "clip":
        scores = "softmax(100 * cosines)"
        if description.scores == "probability":
            scores = 'sigmoid(own["logit_scale"] * cosines + own["logit_bias"])'
        parts += [_NUMPY, _FROZEN.format(scores=scores, first=first)]
    else:
        parts += [_NUMPY, _FOLDED.format(first=first)]
    return "".join([*parts, _TELL])
