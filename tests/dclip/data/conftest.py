import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def trees() -> Iterator[ModuleType]:
    """The writers of tiny data sets in `trees.py`, beside this file."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(Path(__file__).parent))
    yield importlib.import_module("trees")
    patch.undo()
