"""What stages do once there is work: here torch and Ray are loaded."""

import pipeline.cluster  # noqa: F401 - sets what Ray reads when it is imported
