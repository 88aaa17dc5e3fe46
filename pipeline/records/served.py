"""A checkpoint as a folder of MLflow's that answers photographs; nothing in it is a pickle."""

import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
from mlflow.models import Model

from dclip.recognition.places import MODEL_FILE

CODE = "pipeline.serving.photographs"
"""The module that MLflow copies beside the checkpoint and runs to load it."""

_FLAVOUR = "python_function"


def save_photograph_model(folder: Path, checkpoint: Path, model: Model) -> None:
    """Write a folder that ``mlflow models serve`` serves and `dclip.load` loads.

    Args:
        folder: Is made.
        checkpoint: File of the checkpoint.
        model: What MLflow knows of it so far.
    """
    found = find_spec(CODE)
    assert found is not None
    assert found.origin is not None
    with TemporaryDirectory() as place, warnings.catch_warnings(action="ignore"):
        named = Path(place) / MODEL_FILE  # as dclip.load knows it
        shutil.copyfile(checkpoint, named)
        mlflow.pyfunc.save_model(
            folder,
            python_model=found.origin,
            artifacts={"model": str(named)},
            mlflow_model=model,
            pip_requirements=["dclip"],
        )


def answer_photographs(folder: Path, checkpoint: Path) -> None:
    """Let a model that MLflow saved answer photographs, too; its other flavours stay.

    Args:
        folder: Of the model; what asks for photographs takes the place of its
            ``python_function``.
        checkpoint: File of the checkpoint.
    """
    kept = Model.load(str(folder))
    with TemporaryDirectory() as place:
        new = Path(place) / "model"
        save_photograph_model(new, checkpoint, Model())
        served = Model.load(str(new))
        shutil.copytree(new / "artifacts", folder / "artifacts")
        code = Path(served.flavors[_FLAVOUR]["model_code_path"]).name
        shutil.copyfile(new / code, folder / code)
        # of tensors, which are no longer what it is asked with
        for name in ("input_example.json", "serving_input_example.json"):
            (folder / name).unlink(missing_ok=True)
        kept.saved_input_example_info = None  # type: ignore[assignment]  # theirs takes it
        kept.flavors[_FLAVOUR] = served.flavors[_FLAVOUR]
        kept.signature = served.signature
        kept.save(str(folder / "MLmodel"))
