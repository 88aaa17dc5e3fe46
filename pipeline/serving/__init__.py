"""A model that answers photographs over HTTP: one form of request, by Ray Serve and by MLflow."""

import pipeline.cluster  # noqa: F401 - sets what Ray reads when it is imported
