"""The model that MLflow serves: it copies this file beside a checkpoint, and runs it to load it.

Nothing is unpickled: the file is code, the checkpoint safetensors. This package has to be
installed where it is loaded. Limits are those of `pipeline.settings.serving.Limits`, set by the
same variables of the environment as for ``pipeline.serve`` (``DCLIP_SERVE__ALLOW_URL``).
"""

import os
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict, TypeAdapter

from pipeline.serving.model import Answering, open_model
from pipeline.serving.requests import RefusedError, check
from pipeline.settings.serving import Limits

_PREFIX = "DCLIP_SERVE__"


class Photograph(BaseModel):
    """One image, in one of three ways.

    Attributes:
        base64: The bytes of a file, as base64.
        url: Where it is; of the places in ``DCLIP_SERVE__ALLOW_URL`` alone.
        content: The bytes of a file; not over HTTP.
    """

    model_config = ConfigDict(extra="forbid")

    base64: str | None = None
    url: str | None = None
    content: bytes | None = None


class Question(BaseModel):
    """Photographs, and what is looked for in them.

    Attributes:
        images: One or more.
        classes: Names; None for those of the training.
        masks: Whether pixels get classes, too.
        threshold: In (0, 1), in place of those of the classes.
    """

    model_config = ConfigDict(extra="forbid")

    images: list[Photograph]
    classes: list[str] | None = None
    masks: bool | None = None
    threshold: float | None = None


class RefusedByModel(MlflowException):
    """A request that is not answered, with the status and the one line that `pipeline.serve` has.

    Args:
        error: Why.
    """

    def __init__(self, error: RefusedError) -> None:
        self._said, self._status = str(error), error.status
        super().__init__(self._said, error_code=_BAD_REQUEST)

    @property
    def message(self) -> str:
        """One line; MLflow would put all that was sent before it."""
        return self._said

    @message.setter
    def message(self, _: str) -> None:
        """What MLflow adds is left out."""

    def get_http_status_code(self) -> int:
        """Of HTTP."""
        return self._status


_BAD_REQUEST = 3  # of MLflow's codes; the status that is answered is that of the error


class Photographs(PythonModel):
    """A trained model that is asked of photographs."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the checkpoint that lies in the folder of the model."""
        model, checkpoint = open_model(
            context.artifacts["model"], device=os.environ.get("DCLIP_DEVICE", "auto")
        )
        self.answering = Answering(model, limits_of(os.environ), checkpoint=checkpoint)

    def predict(  # type: ignore[override]  # MLflow takes either form
        self, model_input: list[Question]
    ) -> list[dict[str, Any]]:
        """What photographs show, one answer a question."""
        try:
            return [
                self.answering.answer(check(asked.model_dump(exclude_none=True), self._limits))
                for asked in model_input
            ]
        except RefusedError as error:
            raise RefusedByModel(error) from None

    @property
    def _limits(self) -> Limits:
        return self.answering.limits


def limits_of(environment: Any) -> Limits:
    """Limits as variables of the environment say them.

    Args:
        environment: By name.

    Raises:
        ValueError: One does not fit.
    """
    given = {
        name: environment[f"{_PREFIX}{name.upper()}"]
        for name in Limits.model_fields
        if f"{_PREFIX}{name.upper()}" in environment
    }
    return TypeAdapter(Limits).validate_python(given)


set_model(Photographs())
