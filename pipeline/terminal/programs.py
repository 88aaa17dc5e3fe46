"""What the programs that are no stages share: a command line whose errors are one line."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from pipeline.terminal.called import as_called
from pipeline.terminal.errors import StageError, UsageError


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are raised, as in the stages."""

    def error(self, message: str) -> NoReturn:
        """Raise what would be printed."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def finish(program: str, work: Callable[[], None]) -> int:
    """Do the work of a program, and turn its outcome into an exit code.

    Args:
        program: Its name, with which messages begin.
        work: Parses the command line and does what it says.

    Returns:
        0 done and no problem found, 1 a problem was found or the work failed, 2 wrong usage, 130
        interrupted.
    """
    try:
        work()
    except UsageError as error:
        return _fail(program, error, 2)
    except (StageError, ValueError, OSError) as error:
        return _fail(program, error, 1)
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted\n")
        return 130
    return 0


def _fail(program: str, error: Exception, code: int) -> int:
    if os.environ.get("DCLIP_TRACEBACK"):
        traceback.print_exception(error)
    sys.stderr.write(f"{program}: error: {as_called(str(error))}\n")
    return code
