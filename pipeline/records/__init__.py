"""What is kept of a run: checkpoints, their origin, and MLflow."""
