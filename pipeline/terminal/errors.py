"""The two ways a stage ends early: wrong usage and failed work."""


class UsageError(ValueError):
    """A wrong name, key or value on the command line or in a config file (exit code 2)."""


class StageError(RuntimeError):
    """Work that could not be done; one line names the thing and the remedy (exit code 1)."""
