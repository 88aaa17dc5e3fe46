"""The two ways a stage ends early, wrong usage and failed work, and how an exception is told."""


class UsageError(ValueError):
    """A wrong name, key or value on the command line or in a config file (exit code 2)."""


class StageError(RuntimeError):
    """Work that could not be done; one line names the thing and the remedy (exit code 1)."""


def told(error: BaseException) -> str:
    """What an exception says, in one line: its class too where its text alone says nothing."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text
